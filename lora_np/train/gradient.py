"""The gradient of a batch that is split into pieces, for one worker or several."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp
from lora_np.crew import Alone, Processes, Threads, shared_empty, threads_at_work
from lora_np.data.rows import RowsOfBatch
from lora_np.methods import MethodConfig, method_of
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.parameters import Grads, Packed, Parameter

Batch = tuple[Array, ...]  # the first axis of each array is the samples


class BatchGradient:
    """The loss of a batch and its gradient, computed by a crew; use it in a ``with`` block.

    Every piece divides by the number of the whole batch, so that losses and gradients add up; the
    mean of the pieces' means would differ if pieces have different numbers of targets. Random draws
    are those of the whole batch. Pieces are added up in a fixed order.

    Parameters
    ----------
    model : model
    packed : Packed
        The model's trainable Parameters.
    accumulate : int
        Number of parts of a batch, computed one after the other to save memory.
    threads, processes : int
        Number of workers that share each part; at least one of the two is 1. Inside the block,
        processes share in memory the trainable Parameters and those of ``model.moving()``, such as
        a moving average of the weights; they see no other change of the model. At the end of the
        block each of these Parameters gets a new array; a model that borrowed the old array keeps
        it.
    """

    def __init__(
        self, model: Any, packed: Packed, accumulate: int = 1, threads: int = 1, processes: int = 1
    ) -> None:
        self.model, self.packed, self.accumulate = model, packed, accumulate
        self.method = method_of(model) or MethodConfig()
        if min(threads, processes) != 1:
            raise ValueError(
                f"threads = {threads} and processes = {processes}, expected at least 1 each and "
                "one of them 1"
            )
        if processes > 1 and (busy := threads_at_work()):
            warnings.warn(
                f"this program's thread {busy[0]!r} is at work, and a fork beside it may never "
                f"return: {processes} threads replace {processes} processes; the result is equal",
                RuntimeWarning,
                stacklevel=4,
            )
            threads, processes = processes, 1
        self.members, shape = max(threads, processes), packed.vector.shape
        xp, dtype = get_xp(packed.vector), packed.vector.dtype
        if processes > 1:
            if xp is not np:
                raise ValueError(f"processes = {processes} share host memory: on a GPU use 1")
            self.crew = Processes(self._add_up, processes)
            self.rows = shared_empty((processes, *shape), dtype)  # a gradient for each member
        else:
            self.crew = Threads(self._add_up, threads) if threads > 1 else Alone(self._add_up)
            self.rows = xp.zeros((threads, *shape), dtype)

    def __enter__(self) -> BatchGradient:
        with ExitStack() as stack:
            if isinstance(self.crew, Processes):
                vector = self.packed.vector
                self.packed.move_to(shared_empty(vector.shape, vector.dtype))
                # Processes forked after this block must not share the parameters' memory.
                stack.callback(lambda: self.packed.move_to(self.packed.vector.copy()))
                for parameter in moving_of(self.model):
                    parameter.value = _shared_copy(parameter.value)
                    stack.callback(_own_again, parameter)
            stack.enter_context(self.crew)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self._leave.close()

    def __call__(
        self, batch: Batch, rng: np.random.Generator | None = None, scale: float = 1.0
    ) -> tuple[float, Array]:
        """Return the loss and `scale` times its gradient (n,), which the next call overwrites."""
        if self.accumulate > len(batch[0]):
            raise ValueError(
                f"accumulate = {self.accumulate} parts of a batch of {len(batch[0])} samples"
            )
        drawn = self.method.draw(rng)
        pieces = _cut(batch, min(self.accumulate * self.members, len(batch[0])), rng)
        whole = {} if len(pieces) == 1 else {"count": number_of(self.model, batch)}
        members = min(self.members, len(pieces))
        how = (whole, drawn, scale)
        shares = [(pieces[member :: self.members], *how) for member in range(members)]
        try:
            losses, states = zip(*self.crew.map(shares))
        finally:
            self.method.use(self.model, None)
        if rng is not None:  # the state after the draws of the whole batch
            rng.bit_generator.state = states[0]
        gradient = self.rows[0]
        for other in self.rows[1:members]:
            gradient += other
        return sum(losses) + self._penalty(gradient, scale), gradient

    def _penalty(self, gradient: Array, scale: float) -> float:
        """Return the method's penalty, once for the whole batch; add its gradient."""
        grads = Grads()
        penalty = self.method.penalty(self.model, grads)
        if len(grads):
            gradient += scale * self.packed.gather(grads)
        return penalty

    def _add_up(
        self, member: int, share: tuple[list, dict[str, Any], Any, float]
    ) -> tuple[float, Any]:
        """Store the gradient of a member's pieces; return their loss and the generator's state."""
        pieces, whole, drawn, scale = share
        self.method.use(self.model, drawn)
        grads, total, state = Grads(), 0.0, None
        for piece, rng in pieces:
            loss, cache = self.model.loss(*piece, rng=rng, **whole)
            self.model.backward(scale, cache, grads)
            total += float(loss)
            state = None if rng is None else rng.bit_generator.state
        self.packed.gather(grads, self.rows[member])
        return total, state


def loss_and_gradient(
    model: Any,
    packed: Packed,
    batch: Batch,
    accumulate: int = 1,
    rng: np.random.Generator | None = None,
) -> tuple[float, Array]:
    """Return the loss of one batch and its gradient (n,); see :class:`BatchGradient`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, pack
    >>> from lora_np.train import loss_and_gradient
    >>> model = GPT(GPTConfig(4, 3, 1, 1, 8), np.random.default_rng(0), np.float64)
    >>> packed, batch = pack(model.parameters()), (np.zeros((6, 3), int), np.ones((6, 3), int))
    >>> (_, whole), (_, parts) = (loss_and_gradient(model, packed, batch, n) for n in (1, 3))
    >>> np.allclose(whole, parts)  # in parts the gradient is the same
    True
    """
    return BatchGradient(model, packed, accumulate)(batch, rng)


def _cut(batch: Batch, number: int, rng: Any) -> list[tuple[Batch, Any]]:
    """Cut a batch into pieces of nearly equal size, each with a generator for its rows."""
    if number == 1:
        return [(batch, rng)]
    pieces, size = [], len(batch[0])
    for indices in np.array_split(np.arange(size), number):
        rows = slice(int(indices[0]), int(indices[-1]) + 1)
        draws = None if rng is None else RowsOfBatch(rng, rows, size)
        pieces.append((tuple(array[rows] for array in batch), draws))
    return pieces


def number_of(model: Any, batch: Batch) -> int:
    """Return the number that the loss of a batch averages over: model.number, or the targets."""
    number = getattr(model, "number", None)
    return int((batch[-1] != IGNORE_INDEX).sum()) if number is None else number(batch)


def moving_of(model: Any) -> list[Parameter]:
    """Return the Parameters that change between steps but are not trained."""
    moving = getattr(model, "moving", None)
    return [] if moving is None else list(moving())


def _shared_copy(value: Array) -> Array:
    """Return an equal array in memory that forked processes share."""
    shared = shared_empty(value.shape, value.dtype)
    shared[...] = value
    return shared


def _own_again(parameter: Parameter) -> None:
    parameter.value = parameter.value.copy()
