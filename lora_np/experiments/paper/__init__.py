"""Section 7 of the LoRA paper, repeated on our text task and compared with the paper."""

from lora_np.experiments.paper.run import run_paper
from lora_np.experiments.paper.settings import PaperSettings

__all__ = ["PaperSettings", "run_paper"]
