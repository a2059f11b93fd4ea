"""The training loop: batches in, a history out.

A model needs ``parameters()``, ``backward(dy, cache, grads)`` and ``loss(*batch, rng=None,
count=None)``, which divides its sum by `count` or, by default, by ``number(batch)``. A step is::

    loss, cache = model.loss(*batch, rng=rng)
    model.backward(scale, cache, grads)
    gradient = clip(packed.gather(grads) / scale)
    optimizer.step(gradient, lr * factor(step))

The first two lines are in gradient.py, because several workers may share a batch; scaling.py says
when the scale is not 1. :func:`fit` does all steps. A :class:`Trainer` does them in parts, and can
be saved in between.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lora_np.backend import get_xp, like, to_host
from lora_np.crew import progress_bar
from lora_np.methods import method_of
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.optim import clip_by_global_norm, global_norm, make_optimizer, schedule
from lora_np.parameters import pack
from lora_np.train.gradient import Batch, BatchGradient, moving_of
from lora_np.train.recipe import Diverged, History, Recipe
from lora_np.train.resume import expect_same_run
from lora_np.train.scaling import LossScale

AfterStep = Callable[[Any, int, Any], None]  # (model, step, gradient (n,))


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
    after_step: AfterStep | None = None,
    **recipe: Any,
) -> History:
    """Train the model's trainable Parameters in place.

    Parameters
    ----------
    model : model
        Has ``loss``, ``backward``, ``number`` and ``parameters``, as described in this module.
    sample : callable
        Returns the next batch, as :class:`lora_np.data.Batches` does: arrays with the samples along
        the first axis.
    steps, lr, rng, after_step, **recipe
        As for :class:`~lora_np.train.Trainer`.
    validate, validate_every : callable and int, optional
        Returns the validation loss; called after every `validate_every` steps and at the end.
    progress : bool
        Show a bar with the loss, the tokens per second and the time left.

    Returns
    -------
    History

    Raises
    ------
    Diverged
        If the loss or the gradient is not finite: the model then holds the last parameters whose
        loss and gradient were finite.

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
    trainer = Trainer(model, sample, steps=steps, lr=lr, rng=rng, after_step=after_step, **recipe)
    trainer.run(validate=validate, validate_every=validate_every, progress=progress)
    return trainer.history


class Trainer:
    """A training run that can be done in parts and saved in between.

    Parameters
    ----------
    model : model
    sample : callable
        Returns the next batch. If it has a generator ``rng``, the generator is saved with the run.
    steps, lr : int, float
        Steps of the whole run, and the largest learning rate, which the schedule scales.
    rng : numpy.random.Generator, optional
        Turns dropout on. If batches are split, a model may draw only with ``random``,
        ``standard_normal`` and ``integers``, with the samples along the first axis.
    after_step : callable, optional
        ``after_step(model, step, gradient)`` is called after every step, with the clipped gradient
        (n,), which the next step overwrites: copy it to keep it. The ``after_step`` of the method
        that adapted the model is called first.
    **recipe
        Fields of :class:`~lora_np.train.Recipe`, for example ``warmup=10, clip=None``.

    Attributes
    ----------
    position : int
        Number of steps done.
    history : History

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, data
    >>> from lora_np.train import Trainer
    >>> def begin():
    ...     model = GPT(GPTConfig(9, 3, 1, 1, 8), np.random.default_rng(0))
    ...     batches = data.Batches(np.arange(9), 2, 3, np.random.default_rng(1))
    ...     return Trainer(model, batches, steps=6, lr=0.02)
    >>> whole, first, second = begin(), begin(), begin()
    >>> whole.run()
    >>> first.run(4)
    >>> second.load(first.state())  # also through a file: save_state, load_state
    >>> second.run()
    >>> second.history.loss == whole.history.loss
    True
    """

    def __init__(
        self,
        model: Any,
        sample: Callable[[], Batch],
        *,
        steps: int,
        lr: float,
        rng: np.random.Generator | None = None,
        after_step: AfterStep | None = None,
        **recipe: Any,
    ) -> None:
        if steps < 1 or not 0.0 < lr < math.inf:
            raise ValueError(f"steps = {steps} and lr = {lr}, expected at least 1, and above 0")
        self.model, self.sample, self.rng = model, sample, rng
        self.steps, self.lr, self.recipe = steps, lr, Recipe(**recipe)
        self.packed = pack(model.parameters())
        self.optimizer = make_optimizer(self.recipe.optimizer, self.packed, **self.recipe.options)
        self.factor = schedule(self.recipe.schedule, steps, warmup=self.recipe.warmup)
        self.good = self.packed.vector.copy()  # the last one whose loss and gradient were finite
        self.position, self.history = 0, History()
        self.scale = LossScale(self.recipe.loss_scale)
        self.hooks = [hook for hook in (_method_hook(model), after_step) if hook is not None]
        self.rates = _rates(model, self.packed.slices())
        self.groups = _groups(model, self.packed.slices())
        self.gradient = BatchGradient(
            model, self.packed, self.recipe.accumulate, self.recipe.threads, self.recipe.processes
        )

    def run(
        self,
        steps: int | None = None,
        *,
        validate: Callable[[], float] | None = None,
        validate_every: int = 0,
        progress: bool = False,
    ) -> None:
        """Take `steps` more steps, by default all that are left.

        Raises
        ------
        Diverged
            As :func:`fit`.
        """
        left = self.steps - self.position
        number = left if steps is None else min(steps, left)
        self.packed.expect_whole()
        quiet = np.errstate(over="ignore", invalid="ignore")
        start = time.perf_counter() - self.history.seconds
        with _bar(progress, number) as bar, quiet, self.gradient:
            for _ in range(number):
                batch = self.sample()
                self.step(batch)
                self.history.seconds = time.perf_counter() - start
                done = self.position
                if validate is not None and _due(done, validate_every, self.steps):
                    self.history.validation.append((done, validate()))
                bar.update(self.history.loss[-1], batch[:2][-1].size)
            norm = global_norm(self.packed.vector)
            self.stop_unless_finite("parameters' norm", norm)

    def step(self, batch: Batch) -> None:
        """Take one step and record it; ``run`` calls this inside the block of its workers."""
        recipe, history = self.recipe, self.history
        try:
            loss, gradient = self._unscaled(batch)
        except FloatingPointError:  # the loss would not be finite
            self.stop_unless_finite("loss", math.nan)
            raise
        limit = math.inf if recipe.clip is None else recipe.clip
        gradient, norm = self._clipped(gradient, limit)
        self.stop_unless_finite("loss", loss)
        self.stop_unless_finite("gradient's norm", norm)
        self.good[...] = self.packed.vector
        lr = self.lr * self.factor(self.position)
        self.optimizer.step(gradient, lr)
        for place, factor in self.rates:  # an update is lr times a direction, with any optimizer
            before, after = self.good[place], self.packed.vector[place]
            after[...] = before + factor * (after - before)
        history.loss.append(loss)
        history.lr.append(lr)
        history.gradient_norm.append(norm)
        history.tokens += int(batch[:2][-1].size)  # the targets stand second
        self.position += 1
        for hook in self.hooks:  # which may save the state
            hook(self.model, self.position - 1, gradient)

    def _unscaled(self, batch: Batch) -> tuple[float, Any]:
        """Return the loss and its gradient; repeat while the loss scale is too large."""
        before = None if self.rng is None else copy.deepcopy(self.rng.bit_generator.state)
        while True:
            scale = self.scale.value
            loss, gradient = self.gradient(batch, self.rng, scale)
            if not math.isfinite(loss) or self.scale.accepts(gradient):
                return loss, gradient if scale == 1.0 else gradient * (1.0 / scale)
            if self.rng is not None and before is not None:
                self.rng.bit_generator.state = before  # dropout draws the same masks again

    def _clipped(self, gradient: Any, limit: float) -> tuple[Any, float]:
        """Return the gradient with each group clipped by its own norm, and the norm of all."""
        if len(self.groups) == 1:
            return clip_by_global_norm(gradient, limit)
        parts = [clip_by_global_norm(gradient[place], limit)[0] for place in self.groups]
        return get_xp(gradient).concatenate(parts), global_norm(gradient)

    def stop_unless_finite(self, name: str, value: float) -> None:
        """Restore the parameters of the last finite step and raise if a number is not finite."""
        if not math.isfinite(value):
            self.packed.vector[...] = self.good
            raise Diverged(
                f"the {name} is {value} at step {self.position}: the model holds the parameters "
                f"from before; try a learning rate below {self.lr:g}, a longer warmup, or clip",
                self.history,
            )

    # ------------------------------------------------------------------- saved and resumed

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, as host arrays and plain values."""
        arrays = {name: to_host(array).copy() for name, array in self._arrays().items()}
        return {
            "arrays": arrays,
            **self._identity(),
            "position": self.position,
            "optimizer steps": self.optimizer.t,
            "generators": [copy.deepcopy(g.bit_generator.state) for g in self._generators()],
            "history": asdict(self.history),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that :meth:`state` returned for an equal run.

        Raises
        ------
        ValueError
            If the state is from a run with other Parameters, another optimizer, other generators or
            fewer steps; this run is then unchanged.
        """
        generators, arrays = self._generators(), self._arrays()
        kinds = [g.bit_generator.state["bit_generator"] for g in generators]
        expect_same_run(state, self._identity(), arrays, kinds, self.steps)
        for name, array in state["arrays"].items():
            arrays[name][...] = like(array, arrays[name])
        for generator, saved in zip(generators, state["generators"]):
            generator.bit_generator.state = saved
        self.optimizer.t = state["optimizer steps"]
        self.good[...] = self.packed.vector
        self.position = state["position"]
        self.history = History(**copy.deepcopy(dict(state["history"])))
        self.history.validation = [(int(step), loss) for step, loss in self.history.validation]

    def _arrays(self) -> dict[str, Any]:
        """Return the arrays that the rest of the run depends on, by name."""
        moving = {f"moving {i}": p.value for i, p in enumerate(moving_of(self.model))}
        own = {"vector": self.packed.vector, **self.optimizer.state()}
        return {**own, **moving, **self.scale.state()}

    def _identity(self) -> dict[str, Any]:
        """Return what a state must have in common with the run that it is loaded into."""
        parameters = {name: list(p.shape) for name, p in self.packed.parameters.items()}
        return {"optimizer": type(self.optimizer).__name__, "parameters": parameters}

    def _generators(self) -> list[Any]:
        """Return the generators of the run: the one of the batches and the one for dropout."""
        found = [getattr(self.sample, "rng", None), self.rng]
        return [generator for generator in found if generator is not None]


def _method_hook(model: Any) -> AfterStep | None:
    method = method_of(model)
    return None if method is None else method.after_step


def _rates(model: Any, places: Mapping[str, slice]) -> list[tuple[slice, float]]:
    """Return the places in the vector whose learning rate has a factor other than 1."""
    method = method_of(model)
    if method is None:
        return []
    factors = {name: float(method.lr_factor(name)) for name in places}
    return [(places[name], factor) for name, factor in factors.items() if factor != 1.0]


def _groups(model: Any, places: Mapping[str, slice]) -> list[slice]:
    """Return the places in the vector that are clipped apart: one, unless the model has groups."""
    groups = getattr(model, "groups", None)
    if groups is None:
        return [slice(None)]
    found = [[places[name] for name in names if name in places] for names in groups()]
    return [slice(of[0].start, of[-1].stop) for of in found if of]


def evaluate(model: Any, inputs: np.ndarray, targets: np.ndarray, batch_size: int = 32) -> float:
    """Return the mean loss over all targets, without dropout; nan if it is not finite.

    Parameters
    ----------
    model : model
    inputs, targets : host arrays, shape (N, T)
    batch_size : int
        Samples computed at a time; the result depends on it only by rounding.

    Returns
    -------
    float
        For a language model, in nats per token.

    Raises
    ------
    ValueError
        If all targets are ignored.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, evaluate
    >>> model = GPT(GPTConfig(256, 3, 1, 1, 8), np.random.default_rng(0))
    >>> loss = evaluate(model, np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))
    >>> abs(loss - math.log(256)) < 0.1  # an untrained model: all bytes are equally likely
    True
    """
    first = next(iter(model.parameters().values()))
    on_device = next(iter(first.arrays().values()))  # as stored, so that nothing is decoded
    count = int((targets != IGNORE_INDEX).sum())  # of all samples, so that the parts add up
    if count == 0:
        raise ValueError(f"targets of shape {targets.shape} hold no target to average over")
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
    """A progress bar of tqdm in tokens, or nothing."""

    def __init__(self, show: bool, steps: int) -> None:
        self.show, self.steps, self.tqdm = show, steps, None

    def __enter__(self) -> _bar:
        return self

    def update(self, loss: float, tokens: int) -> None:
        """Advance by one step of `tokens`."""
        if not self.show:
            return
        if self.tqdm is None:
            self.tqdm = progress_bar(total=self.steps * tokens, unit="tok", unit_scale=True)
        self.tqdm.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.tqdm.update(tokens)

    def __exit__(self, *args: object) -> None:
        if self.tqdm is not None:
            self.tqdm.close()
