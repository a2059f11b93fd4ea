"""The task of a real language model: the top of a loaded model is adapted to short answers.

Nothing is pretrained. By default the records are training questions of experiments/sql, whose test
splits stay untouched; a file of your own may take their place.

Only the last blocks are adapted, by the method at every rank and by full fine-tuning alike. So what
enters them is computed once for every sample and kept, and a trial is a model of these blocks
alone, whose inputs are the kept rows: it needs neither the blocks below nor the tokenizer.

A loss is a mean over the samples of a split. From n samples, its standard error is known to a part
of 1 / sqrt(2 (n - 1)): to 27 % at n = 8, and not at all at n = 1. Fewer than 8 are refused.

The scale of the adapter is 1 at every rank (lora_alpha = r). A seed draws the same batches at every
rank. Learning rates are chosen on the validation samples; the loss on the test samples is only
reported.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.crew import one_blas_thread, progress_bar
from lora_np.data import (
    DataError,
    Epochs,
    Sample,
    read_records,
    samples_of,
    split_records,
)
from lora_np.experiments.rank_sweep.method import Compared, adapted_model, config_of
from lora_np.experiments.rank_sweep.plan import Trial, check_numbers
from lora_np.experiments.runner import Arrays
from lora_np.experiments.sql.task import Sizes, questions, training_records
from lora_np.finetune.layout import KeptHidden, Layout, mean_loss, targets_in
from lora_np.layers import Linear
from lora_np.methods import MethodConfig, inject
from lora_np.methods.full import FullConfig
from lora_np.methods.targets import block_of
from lora_np.models import Llama, LlamaConfig
from lora_np.models.top import TopLayers
from lora_np.ops.rope import Llama3Scaling
from lora_np.parameters import Parameter
from lora_np.pretrained import Tokenizer, fingerprint, load_llm
from lora_np.rank import spectrum
from lora_np.tables import counted
from lora_np.train import fit

SPLITS = ("train", "validation", "test")
LONGEST = 512  # tokens of a sample: longer ones are dropped, and plain text is cut
HELD_OUT = 4  # samples to train on for each one to validate on, and for each one to test on
LEAST = 8  # samples of each split
FEWEST = HELD_OUT * LEAST  # samples to train on
PURPOSE = dict(zip(SPLITS, ("train on", "validate on", "test on"), strict=True))
TABLE, NORM = "model.embed_tokens.W", "model.norm.gamma"
FULL = Trial("full", None, 0, 1.0)


@dataclass(frozen=True)
class LlmSettings(Compared):
    """The settings of the task; they decide its results.

    Parameters
    ----------
    ranks : tuple of int
    seeds : int
        Number of seeds.
    target_modules : tuple of str, or str
        As for LoraConfig.
    model : str
        As for :func:`lora_np.pretrained.load_llm`.
    data : str, optional
        A file as :func:`lora_np.data.read_records` takes it, instead of questions for SQL.
    top_layers : int
        How many blocks are adapted, the last ones. Full fine-tuning trains all that is in them.
    samples : int
        To train on, if the file has as many; a quarter each, at least 8, to validate on and to test
        on.
    steps, batch_size : int
        Steps of every trial, samples in a step.
    lora_lr, full_lr : float
        Where the searches for a learning rate start. If full_lr is None, the sweep leaves out full
        fine-tuning.
    method : MethodConfig, optional
        The method to compare at every rank; by default LoRA on `target_modules`.

    Examples
    --------
    >>> from lora_np.experiments.rank_sweep import LlmSettings
    >>> settings = LlmSettings(ranks=(1, 8), top_layers=4)
    >>> settings.task, settings.model, settings.samples
    ('llm', 'smollm2', 160)
    """

    ranks: tuple[int, ...] = (1, 4, 16, 64)
    seeds: int = 2
    target_modules: tuple[str, ...] | str = "all-linear"
    model: str = "smollm2"
    data: str | None = None
    top_layers: int = 6
    samples: int = 160
    steps: int = 40
    batch_size: int = 8
    lora_lr: float = 8e-4
    full_lr: float | None = 4e-4
    method: MethodConfig | None = field(default=None, repr=False)

    task = "llm"
    device = "cpu"


class LlmTask:
    """A loaded model and the samples to adapt it to, as plain arrays for the trials.

    Parameters
    ----------
    settings : LlmSettings
    base : str or Path, optional
        Refused: the settings name the model.
    """

    given_sha256: str | None = None

    def __init__(self, settings: LlmSettings, base: str | Path | None = None) -> None:
        s = self.settings = settings
        if base is not None:
            raise ValueError(f"base {base}: the llm task adapts the model that --model names")
        counts = ("steps", "batch_size", "samples", "seeds", "top_layers")
        check_numbers(s, counts, ("lora_lr", "full_lr")[: 1 if s.full_lr is None else 2])
        if s.samples < FEWEST:
            raise ValueError(
                f"samples = {s.samples}, expected at least {FEWEST}, a quarter of which "
                "is validated on"
            )
        llm = load_llm(s.model)
        self.base, blocks = llm.model, llm.model.config.n_layer
        if s.top_layers > blocks:
            raise ValueError(f"top_layers = {s.top_layers}: {s.model} has {blocks} blocks")
        self.first = blocks - s.top_layers
        self.parts = _parts(s, llm.tokenizer, min(LONGEST, self.base.block_size))
        top = _top_of(self.base.config, s.top_layers, self._weights())
        for r in s.ranks:  # report a rank or target that does not fit before anything is trained
            TopLayers(inject(top, config_of(s).of_rank(r), np.random.default_rng(0)))

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on besides the settings: the model and the samples."""
        digest = hashlib.sha256()
        for sample in self._samples():
            digest.update(sample.tokens.tobytes() + sample.labelled.tobytes())
        return {
            "model_fingerprint": fingerprint(self.base),
            "samples_sha256": digest.hexdigest()[:16],
        }

    def prepare(self, folder: Path, progress: bool) -> dict[str, np.ndarray]:
        """Return the arrays that trials need: the top, the samples, and what enters the top."""
        samples = self._samples()
        with one_blas_thread():  # the last bits depend on the number of threads
            hidden = _hidden(self.base, self.first, samples, progress)
        about = json.dumps(asdict(self.base.config)).encode()
        return {
            **self._weights(),
            "config": np.frombuffer(about, np.uint8),
            "hidden": hidden,
            "tokens": np.concatenate([s.tokens for s in samples]),
            "labelled": np.concatenate([s.labelled for s in samples]),
            "length": np.array([len(s) for s in samples]),
            "part": np.repeat(np.arange(len(SPLITS)), [len(self.parts[n]) for n in SPLITS]),
        }

    def baseline(self, arrays: Arrays) -> dict[str, float]:
        """Return the losses of the base on the held-out samples."""
        s, parts = self.settings, _samples_in(arrays)
        with one_blas_thread():
            losses = _losses(_layout(s, arrays, FULL, parts), parts, s.batch_size)
        return {f"base_{name}_loss": losses[f"{name}_loss"] for name in SPLITS[1:]}

    def facts(self, folder: Path, arrays: Arrays) -> dict[str, Any]:
        """Return which blocks were adapted, and how many samples and learned tokens there are."""
        blocks = f"the last {self.settings.top_layers} of {self.base.config.n_layer} blocks"
        return {
            "base_made": f"{self.settings.model}, {blocks} adapted",
            "samples": {name: len(part) for name, part in self.parts.items()},
            "learned_tokens": {name: targets_in(part) for name, part in self.parts.items()},
        }

    def change_spectrum(self, arrays: Arrays, trained: Arrays) -> list[dict[str, Any]]:
        """Return the spectrum of every linear layer's change under full fine-tuning."""
        top = _top_of(self.base.config, self.settings.top_layers, arrays)
        names = [f"{path}.W" for path, m in top.modules().items() if isinstance(m, Linear)]
        return [
            {
                "name": _renumbered(name, self.first),
                **spectrum(trained[name] - arrays[name]).as_dict(),
            }
            for name in names
        ]

    def _samples(self) -> list[Sample]:
        return [sample for name in SPLITS for sample in self.parts[name]]

    def _weights(self) -> dict[str, np.ndarray]:
        """Return the weights of the top: its blocks numbered from 0, the head as the table."""
        weights = {TABLE: self.base.head().value}
        for name, p in self.base.parameters().items():
            block = block_of(name)
            if name == NORM or (block is not None and block >= self.first):
                weights[_renumbered(name, -self.first)] = p.value
        return weights


def run_llm_trial(
    settings: LlmSettings, arrays: Arrays, trial: Trial
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Adapt the top once; return the losses and the trained arrays. Runs in any process."""
    s, start = settings, time.perf_counter()
    parts = _samples_in(arrays)
    batches = Epochs(parts["train"], s.batch_size, trial.seed)
    with one_blas_thread():
        layout, step = _layout(s, arrays, trial, parts), count()
        fit(
            layout.model,
            lambda: layout(batches.samples(next(step))),
            steps=s.steps,
            lr=trial.lr,
            rng=np.random.default_rng([trial.seed, 2]),
            warmup=s.steps // 10,
            options={"weight_decay": 0.0},
        )
        losses = _losses(layout, parts, s.batch_size)
    trained = {name: p.value for name, p in layout.model.parameters().items() if p.trainable}
    size = sum(array.size for array in trained.values())
    seconds = round(time.perf_counter() - start, 3)
    return {"trainable_parameters": size, **losses, "seconds": seconds}, trained


def _samples_in(arrays: Arrays) -> dict[str, list[Sample]]:
    """Return the samples of every split, in the order in which LlmTask.prepare wrote them."""
    parts: dict[str, list[Sample]] = {name: [] for name in SPLITS}
    ends = np.cumsum(arrays["length"])
    for part, length, end in zip(arrays["part"], arrays["length"], ends, strict=True):
        here = slice(end - length, end)
        parts[SPLITS[part]].append(Sample(arrays["tokens"][here], arrays["labelled"][here]))
    return parts


def _layout(s: LlmSettings, arrays: Arrays, trial: Trial, parts: dict[str, list[Sample]]) -> Layout:
    """Return the top that a trial trains, laid out on the hidden states that were kept."""
    top = TopLayers(_adapted(s, arrays, trial))
    samples = [sample for part in parts.values() for sample in part]
    return Layout(top, hidden=KeptHidden(top, samples, arrays["hidden"]))


def _losses(layout: Layout, parts: dict[str, list[Sample]], batch_size: int) -> dict[str, float]:
    """Return the mean loss over the learned tokens of each split, as ``NAME_loss``.

    Of the samples to train on, only the first count: as many as there are to validate on.
    """
    most = len(parts["validation"])
    return {f"{n}_loss": mean_loss(layout, part[:most], batch_size) for n, part in parts.items()}


def _parts(s: LlmSettings, tokenizer: Tokenizer, longest: int) -> dict[str, list[Sample]]:
    """Return the samples of every split; equal prompts are in one split."""
    if s.data is None:
        number = s.samples + 2 * (s.samples // HELD_OUT) + 1
        asked = questions(0, Sizes(train=number, validation=0, test=0))["train"]
        records = training_records(asked)
    else:
        records = read_records(s.data)
    train, held, _ = split_records(records, 2 / (HELD_OUT + 2), seed=0)
    validation, test, _ = split_records(held, 0.5, seed=0)
    parts = {}
    for name, part in zip(SPLITS, (train, validation, test), strict=True):
        found, _ = samples_of(part, tokenizer, longest=longest, long="drop")
        found = [sample for sample in found if targets_in([sample])]
        parts[name] = found[: s.samples if name == "train" else s.samples // HELD_OUT]
        if len(parts[name]) < LEAST:
            raise DataError(
                f"{s.data} leaves {counted(len(parts[name]), 'sample')} to {PURPOSE[name]}, "
                f"expected at least {LEAST}: use about {LEAST * (HELD_OUT + 2)} records or more"
            )
    return parts


def _with_bar(samples: Sequence[Sample], progress: bool) -> Iterable[Sample]:
    if not progress:
        return samples
    return progress_bar(samples, "hidden states", unit=" samples")


def _hidden(base: Llama, first: int, samples: Sequence[Sample], progress: bool) -> np.ndarray:
    """Return what enters block `first` at every token, (1 + N, d); row 0 is that of padding."""
    above = FullConfig(layers_to_transform=range(first, base.config.n_layer))
    kept = KeptHidden(TopLayers(inject(base, above, np.random.default_rng(0))), samples)
    for sample in _with_bar(samples, progress):
        kept([sample], 1)
    return kept.rows


def _top_of(config: LlamaConfig, blocks: int, weights: Arrays) -> Llama:
    """Return a model of the last blocks; its Parameters are the arrays themselves."""
    top = replace(config, n_layer=blocks, tied=True)
    return Llama.of(top, lambda name, shape: Parameter(weights[name]))


def _adapted(s: LlmSettings, arrays: Arrays, trial: Trial) -> Any:
    """Return the top that a trial trains."""
    about = json.loads(arrays["config"].tobytes())
    scaling = about.pop("rope_scaling")
    scaling = None if scaling is None else Llama3Scaling(**scaling)
    top = _top_of(LlamaConfig(**about, rope_scaling=scaling), s.top_layers, arrays)
    if trial.method == "full":  # its table stays as it is
        every = FullConfig(layers_to_transform=range(s.top_layers))
        return inject(top, every, np.random.default_rng(0))
    return adapted_model(top, trial, s)


def _renumbered(name: str, by: int) -> str:
    """Return the name of a Parameter with its block's number changed."""
    block = block_of(name)
    return name if block is None else name.replace(f".{block}.", f".{block + by}.", 1)
