"""A conversation with a language model, whose answers come piece by piece.

The conversation is a list of messages. For each answer the chat template writes all of them, and a
:class:`~lora_np.chat.recall.Recall` computes only what the model has not read yet. If the
context is full, the oldest turns are dropped, and the system message stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from lora_np.chat.recall import Recall
from lora_np.models.language import LanguageModel
from lora_np.models.sampling import check_drawing, sample_token
from lora_np.pretrained import Tokenizer
from lora_np.tables import counted

FILLED = 0.75  # of the context at most, after turns are dropped, so that it is not soon full again


@dataclass(frozen=True)
class Drawing:
    """How the tokens of an answer are drawn.

    Parameters
    ----------
    temperature : float
        Divides the logits; 0 takes the most likely token. Small models wander off at 1.
    top_k : int, optional
        Draw only from the k most likely tokens.
    top_p : float, optional
        Draw only from the most likely tokens whose probabilities add up to p.
    tokens : int
        The longest answer.

    Examples
    --------
    >>> from lora_np.chat import Drawing
    >>> Drawing(temperature=0).tokens
    512
    """

    temperature: float = 0.2
    top_k: int | None = None
    top_p: float | None = None
    tokens: int = 512

    def __post_init__(self) -> None:
        check_drawing(self.temperature, self.top_k, self.top_p)
        if self.tokens < 1:
            raise ValueError(f"tokens = {self.tokens}, expected at least 1")


class Conversation:
    """Messages, the model that answers them, and what it remembers of them.

    Parameters
    ----------
    model : LanguageModel
        May be changed with :meth:`use`.
    tokenizer : lora_np.pretrained.Tokenizer
    system : str, optional
        The system message. Without one, some chat templates write their own.
    plain : bool
        No template and no turns: each message is the beginning of a text of its own, which the
        model continues.
    drawing : Drawing
    seed : int
    listen : callable
        Called with one line when turns are dropped or an answer is cut off.

    Attributes
    ----------
    messages : list of dict
        The system message, then the user's and the assistant's in turn.

    Raises
    ------
    TokenizerError
        If there is no chat template, or it refuses the system message.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.chat import Conversation, Drawing
    >>> from lora_np.pretrained import tokenizer_of_gguf
    >>> fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    ...           "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
    >>> model = Llama(LlamaConfig(3, 8, 1, 1, 1, d_model=4, d_hidden=6), np.random.default_rng(0))
    >>> talk = Conversation(
    ...     model, tokenizer_of_gguf(fields), plain=True, drawing=Drawing(temperature=0, tokens=3)
    ... )
    >>> [*talk.ask("ab")]
    ['ab', 'ab', 'ab']
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        plain: bool = False,
        drawing: Drawing | None = None,
        seed: int = 0,
        listen: Callable[[str], None] = lambda line: None,
    ) -> None:
        if plain and system is not None:
            raise ValueError("a plain text has no system message: leave one of the two out")
        self.tokenizer, self.plain, self.listen = tokenizer, plain, listen
        self.drawing, self.rng = drawing or Drawing(), np.random.default_rng(seed)
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self._first = len(self.messages)  # of the turns
        self.use(model)
        self._expect_room("?")  # a template that cannot be used is an error now

    @property
    def room(self) -> int:
        """The number of tokens that the model can read."""
        return self.model.block_size - self.model.start.length

    def use(self, model: LanguageModel) -> None:
        """Go on with another model: it reads the conversation anew before the next answer."""
        self.model, self._recall = model, Recall(model)

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        del self.messages[self._first :]

    def ask(self, text: str) -> Generator[str]:
        """Yield the answer to a message, piece by piece.

        A character is yielded when all of its bytes are there. If the answer is broken off (Ctrl-C,
        or the iterator is closed), what was said is kept as the assistant's turn. A message without
        an answer is forgotten.

        Raises
        ------
        ValueError
            If the message is empty, or longer than the context.
        """
        self._expect_room(text)
        self.messages.append({"role": "user", "content": text})
        said = ""
        try:
            for piece in self._pieces():
                said += piece
                yield piece
        finally:
            if said and not self.plain:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def _pieces(self) -> Iterator[str]:
        """Yield the answer to the last message."""
        stream, drawing = self.tokenizer.stream(), self.drawing
        answer: list[int] = []
        prompt = self._prompt(0)
        for _ in range(drawing.tokens):
            if len(prompt) + len(answer) > self.room:
                prompt = self._prompt(len(answer))
            if len(prompt) + len(answer) > self.room:
                self.listen(f"the context of {self.room} tokens is full: the answer ends here")
                break
            logits = self._recall.logits(prompt + answer)  # (1, V)
            token = int(sample_token(logits, rng=self.rng, **self._how())[0])
            if token in self.tokenizer.ends:
                break
            answer.append(token)
            if piece := stream.push(token):
                yield piece
        if rest := stream.flush():
            yield rest

    def _how(self) -> dict:
        how = self.drawing
        return {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}

    def _prompt(self, answered: int) -> list[int]:
        """Return the tokens of the conversation; if there are too many, of its last turns.

        Dropping leaves some room free, since the model must read all that remains again.
        """
        tokens, limit, dropped = self._tokens(self.messages), self.room, 0
        while len(tokens) + answered > limit and len(self.messages) >= self._first + 3:
            del self.messages[self._first : self._first + 2]
            tokens, limit, dropped = self._tokens(self.messages), FILLED * self.room, dropped + 1
        if dropped:
            turns = counted(dropped, "turn")
            self.listen(f"the context of {self.room} tokens is full: dropped the oldest {turns}")
        return tokens

    def _expect_room(self, text: str) -> None:
        """Raise ValueError unless the model can read a message with nothing but the system's."""
        if not text:
            raise ValueError("the message is empty")
        message = {"role": "user", "content": text}
        n = len(self._tokens([*self.messages[: self._first], message]))
        if n > self.room:
            raise ValueError(
                f"the message takes {n} tokens with what the template adds, but the context has "
                f"only {self.room}"
            )

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the tokens that the answer follows."""
        if not self.plain:
            return self.tokenizer.chat(messages, answer_follows=True)
        tokenizer = self.tokenizer
        start = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
        return start + tokenizer.encode(messages[-1]["content"])
