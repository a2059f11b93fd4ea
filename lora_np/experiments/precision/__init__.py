"""What narrow numbers cost: the base stored in few bits, merges that round, gradients that vanish.

Three questions about mixed precision, on the text task of the rank sweep::

    storage    the base in float32, bfloat16, float16 or NF4: bytes, outputs, loss, trained loss
    merging    W0 + s B A rounded to the base's form: which entries stay as they were?
    scaling    gradients in float16, made small on purpose: what is lost, and what S brings back

The products run in float32 throughout: only what is stored, or what is passed back, is narrow.
"""

from lora_np.experiments.precision.report import report
from lora_np.experiments.precision.study import QUICK, PrecisionSettings, precision_study

__all__ = ["QUICK", "PrecisionSettings", "precision_study", "report"]
