"""Instruction tuning on a synthetic set: what a model follows before and after.

The records are generated, in Alpaca's form, and every one has exactly one right output. They test
whether a model follows a form to the letter, and whether it refuses to guess; they do not measure
how helpful an assistant is. Four families are never trained, so that transfer can be measured.
"""

from lora_np.experiments.instructions.judge import judge, judge_splits
from lora_np.experiments.instructions.records import Record, instruction_set, write_jsonl
from lora_np.experiments.instructions.report import report
from lora_np.experiments.instructions.run import InstructionSettings, run_instructions

__all__ = [
    "InstructionSettings",
    "Record",
    "instruction_set",
    "judge",
    "judge_splits",
    "report",
    "run_instructions",
    "write_jsonl",
]
