"""Which alpha, and which learning rate? Losses over rank x lora_alpha, and the first step."""

from lora_np.experiments.grid.study import QUICK, GridSettings, grid_study

__all__ = ["QUICK", "GridSettings", "grid_study"]
