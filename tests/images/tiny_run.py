"""A run of the report on images in a few seconds, of models that have hardly begun to learn."""

from functools import partial

from lora_np.images import (
    BaseSettings,
    DistilSettings,
    StyleSettings,
    drawn,
    folder,
    scores,
    study,
    train_judge,
)
from lora_np.images.plan import ImagesSettings

BASE = BaseSettings(images=200, k=96, d=32, d_hidden=32, n_block=1, d_c=16, steps=30, batch=32)
TINY = ImagesSettings(
    seeds=1,
    r_lcm=8,
    r_refined=2,
    n=156,
    base=BASE,
    style=StyleSettings(steps=2, batch=16),
    style_full=StyleSettings(steps=2, batch=16, lr=1e-3),
    refined=StyleSettings(style="outline", steps=2, batch=16),
    distil=DistilSettings(images=200, steps=2, batch=16),
    distil_full=DistilSettings(images=200, steps=2, batch=16),
    steps=(1, 2, 20),
    style_weights=(1.0,),
    lcm_weights=(0.0, 1.0),
)


def hurry(patch):
    """Let the judge be hardly trained, the convolutions be few, and fewer sets be drawn."""
    patch.setattr(study, "train_judge", partial(train_judge, n=156, steps=2, batch=32))
    patch.setattr(folder, "REFINER", {"channels": 4, "n_block": 1, "d_c": 8})
    patch.setattr(drawn, "FEW", (1, 2))
    patch.setattr(scores, "FLOORS", 1)


def timeless(results):
    """Return what the work found, without what depends on the clock."""
    times = ("cpu_seconds", "wall_seconds", "seconds", "ratio")
    return {
        work: {key: value for key, value in found.items() if key not in times}
        for work, found in results["done"].items()
    }
