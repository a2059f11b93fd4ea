"""Workers: this thread alone, Python threads, or forked processes; and the threads of BLAS.

The members of a crew share the samples of a batch. In a crew of threads or processes BLAS uses one
thread: more BLAS threads would compete with the crew, and both together are slower than either.

- Threads run in parallel while NumPy's loops and BLAS have released the interpreter's lock. A step
  has hundreds of NumPy calls; after each, a thread must take the lock back and wait for the others.
- Each process has its own lock. It sees the model as it was at the fork; later it sees only changes
  in shared memory (:func:`lora_np.crew.processes.shared_empty`) and what is sent to it.

In a browser Python starts neither: the members of a crew of threads take turns there, with the same
result (:func:`lora_np.crew.machine.has_threads`).

Members that hold parts of the same arrays exchange them with an
:class:`lora_np.crew.exchange.Exchange`.
"""

from lora_np.crew.exchange import Exchange, MemberLost
from lora_np.crew.machine import (
    cores,
    has_processes,
    has_threads,
    keep_memory,
    one_blas_thread,
    progress_bar,
)
from lora_np.crew.processes import Processes, can_fork, shared_empty
from lora_np.crew.threads import Alone, CrewError, InProcess, Threads, Work, threads_at_work

__all__ = [
    "Alone",
    "CrewError",
    "Exchange",
    "InProcess",
    "MemberLost",
    "Processes",
    "Threads",
    "Work",
    "can_fork",
    "cores",
    "has_processes",
    "has_threads",
    "keep_memory",
    "one_blas_thread",
    "progress_bar",
    "shared_empty",
    "threads_at_work",
]
