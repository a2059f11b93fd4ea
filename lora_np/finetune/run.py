"""Fine-tuning in memory: samples in, the adapted model with the lowest validation loss out.

A run is made of parts that exist: a method, batches of packed samples, and a
:class:`~lora_np.train.Trainer`. What this file adds is the choice of the best weights, and one
state from which all of that continues bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.backend import to_host
from lora_np.crew import can_fork, cores, one_blas_thread
from lora_np.data import DataError, Epochs, Sample
from lora_np.finetune.adapt import adapted_by
from lora_np.finetune.layout import Layout, mean_loss, targets_in
from lora_np.finetune.settings import Settings
from lora_np.finetune.terminal import TrainingBar
from lora_np.train import Batch, Diverged, History, Trainer
from lora_np.train.equal import lowest

BEST = "best "  # before the names of the arrays of the best weights, in a state
After = Callable[["Training"], None]


@dataclass(frozen=True)
class Result:
    """What a fine-tuning run leaves.

    Attributes
    ----------
    model : LanguageModel
        The adapted model, which shares the arrays of the base, with the weights of `best_step`.
    history : History
        ``history.validation`` holds (steps done, loss), with the loss before training at 0 steps.
    best_step : int
        The number of steps after which the weights were best on the validation samples; the last
        step without validation. A later step counts as better only if its loss is lower by more
        than rounding.
    diverged : str or None
        The message, if the loss became infinite or nan. The model is then the best one from before.
    """

    model: Any
    history: History
    best_step: int
    diverged: str | None


def train_adapter(
    model: Any,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    settings: Settings,
    *,
    after: After | None = None,
    progress: bool = False,
) -> Result:
    """Fine-tune a model on samples, in memory: no file is read or written.

    Parameters
    ----------
    model : LanguageModel
        The base, which stays as it is. If it is adapted already, its adapters are trained on, in
        place, and the settings must describe no others.
    train, validation : sequence of Sample
        From :func:`lora_np.data.samples_of`, for example. Without validation samples the last
        weights are kept, else the best.
    settings : Settings
        `method`, `epochs`, `lr` and so on. Those that name files are not used. ``jobs=1`` computes
        everything in this process; the default takes all cores.
    after : callable, optional
        ``after(training)`` is called after every step, with the :class:`Training`; an error that it
        raises ends the run.
    progress : bool
        Show a bar on standard error with the loss, tokens per second and the time left. Off a
        screen, the logger ``lora_np`` gets a line with them after every epoch.

    Returns
    -------
    Result
        ``result.model`` generates, merges, and is saved by :func:`lora_np.save_adapter`.

    Raises
    ------
    ValueError
        If there is nothing to train on, or the settings do not fit the model.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.data import Sample
    >>> from lora_np.finetune import Settings, train_adapter
    >>> config = LlamaConfig(9, 8, n_layer=2, n_head=1, n_kv_head=1, d_model=8, d_hidden=12)
    >>> model = Llama(config, np.random.default_rng(0))
    >>> train = [Sample([1, 2, 3, 4], [0, 0, 1, 1]), Sample([1, 5, 6], [0, 0, 1])]
    >>> settings = Settings(method="full", epochs=30, lr=0.02, jobs=1)  # random: full training
    >>> result = train_adapter(model, train, train, settings)
    >>> [(step, round(loss)) for step, loss in result.history.validation[::30]]
    [(0, 2), (30, 0)]
    >>> result.model.generate(np.array([1, 5]), 1, temperature=0).tolist()
    [1, 5, 6]
    """
    training = Training(model, train, validation, settings)
    if not progress:
        return training.run(after)
    with TrainingBar(training, after) as bar:
        return training.run(bar)


class Training:
    """A fine-tuning run that can be saved after any step, and continued bit for bit.

    Parameters
    ----------
    model, train, validation, settings
        As for :func:`train_adapter`.

    Attributes
    ----------
    adapted : LanguageModel
        What is trained.
    layout : lora_np.finetune.layout.Layout
    trainer : lora_np.train.Trainer
    epochs : lora_np.data.Epochs
    best_step : int
    """

    def __init__(
        self, model: Any, train: Sequence[Sample], validation: Sequence[Sample], settings: Settings
    ) -> None:
        for what, samples in (("train", train), ("validation", validation)):
            _expect_targets(what, samples)
        s, self.settings, self.jobs = settings, settings, jobs_of(settings)
        self.train, self.validation = list(train), list(validation)
        steps = Epochs(self.train, s.batch_size, s.seed).steps(s.epochs)
        self.adapted = adapted_by(s, model, steps)
        _expect_room(self.adapted, [*self.train, *self.validation])
        rows = min(self.jobs * s.accumulate, s.batch_size)
        every = [*self.train, *self.validation]
        self.layout = Layout.of(self.adapted, every, rows, s.accumulate, s.hidden_mb)
        by_length = self.layout.padded
        self.epochs = Epochs(self.train, s.batch_size, s.seed, by_length, s.together)
        self.trainer = Trainer(
            self.layout.model,
            self._batch,
            steps=steps,
            lr=s.lr,
            rng=np.random.default_rng([s.seed, 2]),
            after_step=self._after_step,
            schedule=s.schedule,
            warmup=s.warmup,
            clip=s.clip_norm,
            accumulate=s.accumulate,
            processes=self.jobs,
            options={"weight_decay": s.weight_decay},
        )
        self.best_step, self._best = 0, self._weights()
        self._after: After | None = None

    @property
    def history(self) -> History:
        """The trainer's history."""
        return self.trainer.history

    @property
    def steps_in_epoch(self) -> int:
        """The number of steps in which every sample is seen once."""
        return self.epochs.steps(1)

    def run(self, after: After | None = None) -> Result:
        """Take all steps that are left; see :func:`train_adapter`."""
        self._after, diverged = after, None
        alone = one_blas_thread() if self.jobs > 1 else nullcontext()  # the same bits in any part
        quiet = np.errstate(over="ignore", invalid="ignore")
        with alone, quiet:
            if self.validation and not self.history.validation:
                self.history.validation.append((0, self._measure()))
            try:
                self.trainer.run()
            except Diverged as error:
                diverged = str(error)
        if self.validation:
            self._set_weights(self._best)
        else:
            self.best_step = self.trainer.position
        return Result(self.adapted, self.history, self.best_step, diverged)

    def _batch(self) -> Batch:
        return self.layout(self.epochs.samples(self.trainer.position))

    def _after_step(self, *step: Any) -> None:
        done, every = self.trainer.position, self.settings.validate_every
        ends = done % self.steps_in_epoch == 0 or (every > 0 and done % every == 0)
        if self.validation and ends:
            losses = dict(self.history.validation)
            losses[done] = self._measure()
            self.history.validation.append((done, losses[done]))
            pair = {step: losses[step] for step in (self.best_step, done)}
            if lowest(pair, min(losses[0], 1e300)) == [done]:
                self.best_step, self._best = done, self._weights()
        if self._after is not None:
            self._after(self)

    def _measure(self) -> float:
        """Return the validation loss, infinite if it is not finite."""
        number = max(
            1, self.settings.batch_size // self.layout.rows
        )  # as many as in a row of a step
        loss = mean_loss(self.layout, self.validation, number)
        return loss if math.isfinite(loss) else math.inf

    # ------------------------------------------------------------------------- the state

    def _weights(self) -> dict[str, np.ndarray]:
        """Return copies of what changes in training: the trained vector, and what moves with it."""
        arrays = self._changing()
        return {name: to_host(array).copy() for name, array in arrays.items()}

    def _set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        for name, array in self._changing().items():
            array[...] = weights[name]

    def _changing(self) -> dict[str, Any]:
        moving = {f"moving {i}": p.value for i, p in enumerate(self.adapted.moving())}
        return {"vector": self.trainer.packed.vector, **moving}

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; ``save_state`` writes it to a file."""
        state = self.trainer.state()
        best = {f"{BEST}{name}": array for name, array in self._best.items()}
        state["arrays"] = {**state["arrays"], **best}
        return {**state, "best step": self.best_step}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of an equal run, on the same samples with equal `jobs`.

        Raises
        ------
        ValueError
            If the state is of another run; see ``Trainer.load``.
        """
        arrays = dict(state["arrays"])
        best = {name: arrays.pop(f"{BEST}{name}", None) for name in self._best}
        if None in (array if array is None else 0 for array in best.values()):
            raise ValueError("the state is not that of a fine-tuning run")
        self.trainer.load({**state, "arrays": arrays})
        self.best_step = int(state["best step"])
        self._best = copy.deepcopy(best)


def jobs_of(settings: Settings) -> int:
    """Return the number of processes: that of the settings, or one per core where forks exist."""
    return settings.jobs or (cores() if can_fork() else 1)


def _expect_room(adapted: Any, samples: Sequence[Sample]) -> None:
    before = getattr(getattr(adapted, "start", None), "length", 0)
    longest, room = max(map(len, samples)), adapted.block_size - before
    if longest > room:
        rows = f", less {before} rows before the text" if before else ""
        raise DataError(
            f"a sample has {longest} tokens, but the model's context has {adapted.block_size}"
            f"{rows}: set longest to {room}, and long to drop or truncate"
        )


def _expect_targets(what: str, samples: Sequence[Sample]) -> None:
    if what == "train" and not samples:
        raise DataError("there is no sample to train on")
    for i, sample in enumerate(samples):
        if not targets_in([sample]):
            raise DataError(
                f"{what} sample {i} has no labelled token after its first: nothing to learn"
            )
