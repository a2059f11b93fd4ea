"""The text task: a GPT is pretrained on one text and adapted to another.

By default, the first text is English about Python (the language reference) and the second is Python
(the source of the standard library): the model adapts to a language that it has read about.
Learning rates are chosen on the validation slice of the second text; the loss on the test slice is
only reported.

The scale of the adapter is 1 at every rank (lora_alpha = r), so that the effect of the rank is not
confounded with that of the scale. A seed draws the same batches at every rank, so that differences
between ranks are paired.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.backend import to_device, to_host
from lora_np.crew import one_blas_thread
from lora_np.data import (
    VOCAB_SIZE,
    Batches,
    DataError,
    Splits,
    encode,
    language_reference,
    read_text,
    split,
    standard_library,
    windows,
)
from lora_np.experiments.folder import PRETRAINING, SweepError
from lora_np.experiments.rank_sweep.method import Compared, adapted_model, config_of
from lora_np.experiments.rank_sweep.plan import Trial, check_numbers
from lora_np.experiments.runner import Arrays
from lora_np.files import CheckpointError, load_arrays, load_json, save_arrays, save_json
from lora_np.layers import Linear, copy_model
from lora_np.methods import MethodConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.rank import spectrum
from lora_np.train import Diverged, Trainer, continue_from, evaluate, fill, fit

WITHOUT = "without --base, a base is pretrained"
TEXTS = ("adapt", "pretrain")  # arrays that are no Parameters of the base


@dataclass(frozen=True)
class TextSettings(Compared):
    """The settings of the text task; they decide its results.

    Parameters
    ----------
    ranks : tuple of int
    seeds : int
        Number of seeds.
    target_modules : tuple of str, or str
        As for LoraConfig.
    pretrain_text, adapt_text : str, optional
        Files to read instead of the texts that come with Python.
    pretrain_steps, steps : int
        Steps of pretraining, and of every adaptation.
    batch_size, block_size : int
        Windows per batch, tokens per window.
    d_model, n_layer, n_head : int
        Sizes of the GPT.
    pretrain_lr, lora_lr, full_lr : float
        Learning rates. The searches start at the last two. If full_lr is None, the sweep leaves
        out full fine-tuning.
    windows : int
        Number of windows of each held-out slice to evaluate.
    device : {"cpu", "cuda"}
    method : MethodConfig, optional
        The method to compare at every rank; by default LoRA on `target_modules`.

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep import TextSettings
    >>> settings = TextSettings(ranks=(1, 8), d_model=32, n_head=2)
    >>> settings.task, settings.gpt().d_model, settings.gpt().vocab_size
    ('text', 32, 256)
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seeds: int = 3
    target_modules: tuple[str, ...] | str = "all-linear"
    pretrain_text: str | None = None
    adapt_text: str | None = None
    pretrain_steps: int = 700
    steps: int = 100
    batch_size: int = 16
    block_size: int = 64
    d_model: int = 64
    n_layer: int = 2
    n_head: int = 4
    pretrain_lr: float = 5e-3
    lora_lr: float = 2e-2
    full_lr: float | None = 4e-3
    windows: int = 128
    device: str = "cpu"
    method: MethodConfig | None = field(default=None, repr=False)

    task = "text"

    def gpt(self) -> GPTConfig:
        """Return the GPT's configuration."""
        return GPTConfig(VOCAB_SIZE, self.block_size, self.n_layer, self.n_head, self.d_model)


class TextTask:
    """The base, pretrained once, and the text to adapt to, as plain arrays for the trials.

    Parameters
    ----------
    settings : TextSettings
    base : str or Path, optional
        Folder of a sweep whose base is copied; by default a base is pretrained.
    """

    def __init__(self, settings: TextSettings, base: str | Path | None = None) -> None:
        self.settings = settings
        s = settings
        counts = ("steps", "pretrain_steps", "batch_size", "windows", "seeds")
        rates = ("pretrain_lr", "lora_lr", "full_lr")
        check_numbers(s, counts, rates if s.full_lr is not None else rates[:-1])
        blank = GPT(s.gpt(), np.random.default_rng(0))
        for r in s.ranks:  # report a rank or target that does not fit before anything is trained
            inject(blank, config_of(s).of_rank(r), np.random.default_rng(0))
        reference = read_text(s.pretrain_text) if s.pretrain_text else language_reference()
        source = read_text(s.adapt_text) if s.adapt_text else standard_library()
        self.pretraining, self.adaptation = encode(reference), encode(source)
        for text, tokens in (("pretraining", self.pretraining), ("adaptation", self.adaptation)):
            for name, part in split(tokens)._asdict().items():
                try:
                    windows(part, s.block_size, 1)
                except DataError as error:  # and a text that is too short
                    raise DataError(f"the {text} text's {name} slice: {error}") from None
        self.source = None if base is None else Path(base)
        self.given = None if self.source is None else self._read_base(self.source)
        self.given_sha256 = None if self.given is None else _sha256(*self.given.values())

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on besides the settings: the two texts."""
        return {
            "pretrain_text_sha256": _sha256(self.pretraining),
            "adapt_text_sha256": _sha256(self.adaptation),
        }

    def prepare(self, folder: Path, progress: bool) -> dict[str, np.ndarray]:
        """Return the arrays that trials need: the base, and the text to adapt it to.

        The base is the one in the folder, a copy of the given one, or pretrained. Pretraining that
        was stopped continues from the state that it saved in the folder.
        """
        state = folder / PRETRAINING
        try:
            base = self._read_base(folder)
        except SweepError:
            base, made = self.given, f"copied from {self.source}"
            if base is None:
                base, made = self._pretrain(state, progress), "here"
            self._store_base(folder, base, made)
        state.unlink(missing_ok=True)
        return {**base, "adapt": self.adaptation}

    def baseline(self, arrays: Arrays) -> dict[str, float]:
        """Return the losses of the base on the text to adapt it to."""
        held_out = {n: t for n, t in split(arrays["adapt"])._asdict().items() if n != "train"}
        with one_blas_thread():
            losses = losses_on(rebuild_base(self.settings, arrays), self.settings, held_out)
        return {f"base_{name}": loss for name, loss in losses.items()}

    def facts(self, folder: Path, arrays: Arrays) -> dict[str, Any]:
        """Return the hash of the base, and where the base came from."""
        about = load_json(folder / "base.json")
        return {"base_made": about["made"], "base_sha256": about["sha256"]}

    def change_spectrum(self, arrays: Arrays, trained: Arrays) -> list[dict[str, Any]]:
        """Return the spectrum of every linear layer's change under full fine-tuning."""
        model = GPT(self.settings.gpt(), np.random.default_rng(0))
        names = [f"{path}.W" for path, m in model.modules().items() if isinstance(m, Linear)]
        return [
            {"name": name, **spectrum(trained[name] - arrays[name]).as_dict()} for name in names
        ]

    def _base_key(self) -> dict[str, Any]:
        names = ("pretrain_steps", "batch_size", "block_size", "d_model", "n_layer", "n_head")
        kept = {name: getattr(self.settings, name) for name in (*names, "pretrain_lr", "device")}
        return {**kept, "pretrain_text_sha256": _sha256(self.pretraining)}

    def _store_base(self, folder: Path, base: Arrays, made: str) -> None:
        """Write the base, and then its key: a key never describes another base."""
        (folder / "base.json").unlink(missing_ok=True)
        save_arrays(folder / "base.npz", base)
        key, total = self._base_key(), _sha256(*base.values())
        save_json(folder / "base.json", {"key": key, "sha256": total, "made": made})

    def _read_base(self, folder: Path) -> dict[str, np.ndarray]:
        """Return the base in `folder`; raise SweepError if it is damaged or of other settings."""
        try:
            about, base = load_json(folder / "base.json"), load_arrays(folder / "base.npz")
            key, total, _ = dict(about["key"]), about["sha256"], about["made"]
        except CheckpointError as error:
            raise SweepError(f"{folder} has no base: {error}") from None
        except (KeyError, TypeError, ValueError):
            raise SweepError(f"{folder} has no base: base.json is not that of a sweep") from None
        for name, value in self._base_key().items():
            if key.get(name) != value:
                how = f"{name} {key.get(name)}, here {value}"
                raise SweepError(f"{folder} has a base of other settings ({how}): {WITHOUT}")
        if total != _sha256(*base.values()):
            raise SweepError(
                f"{folder} has a base.npz that has changed since it was written: {WITHOUT}"
            )
        return base

    def _pretrain(self, state: Path, progress: bool) -> dict[str, np.ndarray]:
        trainer = self._trainer(state)
        try:
            with one_blas_thread():
                trainer.run(progress=progress)
        except Diverged as error:
            raise SweepError(f"pretraining: {error}; --pretrain-lr sets it") from None
        return {name: to_host(p.value) for name, p in trainer.model.parameters().items()}

    def _trainer(self, state: Path) -> Trainer:
        """Return the pretraining, at the state that the file `state` holds and will hold."""
        s, rng = self.settings, np.random.default_rng(0)
        model = copy_model(GPT(s.gpt(), rng), device=s.device)
        trainer = Trainer(
            model,
            DeviceBatches(s, split(self.pretraining).train, rng),
            steps=s.pretrain_steps,
            lr=s.pretrain_lr,
            warmup=min(50, s.pretrain_steps // 4),
            threads=2,  # fixed: the number of cores must not change the result
        )
        continue_from(state, trainer, self._base_key())
        return trainer


def run_text_trial(
    settings: TextSettings, arrays: Arrays, trial: Trial
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Adapt the base once; return the losses and the trained arrays. Runs in any process."""
    s, start = settings, time.perf_counter()
    with one_blas_thread():
        base = rebuild_base(s, arrays)
        model = adapted_model(base, trial, s)
        slices: Splits = split(arrays["adapt"])
        adapt(model, s, slices.train, trial.seed, trial.lr)
        losses = losses_on(model, s, slices._asdict())
    trained = {n: to_host(p.value) for n, p in model.parameters().items() if p.trainable}
    count = sum(array.size for array in trained.values())
    seconds = round(time.perf_counter() - start, 3)
    return {"trainable_parameters": count, **losses, "seconds": seconds}, trained


def adapt(model: Any, settings: TextSettings, tokens: Any, seed: int, lr: float) -> None:
    """Train the model in place on the batches that this seed draws from a text.

    The seed also draws what a method draws at every step, and its dropout.
    """
    fit(
        model,
        DeviceBatches(settings, tokens, np.random.default_rng([seed, 0])),
        steps=settings.steps,
        lr=lr,
        rng=np.random.default_rng([seed, 2]),
        warmup=settings.steps // 10,
        options={"weight_decay": 0.0},
    )


def losses_on(model: Any, settings: TextSettings, texts: Mapping[str, Any]) -> dict[str, float]:
    """Return the model's loss on windows of each text, as ``NAME_loss``."""
    s = settings
    return {
        f"{name}_loss": evaluate(model, *windows(tokens, s.block_size, s.windows))
        for name, tokens in texts.items()
    }


def rebuild_base(settings: TextSettings, arrays: Arrays) -> GPT:
    """Return the pretrained GPT; on the host its Parameters are the arrays themselves."""
    model = GPT(settings.gpt(), np.random.default_rng(0))
    base = {name: array for name, array in arrays.items() if name not in TEXTS}
    fill(model, base, "base.npz")  # checks names, shapes and numbers
    if settings.device != "cpu":
        return copy_model(model, device=settings.device)
    for name, p in model.parameters().items():  # workers that map the arrays share them
        p.value = base[name].astype(p.dtype, copy=False)
    return model


class DeviceBatches(Batches):
    """Random windows of a text, on the device of the settings."""

    def __init__(self, settings: TextSettings, tokens: Any, rng: np.random.Generator) -> None:
        super().__init__(tokens, settings.batch_size, settings.block_size, rng)
        self.device = settings.device

    def __call__(self) -> tuple[Any, Any]:
        """Return the next batch, (B, T) each."""
        x, y = super().__call__()
        return to_device(x, self.device), to_device(y, self.device)


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
