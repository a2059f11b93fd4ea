"""The engine of studies: contenders, each with its own search, compared on the text task."""

from lora_np.experiments.study.plan import Contender, Run
from lora_np.experiments.study.run import Study, check_study, run_study
from lora_np.experiments.study.trial import Trained

__all__ = ["Contender", "Run", "Study", "Trained", "check_study", "run_study"]
