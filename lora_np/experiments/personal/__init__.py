"""Personal and per-task adapters: one for every pair of a user and a task, over one base.

A TOML file says which tasks there are, and how each user wants the answers. The experiment trains
an adapter for every pair, scores each on the held-out samples of all pairs, and asks whether each
beats every other on its own. The base stays as it was, bit for bit.
"""

from lora_np.experiments.personal.matrix import Matrix, matrix_text
from lora_np.experiments.personal.plan import Plan, PlanError, Task, User, read_plan
from lora_np.experiments.personal.run import (
    Tools,
    matrix_of,
    one_shared_model,
    run_personal,
    run_text,
)
from lora_np.experiments.personal.samples import samples_of
from lora_np.experiments.personal.tasks import Sample

__all__ = [
    "Matrix",
    "Plan",
    "PlanError",
    "Sample",
    "Task",
    "Tools",
    "User",
    "matrix_of",
    "matrix_text",
    "one_shared_model",
    "read_plan",
    "run_personal",
    "run_text",
    "samples_of",
]
