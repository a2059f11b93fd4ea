"""rank_sweep on a real Dask cluster, through Client.get_executor: the results are the same."""

import pytest

from lora_np.experiments.rank_sweep import LinearSettings, rank_sweep
from tests.tiny import comparable

pytestmark = pytest.mark.peers

LINEAR = LinearSettings(ranks=(1, 3), seeds=2, d_in=12, d_out=10, steps=200)


@pytest.fixture(scope="module")
def executor():
    """A cluster of two worker processes on this machine, as an Executor."""
    import distributed

    with (
        distributed.LocalCluster(
            host="127.0.0.1",
            dashboard_address=None,
            processes=True,
            n_workers=2,
            threads_per_worker=1,
        ) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        yield executor


@pytest.mark.parametrize("task", ["linear", "text"])
def test_a_sweep_on_a_dask_cluster_equals_one_in_process(executor, tmp_path, tiny, task):
    settings = tiny if task == "text" else LINEAR
    on_cluster = rank_sweep(settings, tmp_path / "cluster", executor=executor)
    in_process = rank_sweep(settings, tmp_path / "process")
    assert on_cluster["complete"] and len(on_cluster["runs"]) == 6
    assert comparable(on_cluster) == comparable(in_process)
