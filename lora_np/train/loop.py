"""The training loop: batches in, a history out.

A model offers ``loss(inputs, targets, rng, count=None)``, which divides the sum over its targets by
`count` where it is given and by their own number where not, ``backward(dy, cache, grads)`` and
``parameters()``; nothing else is asked of it. Targets equal to -100 do not count. A step is::

    loss, cache = model.loss(inputs, targets, rng)
    model.backward(1.0, cache, grads)
    gradient = clip(packed.gather(grads))
    optimizer.step(gradient, lr * factor(step))
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_np.backend import Array, get_xp, like
from lora_np.crew import Alone, Processes, Threads, shared_empty, threads_at_work
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.optim import clip_by_global_norm, global_norm, make_optimizer, schedule
from lora_np.parameters import Grads, Packed, pack

Batch = tuple[Array, Array]


class Diverged(ArithmeticError):
    """A loss, gradient or parameter stopped being finite; the model holds its last good state.

    Attributes
    ----------
    history : History
        Of the steps before.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, fit
    >>> from lora_np.train import Diverged
    >>> model = GPT(GPTConfig(4, 3, 1, 1, 8), np.random.default_rng(0))
    >>> batch = np.array([[0, 1, 2]]), np.array([[1, 2, 3]])
    >>> try:
    ...     fit(model, lambda: batch, steps=5, lr=1e38, optimizer="sgd", clip=None)
    ... except Diverged as error:
    ...     print(len(error.history.loss) < 5)  # the steps that went well
    True
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@dataclass
class History:
    """What happened at each step.

    Attributes
    ----------
    loss, lr, gradient_norm : list of float
        One a step; the norm is that before clipping.
    validation : list of (int, float)
        Steps done, and the validation loss then.
    tokens, seconds : int, float
        Targets seen, and the time it took.
    """

    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How gradients become steps.

    Parameters
    ----------
    optimizer : {"adamw", "adam", "sgd"}
    schedule : {"cosine", "linear", "constant"}
        Of the learning rate, after the warmup.
    warmup : int
        Steps over which the learning rate rises.
    clip : float, optional
        Largest global norm of the gradient; None does not clip.
    accumulate : int
        Parts in which a batch is worked through, to save memory; the result is the same.
    threads, processes : int
        Python threads, or forked processes (Linux, arrays on the host), that share every batch,
        with BLAS at one thread each; not both above 1. Processes are faster. Where a program has
        threads of its own at work, as Jupyter's kernels do, a fork might never end: as many threads
        then take the processes' place, with a warning. The result is the same to rounding, and bit
        for bit for the same number of either.
    options : mapping
        For the optimizer, e.g. ``{"weight_decay": 0.1}``.

    Examples
    --------
    >>> from lora_np.train import Recipe
    >>> Recipe().optimizer, Recipe(warmup=10, clip=None).clip
    ('adamw', None)
    """

    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: int = 0
    clip: float | None = 1.0
    accumulate: int = 1
    threads: int = 1
    processes: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip = {self.clip}, expected a norm above 0, or None")
        if self.accumulate < 1:
            raise ValueError(f"accumulate = {self.accumulate}, expected at least 1 part")


def fit(
    model: Any,
    sample: Callable[[], Batch],
    *,
    steps: int,
    lr: float,
    rng: np.random.Generator | None = None,
    validate: Callable[[], float] | None = None,
    validate_every: int = 0,
    progress: bool = False,
    **recipe: Any,
) -> History:
    """Train the model's trainable Parameters in place.

    Parameters
    ----------
    model : model
        Offers ``loss``, ``backward`` and ``parameters``, as described in this module.
    sample : callable
        Gives the next batch, (inputs, targets), with the samples along the first axis.
    steps, lr : int, float
        `lr` is the largest learning rate; the schedule scales it.
    rng : numpy.random.Generator, optional
        Turns dropout on. Where a batch is split, a model may draw from it only by
        ``rng.random((samples, ...))``, whose first axis is the batch's.
    validate, validate_every : callable and int, optional
        Gives the validation loss; called after every `validate_every` steps and at the end.
    progress : bool
        Show a bar with the loss, tokens a second and the time left.
    **recipe
        Fields of :class:`~lora_np.train.Recipe`, e.g. ``warmup=10, clip=None``.

    Returns
    -------
    History

    Raises
    ------
    Diverged
        If the loss or gradient is not finite: the model then holds the last parameters whose loss
        and gradient were.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, fit
    >>> model = GPT(GPTConfig(4, 3, 1, 1, 8), np.random.default_rng(0))
    >>> batch = np.array([[0, 1, 2]]), np.array([[1, 2, 3]])  # learn to count
    >>> history = fit(model, lambda: batch, steps=40, lr=0.02)
    >>> history.loss[-1] < 0.1, model.generate(np.array([0]), 3, temperature=0).tolist()
    (True, [0, 1, 2, 3])
    """
    if steps < 1 or not 0.0 < lr < math.inf:
        raise ValueError(f"steps = {steps} and lr = {lr}, expected at least 1, and above 0")
    trainer = _Trainer(model, Recipe(**recipe), steps, lr, rng)
    quiet = np.errstate(over="ignore", invalid="ignore")
    with _bar(progress, steps) as bar, quiet, trainer.gradient:
        trainer.run(sample, steps, validate, validate_every, bar)
    return trainer.history


class _Trainer:
    """The state of a training run: parameters, optimizer, history, and the last good state."""

    def __init__(self, model: Any, recipe: Recipe, steps: int, lr: float, rng: Any) -> None:
        self.model, self.recipe, self.lr, self.rng = model, recipe, lr, rng
        self.packed = pack(model.parameters())
        self.optimizer = make_optimizer(recipe.optimizer, self.packed, **recipe.options)
        self.factor = schedule(recipe.schedule, steps, warmup=recipe.warmup)
        self.good = self.packed.vector.copy()  # its loss and gradient were finite
        self.history, self.start = History(), time.perf_counter()
        self.gradient = BatchGradient(
            model, self.packed, recipe.accumulate, recipe.threads, recipe.processes
        )

    def run(
        self,
        sample: Callable[[], Batch],
        steps: int,
        validate: Callable[[], float] | None,
        validate_every: int,
        bar: _bar,
    ) -> None:
        """Take all steps, validate where it is due, and look at the last parameters."""
        for step in range(steps):
            batch = sample()
            self.step(step, batch)
            if validate is not None and _due(step + 1, validate_every, steps):
                self.history.validation.append((step + 1, validate()))
            bar.update(self.history.loss[-1], batch[1].size)
        self.stop_unless_finite(steps, "parameters' norm", global_norm(self.packed.vector))

    def step(self, step: int, batch: Batch) -> None:
        """Take one step and record it."""
        recipe, history = self.recipe, self.history
        try:
            loss, gradient = self.gradient(batch, self.rng)
        except FloatingPointError:  # the loss says that it would not be finite
            self.stop_unless_finite(step, "loss", math.nan)
            raise
        limit = math.inf if recipe.clip is None else recipe.clip
        gradient, norm = clip_by_global_norm(gradient, limit)
        self.stop_unless_finite(step, "loss", loss)
        self.stop_unless_finite(step, "gradient's norm", norm)
        self.good[...] = self.packed.vector
        lr = self.lr * self.factor(step)
        self.optimizer.step(gradient, lr)
        history.loss.append(loss)
        history.lr.append(lr)
        history.gradient_norm.append(norm)
        history.tokens += int(batch[1].size)
        history.seconds = time.perf_counter() - self.start

    def stop_unless_finite(self, step: int, name: str, value: float) -> None:
        """Restore the last good parameters and raise if a number is NaN or infinite."""
        if not math.isfinite(value):
            self.packed.vector[...] = self.good
            raise Diverged(
                f"the {name} is {value} at step {step}: the model holds its last good parameters; "
                f"try a learning rate below {self.lr:g}, a longer warmup, or clip",
                self.history,
            )


class BatchGradient:
    """The loss of a batch and its gradient, worked through by a crew; use it in a ``with``.

    Every piece divides by the whole batch's count, so that losses and gradients simply add: the
    mean of the pieces' means would be another number where pieces keep different counts. Dropout's
    masks are those of the whole batch. Pieces are added up in a fixed order.

    Parameters
    ----------
    model : model
    packed : Packed
        Of the model's Parameters.
    accumulate : int
        Parts, one after the other, to save memory.
    threads, processes : int
        Which share each part; one of them is 1. Processes keep the trainable values in shared
        memory meanwhile, and see no other change to the model; when they leave, every trainable
        Parameter gets a new array of its own, and a model that borrowed the old one keeps that.
    """

    def __init__(
        self, model: Any, packed: Packed, accumulate: int = 1, threads: int = 1, processes: int = 1
    ) -> None:
        self.model, self.packed, self.accumulate = model, packed, accumulate
        if min(threads, processes) != 1:
            raise ValueError(
                f"threads = {threads} and processes = {processes}, expected at least 1 and one of "
                "them 1"
            )
        if processes > 1 and (busy := threads_at_work()):
            warnings.warn(
                f"this program's thread {busy[0]!r} is at work, beside which a fork may never end: "
                f"{processes} threads take the place of {processes} processes; the result is equal",
                RuntimeWarning,
                stacklevel=4,
            )
            threads, processes = processes, 1
        self.members, shape = max(threads, processes), packed.vector.shape
        xp, dtype = get_xp(packed.vector), packed.vector.dtype
        if processes > 1:
            if xp is not np:
                raise ValueError(f"processes = {processes} share host memory: on a GPU take 1")
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
                # Later forks, of anybody, are to have parameters of their own again.
                stack.callback(lambda: self.packed.move_to(self.packed.vector.copy()))
            stack.enter_context(self.crew)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self._leave.close()

    def __call__(self, batch: Batch, rng: np.random.Generator | None = None) -> tuple[float, Array]:
        """Return the loss and its gradient (n,), which the next call overwrites."""
        inputs, targets = batch
        if self.accumulate > len(inputs):
            raise ValueError(
                f"accumulate = {self.accumulate} parts of a batch of {len(inputs)} samples"
            )
        pieces = _cut(batch, min(self.accumulate * self.members, len(inputs)), rng)
        whole = {} if len(pieces) == 1 else {"count": int((targets != IGNORE_INDEX).sum())}
        members = min(self.members, len(pieces))
        shares = [(pieces[member :: self.members], whole) for member in range(members)]
        losses, states = zip(*self.crew.map(shares))
        if rng is not None:  # as if the whole batch had drawn
            rng.bit_generator.state = states[0]
        gradient = self.rows[0]
        for other in self.rows[1:members]:
            gradient += other
        return sum(losses), gradient

    def _add_up(self, member: int, share: tuple[list, dict[str, int]]) -> tuple[float, Any]:
        """Gather the gradient of a member's pieces; return their loss, and the draws' state."""
        pieces, whole = share
        grads, total, state = Grads(), 0.0, None
        for inputs, targets, rng in pieces:
            loss, cache = self.model.loss(inputs, targets, rng, **whole)
            self.model.backward(1.0, cache, grads)
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


def _cut(batch: Batch, number: int, rng: np.random.Generator | None) -> list[tuple]:
    """Cut a batch in pieces of nearly equal size, each with what draws for its rows."""
    inputs, targets = batch
    if number == 1:
        return [(inputs, targets, rng)]
    pieces = []
    for indices in np.array_split(np.arange(len(inputs)), number):
        rows = slice(int(indices[0]), int(indices[-1]) + 1)
        draws = None if rng is None else RowsOfBatch(rng, rows, len(inputs))
        pieces.append((inputs[rows], targets[rows], draws))
    return pieces


OTHER_DRAWS = {
    name for name in dir(np.random.Generator) if not name.startswith("_")
} - {"random", "bit_generator"}  # fmt: skip


class RowsOfBatch(np.random.Generator):
    """A Generator for some rows of a batch: it draws for the whole batch and gives their share.

    Dropout's masks then do not depend on how a batch is split. Every part draws from a copy of one
    generator, and the first axis of what is drawn is the batch's. Only ``random`` can be split so.
    """

    def __init__(self, rng: np.random.Generator, rows: slice, batch_size: int) -> None:
        super().__init__(copy.deepcopy(rng.bit_generator))
        self.rows, self.batch_size = rows, batch_size

    def __reduce__(self) -> tuple:  # for the way to another process
        return RowsOfBatch, (np.random.Generator(self.bit_generator), self.rows, self.batch_size)

    def random(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, size: Any = None, dtype: Any = np.float64, out: Any = None
    ) -> Any:
        """Return the rows' share of numbers in [0, 1) drawn for the whole batch."""
        rows = self.rows.stop - self.rows.start
        if not isinstance(size, tuple) or size[:1] != (rows,) or out is not None:
            raise ValueError(f"random({size}) for {rows} samples, expected random(({rows}, ...))")
        return super().random((self.batch_size, *size[1:]), dtype)[self.rows]

    def __getattribute__(self, name: str) -> Any:
        """Refuse what would draw the same numbers for every part."""
        if name in OTHER_DRAWS:
            raise AttributeError(f"rng.{name}: of a batch that is split, only rng.random can draw")
        return super().__getattribute__(name)


def evaluate(model: Any, inputs: np.ndarray, targets: np.ndarray, batch_size: int = 32) -> float:
    """Return the mean loss over all samples, in nats a token, without dropout; nan if not finite.

    Parameters
    ----------
    model : model
    inputs, targets : host arrays, shape (N, T)
    batch_size : int
        Samples at a time; the result does not depend on it, beyond rounding.

    Raises
    ------
    ValueError
        If there is no target to average over.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, evaluate
    >>> model = GPT(GPTConfig(256, 3, 1, 1, 8), np.random.default_rng(0))
    >>> loss = evaluate(model, np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))
    >>> abs(loss - math.log(256)) < 0.1  # it knows nothing yet: all bytes are alike
    True
    """
    on_device = next(iter(model.parameters().values())).value
    count = int((targets != IGNORE_INDEX).sum())  # of all: parts then simply add
    if count == 0:
        raise ValueError(f"targets of shape {targets.shape} hold none that counts")
    total = 0.0
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        x, y = like(inputs[rows], on_device), like(targets[rows], on_device)
        try:
            total += float(model.loss(x, y, count=count)[0])
        except FloatingPointError:
            return math.nan
    return total


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


class _bar:
    """tqdm's bar in tokens, or nothing at all."""

    def __init__(self, show: bool, steps: int) -> None:
        self.show, self.steps, self.tqdm = show, steps, None

    def __enter__(self) -> _bar:
        return self

    def update(self, loss: float, tokens: int) -> None:
        """Advance by one step of `tokens`."""
        if not self.show:
            return
        if self.tqdm is None:
            from tqdm import tqdm

            self.tqdm = tqdm(total=self.steps * tokens, unit="tok", unit_scale=True)
        self.tqdm.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.tqdm.update(tokens)

    def __exit__(self, *args: object) -> None:
        if self.tqdm is not None:
            self.tqdm.close()
