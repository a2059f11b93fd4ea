"""rank_sweep on a real Dask cluster, through Client.get_executor: the results are the same."""

import json
from dataclasses import replace

import pytest

from lora_np.experiments.rank_sweep import LinearSettings, TextSettings, rank_sweep
from tests.tiny import TINY

pytestmark = pytest.mark.peers

LINEAR = LinearSettings(ranks=(1, 3), seeds=2, d_in=12, d_out=10, steps=200)
TEXT = TextSettings(
    ranks=(1, 2),
    seeds=2,
    **TINY,
)


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


def comparable(results):
    """Results without seconds; the order in which trials ended is the executor's."""
    plain = json.loads(json.dumps(results))
    for trial in (*plain["trials"], *plain["runs"]):
        trial.pop("seconds")
    plain["trials"].sort(key=lambda t: (t["method"], t["rank"] or 0, t["seed"], t["lr"]))
    return plain


@pytest.mark.parametrize("task", ["linear", "text"])
def test_a_sweep_on_a_dask_cluster_equals_one_in_process(executor, tmp_path, task):
    settings = LINEAR
    if task == "text":
        (tmp_path / "english.txt").write_text("the square of a line is not a line\n" * 60)
        (tmp_path / "code.txt").write_text("def f(x):\n    return x + 1\n" * 60)
        texts = {"pretrain_text": "english.txt", "adapt_text": "code.txt"}
        settings = replace(TEXT, **{k: str(tmp_path / name) for k, name in texts.items()})
    on_cluster = rank_sweep(settings, tmp_path / "cluster", executor=executor)
    in_process = rank_sweep(settings, tmp_path / "process")
    assert on_cluster["complete"] and len(on_cluster["runs"]) == 6
    assert comparable(on_cluster) == comparable(in_process)
