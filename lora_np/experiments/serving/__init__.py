"""What a mixed batch costs: many adapters over one base, against the base alone and against others.

Every figure is a ratio of two sides that took turns in one run on one BLAS thread::

    pool        adapters in memory: 1, 10, 100, 1,000
    distinct    distinct adapters in the batch; with one adapter at a time, and PEFT
    disk        10,000 adapters on disk, a few of them asked for most often, room for 256
    wide        1,000 distinct adapters in one batch
    real        8 distinct adapters, whole answers to prompts of several lengths
    long        the same, the writing alone: what a long context costs at each token

"Distinct in the pool" is not "distinct in the batch": both are counted.
"""

from lora_np.experiments.serving.plan import MEASUREMENTS, QUICK, BenchSettings
from lora_np.experiments.serving.report import report
from lora_np.experiments.serving.run import serving_study

__all__ = ["MEASUREMENTS", "QUICK", "BenchSettings", "report", "serving_study"]
