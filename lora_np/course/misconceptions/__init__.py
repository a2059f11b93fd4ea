"""All tasks and their misconceptions, one file for each task or family. Importing them fills TASKS.

A file contains the reference, the inputs that it is tried on, and one function for each
misconception, which returns what a student with that misconception would return. To add a task,
copy softmax.py, import the new file here, and plant its mistakes in tests/class_of_50.py.
"""

from lora_np.course.misconceptions import (  # noqa: F401
    attention,
    cross_entropy,
    diffusion_steps,
    guidance,
    layernorm,
    linear,
    lora_backward,
    lora_forward,
    numeric_gradient,
    rank,
    softmax,
    v_prediction,
)
