"""What the tests of images share."""

import pytest

from lora_np.files import load_json
from lora_np.images.study import run_images
from tests.images.tiny_run import TINY, hurry


class Stopped(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory):
    """A tiny report that was stopped in the middle, and then run to its end.

    Returns its folder, to be read only, what it held when it was stopped, its results, and the
    names of the work that was done after the stop.
    """
    out = tmp_path_factory.mktemp("images") / "run"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)

        def stop(progress):
            if str(progress.trial) == "regular, seed 0":
                raise Stopped

        with pytest.raises(Stopped):
            run_images(TINY, out, listen=stop)
        held, after = load_json(out / "results.json"), []
        results = run_images(TINY, out, listen=lambda progress: after.append(str(progress.trial)))
    return out, held, results, after
