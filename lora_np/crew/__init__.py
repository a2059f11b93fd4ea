"""Who does the work: this thread alone, Python threads, or forked processes; and BLAS's threads.

A crew shares the samples of a batch. Every member works with BLAS at one thread: threads inside
BLAS would compete with the crew, and the two together are slower than either. What pays:

- Threads run side by side where NumPy's loops and BLAS have released the interpreter's lock. For
  each of a step's hundreds of calls they must take it back, and then wait for one another.
- Processes have a lock each. They see the model as it was when they were forked, and afterwards
  only what lies in shared memory (:func:`lora_np.crew.processes.shared_empty`) or is sent to them.
"""

from lora_np.crew.machine import cores, keep_memory, one_blas_thread
from lora_np.crew.processes import Processes, can_fork, shared_empty
from lora_np.crew.threads import Alone, CrewError, Threads, Work, threads_at_work

__all__ = [
    "Alone",
    "CrewError",
    "Processes",
    "Threads",
    "Work",
    "can_fork",
    "cores",
    "keep_memory",
    "one_blas_thread",
    "shared_empty",
    "threads_at_work",
]
