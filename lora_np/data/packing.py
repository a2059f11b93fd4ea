"""Samples of unequal lengths, laid into batches without one of them seeing another.

A sample is a sequence of tokens, of which the model learns to write some: the answer, not the
question. The target at position t is the next token of the same sample where that token is
labelled, and IGNORE_INDEX elsewhere. Padding every sample to the longest would waste most of a
batch. Packing lays the samples end to end instead::

    samples      a b c d    e f g    h i
    tokens       a b c d    e f g h i 0     two rows; 0 is padding
    targets      b c d -    f g - i - -     all tokens labelled; - is IGNORE_INDEX
    positions    0 1 2 3    0 1 2 0 1 0     a position 0 starts a new sample

Positions restart with each sample, here at 0, and a model that takes them lets no sample attend to
the one before it. Padding at the end of a row is like one more sample, without targets. It is never
recognised by its token: many models use their end marker as padding, and the end marker is a token
that the model must learn to write.

Samples that begin alike, with one system prompt for example, share the tokens of their common
start. The positions of such a sample restart at the number of tokens that it shares with the last
sample that began at 0::

    samples      a b c d    a b c e f
    tokens       a b c e f d
    positions    0 1 2 3 4 3                d attends to a b c d, as it does alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora_np.data.families import common_start, families
from lora_np.data.texts import DataError
from lora_np.ops.loss import IGNORE_INDEX

BATCHES_SORTED = 50  # batches whose samples are sorted by length together


@dataclass(frozen=True, eq=False)
class Sample:
    """A sequence of tokens, and which of them the model should learn to write.

    Parameters
    ----------
    tokens : integers, shape (T,)
        Kept as int32. At least one.
    labelled : bools, shape (T,)
        Whether the model should learn to write the token. The first token follows nothing, so its
        label has no effect.

    Raises
    ------
    DataError
        If the shapes differ, or there is no token.

    Examples
    --------
    >>> from lora_np.data import Sample
    >>> question_and_answer = Sample([5, 6, 7, 2], [False, False, True, True])
    >>> len(question_and_answer), question_and_answer.targets.tolist()
    (4, [-100, 7, 2, -100])
    """

    tokens: np.ndarray
    labelled: np.ndarray

    def __post_init__(self) -> None:
        tokens = np.asarray(self.tokens, np.int32)
        labelled = np.asarray(self.labelled, bool)
        if tokens.ndim != 1 or not tokens.size or tokens.shape != labelled.shape:
            raise DataError(
                f"a sample has tokens of shape {tokens.shape} and labels of shape "
                f"{labelled.shape}, expected one label for each of at least one token"
            )
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "labelled", labelled)

    def __len__(self) -> int:
        return self.tokens.size

    @property
    def targets(self) -> np.ndarray:
        """The next token where it is labelled, else IGNORE_INDEX: int64 of shape (T,)."""
        targets = np.full(len(self), IGNORE_INDEX, np.int64)  # the last token has no next one
        targets[:-1] = np.where(self.labelled[1:], self.tokens[1:], IGNORE_INDEX)
        return targets


def packed(samples: Sequence[Sample], rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Lay samples end to end into rows of about equal length.

    Samples with a long common start share its tokens: the first has them, and the others follow it
    from their first own token on. The largest samples go first, each with those that share its
    start, into the row that is shortest so far.

    Parameters
    ----------
    samples : sequence of Sample
        At least one. The result does not depend on anything else.
    rows : int
        Number of rows; fewer samples than `rows` make one row each.

    Returns
    -------
    tokens, targets, positions : ndarray, shape (B, N), int64
        Positions restart with each sample: at 0, or at the number of tokens that it shares. Padding
        at the end of a row is like one more sample, whose targets are IGNORE_INDEX.

    Raises
    ------
    DataError
        If there is no sample, or `rows` is less than 1.

    Examples
    --------
    >>> from lora_np.data import Sample, packed
    >>> samples = [Sample([1, 2], [1, 1]), Sample([3, 4, 5, 6], [1, 1, 1, 1]), Sample([7], [1])]
    >>> tokens, targets, positions = packed(samples, rows=2)
    >>> print(tokens, targets, positions, sep="\n")
    [[3 4 5 6]
     [1 2 7 0]]
    [[   4    5    6 -100]
     [   2 -100 -100 -100]]
    [[0 1 2 3]
     [0 1 0 0]]
    """
    plan = packing_plan(samples, rows)
    return _laid_out([[(samples[i], start) for i, start in row] for row in plan])


Plan = list[list[tuple[int, int]]]  # for each row the samples in order, and where each starts


def packing_plan(samples: Sequence[Sample], rows: int) -> Plan:
    """Return which samples :func:`packed` lays into each row, and from which token on.

    A sample that starts at a token s > 0 shares the first s tokens of the last sample in its row
    that starts at 0.

    Examples
    --------
    >>> from lora_np.data import Sample
    >>> from lora_np.data.packing import packing_plan
    >>> alike = [Sample([1, 2, 3, n, 4], [0, 0, 0, 0, 1]) for n in (7, 8)]
    >>> packing_plan([*alike, Sample([5, 6], [0, 1])], rows=1)
    [[(0, 0), (1, 3), (2, 0)]]
    """
    _require_samples(samples)
    if rows < 1:
        raise DataError(f"rows={rows}, expected at least 1")
    branches = []
    for family in families(samples):
        family.sort(key=lambda i: -len(samples[i]))  # so that no branch starts where one ends
        for part in range(min(rows, len(family))):  # no row waits for the one with a large family
            root, *others = family[part::rows]
            branches.append(
                [(root, 0), *((i, common_start(samples[root], samples[i])) for i in others)]
            )

    def size(branch: list[tuple[int, int]]) -> int:
        return sum(len(samples[i]) - start for i, start in branch)

    filled: Plan = [[] for _ in range(min(rows, len(branches)))]
    for branch in sorted(branches, key=size, reverse=True):  # stable: equals keep their order
        min(filled, key=size).extend(branch)
    return filled


def packed_values(samples: Sequence[Sample], values: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Lay one number for each token into rows as :func:`packed` lays the tokens; padding is 0.

    Parameters
    ----------
    samples : sequence of Sample
    values : sequence of array, shapes (T,)
        For each sample.
    rows : int

    Returns
    -------
    ndarray, shape (B, N), int64

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import Sample
    >>> from lora_np.data.packing import packed_values
    >>> samples = [Sample([5, 6], [0, 1]), Sample([7, 8, 9], [0, 0, 1])]
    >>> packed_values(samples, [np.array([10, 11]), np.array([20, 21, 22])], 1).tolist()
    [[20, 21, 22, 10, 11]]
    """
    plan = packing_plan(samples, rows)
    held = [[values[i][start:] for i, start in row] for row in plan]
    laid = np.zeros((len(held), max(sum(map(len, row)) for row in held)), np.int64)
    for row, parts in zip(laid, held):
        found = np.concatenate(parts)
        row[: len(found)] = found
    return laid


def padded(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    r"""Lay each sample into a row of its own, for a model that takes no positions.

    Parameters
    ----------
    samples : sequence of Sample
        At least one.

    Returns
    -------
    tokens, targets : ndarray, shape (B, N), int64
        In the order of the samples; N is the length of the longest.

    Raises
    ------
    DataError
        If there is no sample.

    Examples
    --------
    >>> from lora_np.data import Sample, padded
    >>> tokens, targets = padded([Sample([1, 2], [1, 1]), Sample([3, 4, 5], [0, 0, 1])])
    >>> print(tokens, targets, sep="\n")
    [[1 2 0]
     [3 4 5]]
    [[   2 -100 -100]
     [-100    5 -100]]
    """
    _require_samples(samples)
    tokens, targets, _ = _laid_out([[(sample, 0)] for sample in samples])
    return tokens, targets


def _laid_out(
    rows: Sequence[Sequence[tuple[Sample, int]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens, targets and positions (B, N) of rows of samples, each from a token on."""
    length = max(sum(len(sample) - start for sample, start in row) for row in rows)
    tokens = np.zeros((len(rows), length), np.int64)
    targets = np.full_like(tokens, IGNORE_INDEX)
    positions = np.zeros_like(tokens)
    for b, row in enumerate(rows):
        end = 0
        for sample, start in row:
            place = np.s_[b, end : end + len(sample) - start]
            tokens[place], targets[place] = sample.tokens[start:], sample.targets[start:]
            positions[place] = np.arange(start, len(sample))
            end += len(sample) - start
        positions[b, end:] = np.arange(length - end)
    return tokens, targets, positions


def _require_samples(samples: Sequence[Sample]) -> None:
    if not samples:
        raise DataError("a batch of no samples: pass at least one")


class Epochs:
    """The samples of every step of a training run, as a pure function of the step.

    Each epoch goes through all samples in a fresh random order. An epoch's last batch is smaller if
    the batch size does not divide the number of samples. No state is kept from step to step: a run
    that was killed continues at its step, with the same batches.

    Parameters
    ----------
    samples : sequence of Sample
    batch_size : int
        Samples in a batch.
    seed : int
        The order of epoch e is drawn by ``numpy.random.default_rng([seed, e])``.
    by_length : bool
        Whether a batch holds samples of similar lengths. Samples are then sorted by length among
        the samples of 50 batches, and the batches come in random order, so the smaller batch may
        come anywhere in the epoch. This saves padding where each sample has its own row.
    together : int
        How many samples that begin alike stay side by side in this order, as far as there are as
        many. Packed rows then compute their common start once. Such a batch holds fewer kinds of
        prompts.

    Raises
    ------
    DataError
        If there is no sample, or `batch_size` is less than 1.

    Examples
    --------
    >>> from lora_np.data import Epochs, Sample
    >>> samples = [Sample([i], [True]) for i in range(5)]
    >>> batches = Epochs(samples, batch_size=2, seed=0)
    >>> [[int(sample.tokens[0]) for sample in batches.samples(step)] for step in range(3)]
    [[2, 4], [3, 0], [1]]
    >>> batches.steps(epochs=2)
    6
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        seed: int,
        by_length: bool = False,
        together: int = 1,
    ) -> None:
        _require_samples(samples)
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}, expected at least 1")
        self._samples, self.batch_size, self.seed = samples, batch_size, seed
        self.by_length = by_length
        self.together = together
        self._held: tuple[int, list[np.ndarray]] = (-1, [])  # an epoch, and its batches
        self._family = np.zeros(len(samples), int)
        for number, family in enumerate(families(samples) if together > 1 else ()):
            self._family[family] = number

    def steps(self, epochs: int) -> int:
        """Return the number of batches in a number of epochs."""
        return epochs * -(-len(self._samples) // self.batch_size)

    def samples(self, step: int) -> list[Sample]:
        """Return the samples of step 0, 1, 2, ...; the epochs go on without end."""
        epoch, i = divmod(step, self.steps(1))
        if self._held[0] != epoch:  # drawn once, not at every step: an epoch may have many
            self._held = epoch, self._batches(epoch)
        return [self._samples[k] for k in self._held[1][i]]

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """Return which samples are in each batch of an epoch."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._samples))
        if self.together > 1:
            order = self._in_families(order, rng)
        if self.by_length:
            order = self._sorted(order)
        batches = np.split(order, range(self.batch_size, order.size, self.batch_size))
        return [batches[i] for i in rng.permutation(len(batches))] if self.by_length else batches

    def _in_families(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the order with samples of one family side by side, in groups of random order."""
        by_family = order[np.argsort(self._family[order], kind="stable")]
        sizes = np.unique(self._family, return_counts=True)[1]
        groups = []
        for family in np.split(by_family, np.cumsum(sizes)[:-1]):
            groups += np.split(family, range(self.together, len(family), self.together))
        return np.concatenate([groups[i] for i in rng.permutation(len(groups))])

    def _sorted(self, order: np.ndarray) -> np.ndarray:
        """Return an order whose parts of 50 batches are each sorted by length."""
        lengths = np.array([len(sample) for sample in self._samples])
        size = BATCHES_SORTED * self.batch_size
        parts = (order[start : start + size] for start in range(0, order.size, size))
        return np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
