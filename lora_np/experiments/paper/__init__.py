"""Section 7 of the LoRA paper on our text task: what it measured, measured on ours, compared."""

from lora_np.experiments.paper.run import run_paper
from lora_np.experiments.paper.settings import PaperSettings

__all__ = ["PaperSettings", "run_paper"]
