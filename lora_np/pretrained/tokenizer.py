r"""Text to tokens and back, and a conversation as a model's chat template writes it.

A byte-level vocabulary (GPT-2, SmolLM, Llama 3, Qwen) names each of the 256 bytes by a printable
character, so that every text has tokens and a token may be a part of a character::

    text -> pieces (regular expressions) -> bytes -> characters -> merges, the earliest first -> ids

Pieces and merges are the work of the package ``tokenizers``. The way back needs only a table of
bytes: a ``Tokenizer`` joins them and decodes UTF-8, and a ``TextStream`` does so as tokens arrive.

Source: R. Sennrich, B. Haddow, A. Birch, "Neural Machine Translation of Rare Words with Subword
Units", ACL 2016; the regular expressions are those of the models' own tokenizers.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

from lora_np.files import CheckpointError
from lora_np.pretrained.template import ChatTemplate
from lora_np.pretrained.template_values import TemplateError
from lora_np.reading import shown

CHAT_ENDS = ("<|im_end|>", "<|eot_id|>")  # they end a turn; a file may name another token as EOS
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
PRIVATE = range(0xE000, 0xF900)  # characters that Unicode leaves to private use

Message = Mapping[str, Any]


class TokenizerError(CheckpointError):
    """A tokenizer that cannot be built or used: what is wrong, on one line."""


def tokenizers_package() -> Any:
    """Import ``tokenizers``, or say how to install it."""
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(
            "the package tokenizers is missing: pip install 'lora_np[llm]'"
        ) from None
    return tokenizers


def byte_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    A printable byte is its own character; the others follow from U+0100, in order.

    Examples
    --------
    >>> from lora_np.pretrained.tokenizer import byte_characters
    >>> byte_characters()["a"], byte_characters()["Ġ"], len(byte_characters())
    (97, 32, 256)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class TextStream:
    """Text from tokens that arrive one by one: a character is given when its bytes are whole.

    Made by ``Tokenizer.stream``. The texts of all calls, joined, are ``decode`` of the ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._started = False

    def push(self, token: int) -> str:
        """Return the text that is whole with one more token; it may be empty."""
        return self._first(self._utf8.decode(self._tokenizer.bytes_of(token)))

    def flush(self) -> str:
        """Return what is left: U+FFFD if the last character is not whole."""
        return self._first(self._utf8.decode(b"", final=True))

    def _first(self, text: str) -> str:
        """Remove the space that a SentencePiece vocabulary puts in front of a text."""
        if self._tokenizer.leading_space and text and not self._started:
            self._started = True
            return text.removeprefix(" ")
        return text


class Tokenizer:
    r"""Text to token ids and back.

    Made by :func:`~lora_np.pretrained.tokenizer_files.tokenizer_of_gguf` and
    :func:`~lora_np.pretrained.tokenizer_files.tokenizer_in`.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    bos, eos : str or None
        The tokens that begin and end a text.
    template : str or None
        The chat template's source.
    ends : sequence of int
        More ids that end an answer.
    add_bos : bool
        Whether the model expects `bos` in front of a plain text. ``encode`` does not add it: a
        chat template writes its own.
    source : str
        Where the tokenizer comes from, for error messages.

    Attributes
    ----------
    vocab_size : int
    bos, eos : int or None
    ends : tuple of int
        The ids that end an answer: EOS, and what ends a turn.
    template : ChatTemplate or None
    add_bos : bool
    """

    def __init__(
        self,
        backend: Any,
        *,
        bos: str | None,
        eos: str | None,
        template: str | None = None,
        ends: Sequence[int] = (),
        add_bos: bool = False,
        source: str = "the tokenizer",
    ):
        backend.no_truncation()
        backend.no_padding()
        self._special, self.source, self.add_bos = backend, source, add_bos
        self.vocab_size: int = backend.get_vocab_size()
        self.bos, self.eos = self._id(bos), self._id(eos)
        chat = [i for i in map(backend.token_to_id, CHAT_ENDS) if i is not None]
        eos_first = [] if self.eos is None else [self.eos]
        self.ends = tuple(dict.fromkeys([*eos_first, *ends, *chat]))
        self._edges = {"bos": bos, "eos": eos}
        self.template = None if template is None else ChatTemplate(template, **self._edges)
        added = backend.get_added_tokens_decoder()
        self._markers = {i: token.content for i, token in added.items() if token.special}
        self._contents = {i: token.content for i, token in added.items()}
        self.leading_space = _leading_space(backend, source)

    def _id(self, token: str | None) -> int | None:
        found = None if token is None else self._special.token_to_id(token)
        if token is not None and found is None:
            raise TokenizerError(f"{self.source} has no token {shown(token)}, which it names")
        return found

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a text. No BOS is added.

        Parameters
        ----------
        text : str
        special : bool
            Whether the markers of special tokens in the text become those tokens. By default they
            are text like any other, because the text may be a stranger's.
        """
        backend = self._special if special else self._plain
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise TokenizerError(
                "the text holds half a surrogate pair: it is not Unicode"
            ) from None

    @cached_property
    def _plain(self) -> Any:
        """The same tokenizer, to which markers of special tokens are text."""
        backend = copy.deepcopy(self._special)
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each token; none for a special token."""
        known = {i: token for token, i in self._special.get_vocab().items()}
        characters = byte_characters()
        table = [b""] * (max(known) + 1)
        for i, token in known.items():
            if i in self._markers:
                continue
            if i in self._contents:
                table[i] = token.encode()
            elif self.leading_space is None:
                mapped = [characters.get(c) for c in token]
                whole = None not in mapped
                table[i] = bytes(b for b in mapped if b is not None) if whole else token.encode()
            elif byte := BYTE_TOKEN.fullmatch(token):
                table[i] = bytes([int(byte[1], 16)])
            else:
                table[i] = token.replace("▁", " ").encode()
        return table

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token: none for a special token or an id without a token."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids, without special tokens.

        Bytes that are not UTF-8 become U+FFFD.
        """
        stream = self.stream()
        return "".join([*(stream.push(int(i)) for i in ids), stream.flush()])

    def stream(self) -> TextStream:
        """Return a decoder for ids that arrive one by one."""
        return TextStream(self)

    def with_template(self, source: str) -> Tokenizer:
        """Return this tokenizer with another chat template.

        Parameters
        ----------
        source : str
            A template in Jinja2's language, or "chatml".
        """
        other = copy.copy(self)
        other.template = ChatTemplate(source, **self._edges)
        return other

    # --- conversations ---------------------------------------------------------------------------

    def chat_text(self, messages: Sequence[Message], answer_follows: bool) -> str:
        """Return a conversation as the chat template writes it.

        Parameters
        ----------
        messages : sequence of dict
            Each {"role": "system" | "user" | "assistant", "content": str}.
        answer_follows : bool
            Whether the text ends where the assistant's answer begins.
        """
        if self.template is None:
            raise TokenizerError(
                f"{self.source} has no chat template: train and talk with plain text, or use "
                "--template chatml"
            )
        return self.template.render(messages, answer_follows)

    def chat(self, messages: Sequence[Message], answer_follows: bool) -> list[int]:
        """Return the tokens of a conversation as the chat template writes it.

        Parameters
        ----------
        messages : sequence of dict
            Each {"role": "system" | "user" | "assistant", "content": str}. A special token's
            marker in a content stays text: a stranger's message cannot end a turn.
        answer_follows : bool
            Whether the tokens end where the assistant's answer begins.

        Returns
        -------
        list of int
            What ``apply_chat_template`` of transformers returns, with two exceptions: markers in
            a content, and an answer that begins with white space. An answer's tokens are its own,
            as the model writes them; none joins the end of the prompt.
        """
        quoted, tokens_of = self._quoted(messages)
        text = self.chat_text(quoted, answer_follows)
        ids = tokens_of(text, self._starts(quoted).values())
        if not ids:
            raise TokenizerError("the chat template writes nothing: use --template chatml")
        return ids

    def spans(
        self, messages: Sequence[Message], last: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a conversation's tokens, and where the assistant's answers stand in them.

        Parameters
        ----------
        messages : sequence of dict
            As for ``chat``.
        last : bool
            Only the last answer.

        Returns
        -------
        ids : list of int
            ``chat(messages, answer_follows=False)``.
        spans : list of (start, stop)
            One span for each answer: from the token at which generation begins to the marker that
            ends the answer, included. ``ids[:start]`` is ``chat(earlier, answer_follows=True)``.

        Raises
        ------
        TokenizerError
            If the template writes a turn otherwise when later ones follow, so that what is learnt
            would not be what is asked in a chat.
        """
        quoted, tokens_of = self._quoted(messages)
        starts, text = self._starts(quoted), self.chat_text(quoted, False)
        ids, spans = tokens_of(text, starts.values()), []
        for i, prompt in [*starts.items()][-1 if last else 0 :]:
            answered = tokens_of(self.chat_text(quoted[: i + 1], False), starts.values())
            start = len(asked := tokens_of(prompt, starts.values()))
            if not asked or ids[:start] != asked or ids[: len(answered)] != answered:
                raise TokenizerError(
                    f"the chat template of {self.source} writes message {i + 1} and what precedes "
                    "it in another way once more follows: train on the last answer only, or use "
                    "--template chatml"
                )
            stop = next((n for n in range(start, len(answered)) if ids[n] in self.ends), None)
            if stop is None:
                raise TokenizerError(
                    f"the chat template of {self.source} puts no end marker after an answer: use "
                    "--template chatml"
                )
            spans.append((start, stop + 1))
        return ids, spans

    def _starts(self, messages: Sequence[Message]) -> dict[int, str]:
        """Return the text that precedes each answer, by the answer's place; none if refused."""
        found = {}
        for i, message in enumerate(messages):
            if message.get("role") == "assistant":
                try:
                    found[i] = self.chat_text(messages[:i], True)
                except TemplateError:  # a conversation that begins with an answer
                    found[i] = ""
        return found

    def _quoted(
        self, messages: Sequence[Message]
    ) -> tuple[list[dict[str, Any]], Callable[[str, Iterable[str]], list[int]]]:
        """Put a private character for every special token's marker in a message.

        Returns the messages, and what turns their rendered text into tokens: a function of the
        text and of the prompts in it, at whose ends the text is cut.
        """
        text = "".join(value for m in messages for value in m.values() if isinstance(value, str))
        found = sorted((m for m in self._markers.values() if m in text), key=len, reverse=True)
        source = text + (self.template.source if self.template else "")
        free = (chr(c) for c in PRIVATE if chr(c) not in source)
        marks = dict(zip(free, found))
        if len(marks) < len(found):
            raise TokenizerError("the messages hold too many characters of Unicode's private use")
        names = {marker: character for character, marker in marks.items()}
        quoted = [{k: _replaced(v, names) for k, v in m.items()} for m in messages]
        encode = cache(lambda part: self._encode_chat(part, marks))

        def tokens_of(text: str, prompts: Iterable[str]) -> list[int]:
            cuts = (
                []
                if self.leading_space is not None
                else [len(p) for p in prompts if p and text.startswith(p)]
            )
            parts = (text[a:b] for a, b in pairwise([0, *cuts, len(text)]))
            return [i for part in parts for i in encode(part)]

        return quoted, tokens_of

    def _encode_chat(self, text: str, marks: dict[str, str]) -> list[int]:
        """Return the tokens of a rendered text, in which private characters stand for `marks`."""
        if not marks:
            return self.encode(text, special=True)
        ids_of = {marker: i for i, marker in self._markers.items()}
        longest_first = sorted(ids_of, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids = []
        for piece in pieces:
            if piece in ids_of:
                ids.append(ids_of[piece])
            else:
                ids += self.encode(_replaced(piece, marks))
        return ids


def _replaced(value: Any, names: dict[str, str]) -> Any:
    """Replace each key of `names` in a string by its value."""
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
    return value


def _leading_space(backend: Any, source: str) -> bool | None:
    """Return None for a byte-level vocabulary; else whether a text's first space is dropped."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return None
    if kinds & {"ByteFallback", "Metaspace"}:
        return bool(kinds & {"Strip", "Metaspace"})
    raise TokenizerError(f"{source} is neither a byte-level nor a SentencePiece vocabulary")
