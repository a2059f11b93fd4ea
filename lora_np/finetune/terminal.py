"""What the person in front of the terminal sees of a run, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from lora_np.crew import progress_bar


class TrainingBar:
    """A bar with the loss, tokens per second and the time left; off a screen, a line per epoch.

    Parameters
    ----------
    training : lora_np.finetune.Training
        The run, which may have begun in another process.
    after : callable, optional
        Called with the run after each step, too.
    """

    def __init__(self, training: Any, after: Callable[[Any], None] | None = None) -> None:
        self.after, self.is_screen = after, sys.stderr.isatty()
        self.epochs, self.bar = training.epochs, None
        epoch, step = divmod(training.trainer.position, training.steps_in_epoch)
        in_epoch = self._tokens(range(training.steps_in_epoch))
        first = epoch * training.steps_in_epoch  # of the epoch that was begun
        self.began, self.total = time.perf_counter(), training.settings.epochs * in_epoch
        self.first = self.done = epoch * in_epoch + self._tokens(range(first, first + step))

    def _tokens(self, steps: Iterable[int]) -> int:
        return sum(len(sample) for step in steps for sample in self.epochs.samples(step))

    def __enter__(self) -> TrainingBar:
        if self.is_screen:
            self.bar = progress_bar(
                total=self.total, initial=self.first, unit="tok", unit_scale=True
            )
        return self

    def __call__(self, training: Any) -> None:
        """Show one more step."""
        done, history = training.trainer.position, training.history
        tokens = self._tokens([done - 1])
        self.done += tokens
        if self.bar is not None:
            self.bar.set_postfix_str(_losses(history), refresh=False)
            self.bar.update(tokens)
        elif done % training.steps_in_epoch == 0:
            seconds = time.perf_counter() - self.began
            rate = (self.done - self.first) / seconds
            left = (self.total - self.done) / rate
            print(
                f"epoch {done // training.steps_in_epoch} of {training.settings.epochs}: "
                f"{_losses(history)}, {rate:.0f} tokens a second, {spell(left)} left",
                file=sys.stderr,
            )
        if self.after is not None:
            self.after(training)

    def __exit__(self, *args: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _losses(history: Any) -> str:
    validation = f", validation {history.validation[-1][1]:.3f}" if history.validation else ""
    return f"loss {history.loss[-1]:.3f}{validation}"


def spell(seconds: float) -> str:
    """Return a length of time as people say it.

    Examples
    --------
    >>> from lora_np.finetune.terminal import spell
    >>> spell(3.2), spell(200)
    ('3 seconds', '3.3 minutes')
    """
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.1f} minutes"
