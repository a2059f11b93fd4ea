"""The claims of "LoRA Without Regret" put to the test on the text task."""

from lora_np.experiments.regret.study import QUICK, RegretSettings, regret_study

__all__ = ["QUICK", "RegretSettings", "regret_study"]
