"""Records and a tokenizer make samples: the answers are labelled, the questions are not.

A conversation is laid out by the tokenizer's chat template, the same that asks the model later.
The tokenizer says where each answer stands, its end marker included: a model that is never shown
the end of an answer does not learn to stop. Everything else, such as the user's words and the
template's own, is read but not learned. What comes after the last labelled token is cut off, since
nothing is learned from it. In a text every token but the first is labelled, the end marker too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lora_np.data.packing import Sample
from lora_np.data.records import Message, Record
from lora_np.data.texts import DataError
from lora_np.reading import printable
from lora_np.tables import Table, counted

BINS = 8  # rows of a histogram, at most
BAR = 30  # characters of its longest bar


class SampleTokenizer(Protocol):
    """What a tokenizer must offer to make samples."""

    @property
    def bos(self) -> int | None:
        """The token that starts a text, or None if there is none."""
        ...

    @property
    def add_bos(self) -> bool:
        """Whether the model expects `bos` before a plain text."""
        ...

    @property
    def ends(self) -> Sequence[int]:
        """The tokens that end an answer; the first one ends a text."""
        ...

    def encode(self, text: str, /) -> Sequence[int]:
        """Return the tokens of a text, without markers at its start and end."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of tokens; markers have none."""
        ...

    def spans(
        self, messages: Sequence[Message], /, last: bool = False
    ) -> tuple[Sequence[int], Sequence[tuple[int, int]]]:
        """Return the tokens of a conversation, and (start, stop) of every answer with its end.

        With `last`, only the last answer's: some templates write earlier answers otherwise.
        """
        ...


@dataclass(frozen=True, eq=False)
class SampleReport:
    """What became of the records.

    Parameters
    ----------
    lengths : ndarray, shape (n,), int64
        Tokens of each sample before long ones were dropped or truncated.
    dropped : int
        Samples that were left out: too long, or truncated to no labelled token.
    truncated : int
        Samples of which the end was cut off, and that were kept.
    tokens, labelled : int
        Tokens in all samples that were kept, and how many of them the model learns to write.
    """

    lengths: np.ndarray
    dropped: int
    truncated: int
    tokens: int
    labelled: int

    @property
    def labelled_share(self) -> float:
        """The share of labelled tokens."""
        return self.labelled / self.tokens


def samples_of(
    records: Sequence[Record],
    tokenizer: SampleTokenizer,
    *,
    longest: int,
    long: Literal["refuse", "drop", "truncate"] = "refuse",
) -> tuple[list[Sample], SampleReport]:
    """Turn records into samples.

    Parameters
    ----------
    records : sequence of Record
    tokenizer : SampleTokenizer
    longest : int
        The largest number of tokens in a sample, at most the model's context.
    long : {"refuse", "drop", "truncate"}
        What happens to a longer sample: it is an error, it is left out, or its first `longest`
        tokens are kept. A sample that would keep no labelled token is left out. A plain text is cut
        into samples of `longest` tokens in any case, each starting with the last token of the one
        before: every token except the first is then a target once.

    Returns
    -------
    samples : list of Sample
    report : SampleReport

    Raises
    ------
    DataError
        If a sample is too long and `long` is "refuse", if no sample is left, or if an option is
        out of range.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from lora_np.data import Record, samples_of
    >>> letters = SimpleNamespace(encode=lambda text: [*map(ord, text)], ends=[0], add_bos=False)
    >>> records = [Record("mine.jsonl", 1, text="abc"), Record("mine.jsonl", 2, text="abcdefg")]
    >>> (sample,), report = samples_of(records, letters, longest=5, long="drop")
    >>> sample.tokens.tolist(), report.lengths.tolist(), report.dropped
    ([97, 98, 99, 0], [4, 8], 1)
    """
    _require_options(longest, long)
    found = [pair for record in records for pair in _samples(record, tokenizer, longest)]
    too_long = [(record, sample) for record, sample in found if len(sample) > longest]
    if too_long and long == "refuse":
        _refuse(too_long, longest)
    cut = [_within(longest, sample, long) for _, sample in found]
    kept = [sample for sample in cut if sample is not None]
    dropped = len(found) - len(kept)
    if not kept:
        raise DataError(
            f"no sample is left: {counted(dropped, 'sample')} of more than {longest} tokens, "
            "and none truncated that keeps a labelled token: raise the limit"
        )
    lengths = np.array([len(sample) for _, sample in found])
    labelled = sum(int(sample.labelled[1:].sum()) for sample in kept)  # nothing writes the first
    truncated = len(too_long) - dropped
    return kept, SampleReport(lengths, dropped, truncated, sum(map(len, kept)), labelled)


def _require_options(longest: int, long: str) -> None:
    if longest < 2 or long not in ("refuse", "drop", "truncate"):
        raise DataError(
            f"longest={longest}, long={long!r}: expected at least 2 tokens, and 'refuse', 'drop' "
            "or 'truncate'"
        )


def _within(longest: int, sample: Sample, long: str) -> Sample | None:
    """Return a sample of at most `longest` tokens, or None if it is dropped."""
    if len(sample) <= longest:
        return sample
    cut = Sample(sample.tokens[:longest], sample.labelled[:longest])
    return None if long == "drop" or not cut.labelled[1:].any() else cut


def _samples(
    record: Record, tokenizer: SampleTokenizer, longest: int
) -> Iterator[tuple[Record, Sample]]:
    """Yield the one sample of a record, or those that a plain text is cut into."""
    if record.messages:
        yield record, _of_conversation(record, tokenizer)
        return
    start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    ids = np.array([*start, *tokenizer.encode(record.text), *tokenizer.ends[:1]], np.int32)
    if ids.size < 2:
        raise DataError(f"{record.place} is a text of no tokens")
    size = longest if record.whole_file else ids.size
    for at in range(0, ids.size - 1, size - 1):  # one token is in two samples
        tokens = ids[at : at + size]
        yield record, Sample(tokens, np.arange(tokens.size) > 0)  # nothing precedes the first


def _of_conversation(record: Record, tokenizer: SampleTokenizer) -> Sample:
    last = not any(record.labelled[:-1])
    ids, spans = tokenizer.spans(record.messages, last=last)
    labelled = np.zeros(len(ids), bool)
    for (start, stop), learned in zip(spans, record.labelled[-len(spans) :], strict=True):
        if learned and start >= stop:
            raise DataError(f"{record.place} has an answer of no tokens")
        labelled[start:stop] = learned
    stop = int(np.flatnonzero(labelled)[-1]) + 1  # nothing is learned from what follows
    return Sample(np.array(ids[:stop]), labelled[:stop])


def _refuse(too_long: Sequence[tuple[Record, Sample]], longest: int) -> None:
    (record, sample), more = too_long[0], len(too_long) - 1
    others = f" ({counted(more, 'more sample')} too)" if more else ""
    raise DataError(
        f"{record.place} has {len(sample)} tokens, more than {longest}{others}: raise the limit, "
        "or drop or truncate long samples"
    )


def histogram(lengths: Sequence[int] | np.ndarray) -> Table:
    """Return a table of how many samples have which length.

    Parameters
    ----------
    lengths : sequence of int
        At least one; each at least 1.

    Examples
    --------
    >>> from lora_np.data import histogram
    >>> print(histogram([3, 5, 9, 9, 10, 12, 31]))
    tokens  samples
    1-4           1  ########
    5-8           1  ########
    9-12          4  ##############################
    13-16         0
    17-20         0
    21-24         0
    25-28         0
    29-32         1  ########
    """
    found = np.asarray(lengths)
    width = 1
    while width * BINS < found.max():
        width *= 2
    counts = np.bincount((found - 1) // width)
    bars = ["#" * -(-BAR * int(n) // int(counts.max())) for n in counts]
    columns = {
        "tokens": [f"{k * width + 1}-{(k + 1) * width}" for k in range(counts.size)],
        "samples": counts.tolist(),
        "": bars,
    }
    return Table(columns, {"": "<"})


def sample_text(sample: Sample, tokenizer: SampleTokenizer) -> str:
    r"""Return a sample as text, with "> " before what the model learns to write.

    Parameters
    ----------
    sample : Sample
    tokenizer : SampleTokenizer

    Returns
    -------
    str
        Each stretch of labelled or unlabelled tokens starts on a line of its own. Tokens without
        text, such as the end marker, are shown by their numbers: <2>. Unprintable characters are
        escaped.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from lora_np.data import Sample, sample_text
    >>> letters = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))
    >>> tokens = [ord(c) for c in "Say hi.\nAnswer: hi."]
    >>> print(sample_text(Sample(tokens, [t >= 16 for t in range(19)]), letters))
    19 tokens, 3 labelled (>)
      Say hi.
      Answer:
    > hi.
    """
    lines = [f"{len(sample)} tokens, {int(sample.labelled.sum())} labelled (>)"]
    for learned, run in itertools.groupby(
        zip(sample.tokens.tolist(), sample.labelled.tolist(), strict=True), key=lambda pair: pair[1]
    ):
        text = _written([token for token, _ in run], tokenizer)
        margin = "> " if learned else "  "
        lines += [margin + printable(line) for line in text.removesuffix("\n").split("\n")]
    return "\n".join(line.rstrip() for line in lines)


def _written(ids: Sequence[int], tokenizer: SampleTokenizer) -> str:
    """Return the text of tokens, and the numbers of those that have none."""
    parts = []
    for marker, run in itertools.groupby(ids, key=lambda i: tokenizer.decode([i]) == ""):
        tokens = list(run)
        parts += [f"<{i}>" for i in tokens] if marker else [tokenizer.decode(tokens)]
    return "".join(parts)
