"""Training: the loop, one gradient from many workers, and a model's Parameters on disk."""

from lora_np.train.loop import (
    Batch,
    BatchGradient,
    Diverged,
    History,
    Recipe,
    RowsOfBatch,
    evaluate,
    fit,
    loss_and_gradient,
)
from lora_np.train.resume import fill, load_parameters, save_parameters

__all__ = [
    "Batch",
    "BatchGradient",
    "Diverged",
    "History",
    "Recipe",
    "RowsOfBatch",
    "evaluate",
    "fill",
    "fit",
    "load_parameters",
    "loss_and_gradient",
    "save_parameters",
]
