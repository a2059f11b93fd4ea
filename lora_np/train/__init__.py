"""Training: the loop, one gradient from many workers, and saving and resuming."""

from lora_np.train.average import MovingAverage
from lora_np.train.gradient import Batch, BatchGradient, loss_and_gradient
from lora_np.train.loop import Trainer, evaluate, fit
from lora_np.train.recipe import Diverged, History, Recipe
from lora_np.train.resume import (
    continue_from,
    fill,
    load_parameters,
    load_state,
    save_parameters,
    save_state,
)

__all__ = [
    "Batch",
    "BatchGradient",
    "Diverged",
    "History",
    "MovingAverage",
    "Recipe",
    "Trainer",
    "continue_from",
    "evaluate",
    "fill",
    "fit",
    "load_parameters",
    "load_state",
    "loss_and_gradient",
    "save_parameters",
    "save_state",
]
