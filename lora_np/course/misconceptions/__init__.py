"""The tasks and their known misconceptions, one file for each family; importing it fills TASKS.

A file holds, for each of its tasks, the reference, the inputs that it is tried on, and one function
for each misconception, which returns what a student with that misconception would return.
"""

from lora_np.course.misconceptions import (  # noqa: F401
    attention,
    cross_entropy,
    layernorm,
    linear,
    lora_backward,
    lora_forward,
    numeric_gradient,
    rank,
    softmax,
)
