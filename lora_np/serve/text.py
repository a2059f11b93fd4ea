r"""The tokens of an answer as text, up to the first stop string.

A stop string may lie across several tokens. So the end of the text is held back while a stop string
could begin in it::

    stop "\nQ:"      tokens  "4" "2" "\n" "Q" ":"
                     given   "4" "2" ""   ""  ""    and the answer has ended: "42"
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lora_np.pretrained import Tokenizer


class StopStrings:
    """A text that arrives in pieces, cut before the first of some strings.

    Parameters
    ----------
    stops : sequence of str

    Attributes
    ----------
    found : bool
        Whether a stop string has been found. The text ends before it.

    Examples
    --------
    >>> from lora_np.serve.text import StopStrings
    >>> text = StopStrings(["END"])
    >>> [text.push(piece) for piece in ("an E", "gg, E", "ND, more")], text.found
    (['an ', 'Egg, ', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.found, self._held = tuple(stops), False, ""

    def push(self, piece: str) -> str:
        """Return the text that is certain with one more piece."""
        if self.found:
            return ""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops]
        found = [(end, start) for end, start in found if start >= 0]
        if found:  # the first to end, however the text is cut into pieces
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what is held back, when no more follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may begin a stop string, but not be it."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


class AnswerText:
    """The text of one answer, from its tokens.

    Parameters
    ----------
    tokenizer : lora_np.pretrained.Tokenizer
    stops : sequence of str

    Attributes
    ----------
    stopped : bool
        Whether a stop string has been found: no more tokens are needed.
    tokens : int
        The number of tokens read.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._stream, self._cut = tokenizer.stream(), StopStrings(stops)
        self._ends: Collection[int] = frozenset(tokenizer.ends)
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._cut.found

    def push(self, token: int) -> str:
        """Return the text that is certain with one more token; what ends an answer has none."""
        self.tokens += 1
        return "" if token in self._ends else self._cut.push(self._stream.push(token))

    def usage(self, prompt: int) -> dict[str, int]:
        """Return OpenAI's ``usage`` after a prompt of so many tokens."""
        numbers = (prompt, self.tokens, prompt + self.tokens)
        return dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), numbers))

    def flush(self) -> str:
        """Return the rest of the text, when no token follows."""
        return self._cut.push(self._stream.flush()) + self._cut.flush()
