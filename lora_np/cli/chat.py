"""Talking to a language model: ``chat``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_np.progress import log


def add_chat(commands: Any) -> None:
    """Add the parser of ``chat``."""
    chat = commands.add_parser(
        "chat",
        help="talk to a language model, with adapters to switch",
        description="Each line is a message; /help lists the commands. Lines can be piped in: the "
        "answers go to standard output, and all else to standard error.",
        epilog="Example: lora-np chat --model smollm2 --adapter my-adapter. "
        "docs/guides/own_data.md describes a conversation.",
    )
    models = chat.group("model and adapters")
    add = models.add_argument
    add(
        "--model",
        required=True,
        metavar="MODEL",
        help="smollm2, or a folder, a .gguf file or a wheel",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="may be given several times; the first is used until /adapter NAME, and a name is "
        "that of its folder",
    )
    add(
        "--keep-quantised",
        action="store_true",
        help="keep the weights in the types of the file: a fraction of the memory, but slower",
    )
    how = models.add_mutually_exclusive_group()
    how.add_argument(
        "--template",
        metavar="NAME",
        help="chatml, or a file that holds a chat template; default: the model's",
    )
    how.add_argument("--plain", action="store_true", help="no template: each line is continued")
    add = chat.group("answers").add_argument
    add("--system", metavar="TEXT", help="the system message; default: the template's")
    add(
        "--temperature", type=float, default=0.2, metavar="X", help="0: the likeliest; default: 0.2"
    )
    add(
        "--top-k", type=int, metavar="K", help="draw only from the K likeliest tokens; default: all"
    )
    add("--top-p", type=float, metavar="P", help="draw only from the likeliest share P; default: 1")
    add(
        "--tokens",
        type=int,
        default=512,
        metavar="N",
        help="tokens of the longest answer; default: 512",
    )
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn; default: 0")
    chat.set_defaults(run=run_chat)


def run_chat(arguments: argparse.Namespace) -> int:
    """Load the model and its adapters; answer lines until they end."""
    from lora_np.chat import Conversation, Drawing, Session, Shelf
    from lora_np.crew import one_blas_thread
    from lora_np.pretrained import load_llm, template_in

    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: expected at least 0")
    a = arguments
    drawing = Drawing(a.temperature, a.top_k, a.top_p, a.tokens)
    template = None if a.template is None else template_in(a.template)
    llm = load_llm(a.model, keep_quantised=a.keep_quantised)
    tokenizer = llm.tokenizer if template is None else llm.tokenizer.with_template(template)
    shelf = Shelf(llm.model, a.adapter)
    conversation = Conversation(
        shelf.model,
        tokenizer,
        system=a.system,
        plain=a.plain,
        drawing=drawing,
        seed=a.seed,
        listen=_say,
    )
    _replace_what_has_no_code()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        # Ctrl-C stops an answer, and the conversation goes on; SIGTERM ends the process as usual.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    session = Session(conversation, shelf, _write, _say, interactive)
    with one_blas_thread():  # an answer reads the weights once a token: a second thread waits
        session.run(_typed() if interactive else sys.stdin)
    return 0


def _typed() -> Iterator[str]:
    """Yield what is typed at a prompt, until Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  # from now on input() lets the user edit the line
    log.info("/help lists the commands")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        yield line


def _replace_what_has_no_code() -> None:
    """Read and write every text: what is not in the encoding becomes U+FFFD, or a question mark."""
    for stream in (sys.stdin, sys.stdout):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a notebook's streams have no encoding
            reconfigure(errors="replace")


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
