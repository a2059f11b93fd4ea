"""A session: lines become messages or commands, answers go out as they are drawn.

Answers go to `write`, all else to `say`, one line each. A text from a model may hold control
characters, which could move the terminal's cursor or change its colours: they are shown escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lora_np.chat.conversation import Conversation
from lora_np.chat.shelf import Shelf
from lora_np.methods.table import hint
from lora_np.reading import printable

COMMANDS = {
    "/adapter": "/adapter NAME  go on with another adapter ('base': none); without NAME, list them",
    "/clear": "/clear         forget the conversation; the system message stays",
    "/help": "/help          show the commands; //text sends a message that begins with a slash",
    "/quit": "/quit          end; Ctrl-C stops an answer",
}
CONTROLS = {i: repr(chr(i))[1:-1] for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


class Session:
    """A conversation and its adapters, driven by lines.

    Parameters
    ----------
    conversation : Conversation
    shelf : Shelf
    write : callable
        Takes each piece of an answer.
    say : callable
        Takes each line of the session's own: lists, errors.
    interactive : bool
        Whether Ctrl-C stops only the answer; otherwise it ends the session.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig
    >>> from lora_np.chat import Conversation, Session, Shelf
    >>> from lora_np.pretrained import tokenizer_of_gguf
    >>> fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    ...           "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
    >>> model = Llama(LlamaConfig(3, 8, 1, 1, 1, d_model=4, d_hidden=6), np.random.default_rng(0))
    >>> talk = Conversation(model, tokenizer_of_gguf(fields), plain=True)
    >>> Session(talk, Shelf(model), print, print).run(["/adapter", "/quit", "ab"])
    * base
    """

    def __init__(
        self,
        conversation: Conversation,
        shelf: Shelf,
        write: Callable[[str], object],
        say: Callable[[str], object],
        interactive: bool = False,
    ) -> None:
        self.conversation, self.shelf = conversation, shelf
        self.write, self.say, self.interactive = write, say, interactive

    def run(self, lines: Iterable[str]) -> None:
        """Take lines until they end or one is /quit; blank lines are left out."""
        for line in lines:
            text = line.rstrip("\r\n")
            if text.strip() == "/quit":
                return
            if text.strip():
                self.take(text)

    def take(self, text: str) -> None:
        """Carry out a command or answer a message; an error is said in one line."""
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text)
            else:
                self._answer(text[1:] if text.startswith("//") else text)
        except ValueError as error:
            self.say(f"lora-np: {printable(' '.join(str(error).split()))}")

    def _command(self, text: str) -> None:
        command, _, name = text.partition(" ")
        name = name.strip()
        if command not in COMMANDS:
            known = hint(command, COMMANDS)
            raise ValueError(f"unknown command {command}: {known} (//... sends it as a message)")
        if command == "/adapter" and name:
            self.conversation.use(self.shelf.choose(name))
            self.say(f"adapter: {printable(name)}")
        elif command == "/adapter":
            for known in self.shelf.models:
                self.say(f"{'*' if known == self.shelf.chosen else ' '} {printable(known)}")
        elif command == "/clear":
            self.conversation.clear()
        else:
            for line in COMMANDS.values():
                self.say(line)

    def _answer(self, text: str) -> None:
        """Write the answer, a piece at a time, and a newline."""
        pieces, begun = self.conversation.ask(text), False
        try:
            for piece in pieces:
                begun = True
                self.write(piece.translate(CONTROLS))
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self.write("\n")
            self.say("stopped")
        except ValueError:
            if begun:
                self.write("\n")
            raise
        else:
            self.write("\n")
        finally:
            pieces.close()
