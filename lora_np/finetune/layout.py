"""Samples laid out as a model takes them: packed, padded, or as hidden states that were kept.

Samples are packed into rows, one for each part of a step, so that little is computed for nothing.
If a method puts rows or keys before each text (prompt and prefix tuning), each sample has a row of
its own instead.

If only the top of the model is trained, what enters its lowest trained layer is the same in every
epoch. It is computed when a sample is first needed, and kept: T d numbers for a sample of T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_np.data import Sample, packed, padded
from lora_np.data.packing import packed_values
from lora_np.models.top import TopLayers, has_frozen_bottom
from lora_np.ops.loss import IGNORE_INDEX
from lora_np.train import Batch

MB = 2**20
TOGETHER = 512  # tokens of samples whose hidden states are computed together
FILLING = Sample(np.zeros(1, int), np.zeros(1, bool))  # a row of no target adds nothing


@dataclass
class Layout:
    """Makes batches of samples for a model.

    Attributes
    ----------
    model : model
        What is trained on the batches: a model, or its top.
    rows : int
        Into how many rows a batch is packed, if it has as many samples.
    least : int
        How many rows it has at least: one for each part of a step.
    hidden : KeptHidden or None
        Gives the top what enters it.
    padded : bool
        Whether each sample has a row of its own.
    """

    model: Any
    rows: int = 1
    least: int = 1
    hidden: KeptHidden | None = None
    padded: bool = False

    @classmethod
    def of(
        cls, adapted: Any, samples: Sequence[Sample], rows: int, least: int = 1, hidden_mb: int = 0
    ) -> Layout:
        """Return the layout for a model, or for its top if that alone is trained.

        Parameters
        ----------
        adapted : LanguageModel
        samples : sequence of Sample
            All that will ever be laid out.
        rows, least : int
            As the attributes.
        hidden_mb : int
            Most memory for hidden states; if all samples need more, none are kept.
        """
        start = getattr(adapted, "start", None)
        padded = start is not None and start.length > 0
        dropout = getattr(getattr(adapted, "config", None), "dropout", 0.0)  # in every block
        kept = has_frozen_bottom(adapted) and dropout == 0.0
        if kept and hidden_bytes(adapted, samples) <= hidden_mb * MB:
            top = TopLayers(adapted)
            return cls(top, rows, least, KeptHidden(top, samples), padded)
        return cls(adapted, rows, least, padded=padded)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return the batch of a step with these samples, for the loss of `model`."""
        return self.of_rows([*samples, *[FILLING] * (self.least - len(samples))], self.rows)

    def of_rows(self, samples: Sequence[Sample], rows: int) -> Batch:
        """Return the batch that holds these samples, packed into at most so many rows."""
        if self.padded:
            return padded(samples)
        tokens, targets, positions = packed(samples, rows)
        if self.hidden is None:
            return tokens, targets, positions
        return self.hidden(samples, rows), targets, positions


def hidden_bytes(adapted: Any, samples: Sequence[Sample]) -> int:
    """Return the bytes of the hidden states of samples."""
    head = adapted.head()
    return sum(map(len, samples)) * head.shape[1] * head.dtype.itemsize


class KeptHidden:
    """What enters the lowest trained layer, for every sample that was needed so far.

    Samples that follow one another are computed together, because short ones alone are slow: each
    reads all weights from memory. Which ones does not depend on the order in which they are needed,
    so that a run that continues finds the same bits.

    Parameters
    ----------
    top : TopLayers
    samples : sequence of Sample
    rows : array (1 + N, d), optional
        The attribute `rows` of an object for the same samples, all of which were needed.

    Attributes
    ----------
    rows : array (1 + N, d)
        The hidden states of one sample after the other; row 0 is that of padding.
    """

    def __init__(
        self, top: TopLayers, samples: Sequence[Sample], rows: np.ndarray | None = None
    ) -> None:
        self.top, self.start, self.waiting = top, dict[Sample, int](), dict[Sample, list[Sample]]()
        end, group, size = 1, list[Sample](), 0  # row 0 is that of padding
        for sample in dict.fromkeys(samples):
            if size + len(sample) > TOGETHER:
                group, size = [], 0
            group.append(sample)
            self.waiting[sample], self.start[sample] = group, end
            size, end = size + len(sample), end + len(sample)
        if rows is not None:
            self.rows, self.waiting = rows, {}
            return
        head = top.model.head()
        self.rows = np.empty((end, head.shape[1]), head.dtype)  # pages come with use
        self.rows[0] = 0.0

    def __call__(self, samples: Sequence[Sample], rows: int) -> np.ndarray:
        """Return the hidden states (B, N, d) of samples, laid out as their tokens are packed."""
        for sample in samples:
            if sample in self.waiting:
                self._compute(self.waiting[sample])
        places = [self._places(sample) for sample in samples]
        return self.rows[packed_values(samples, places, rows)]

    def _places(self, sample: Sample) -> np.ndarray:
        """Return where a sample's hidden states are kept; those of padding in row 0."""
        if sample not in self.start:
            return np.zeros(len(sample), int)
        return self.start[sample] + np.arange(len(sample))

    def _compute(self, group: Sequence[Sample]) -> None:
        """Keep the hidden states of samples that follow one another."""
        tokens = np.concatenate([sample.tokens for sample in group])[None]  # (1, N)
        positions = np.concatenate([np.arange(len(sample)) for sample in group])[None]
        first = self.start[group[0]]
        self.rows[first : first + tokens.size] = self.top.hidden(tokens, positions)[0]
        for sample in group:
            del self.waiting[sample]


def targets_in(samples: Sequence[Sample]) -> int:
    """Return how many tokens of the samples a model learns to write."""
    return sum(int((sample.targets != IGNORE_INDEX).sum()) for sample in samples)


def mean_loss(layout: Layout, samples: Sequence[Sample], number: int) -> float:
    """Return the mean loss over all targets of the samples, without dropout; nan if not finite.

    `number` samples are computed at a time.
    """
    model: Any = layout.model
    count, total = targets_in(samples), 0.0
    ordered = sorted(samples, key=len)  # little padding, where there is any
    for first in range(0, len(ordered), number):
        batch = layout.of_rows(ordered[first : first + number], 1)
        try:
            total += float(model.loss(*batch, count=count)[0])
        except FloatingPointError:
            return float("nan")
    return total
