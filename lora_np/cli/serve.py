"""Serving many adapters over one base: ``serve``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_serve(commands: Any) -> None:
    """Add the parser of ``serve``."""
    serve = commands.add_parser(
        "serve",
        help="answer requests for many adapters over one model, over HTTP",
        description="Serves a model and adapters on this machine with the API of OpenAI's clients: "
        "an adapter is a model, and its name is that of its folder. Requests for any of them share "
        "a batch. SIGTERM or Ctrl-C finishes what runs.",
        epilog="Example: lora-np serve --model smollm2 --adapters customers --port 8000",
    )
    add = serve.add_argument
    add("--model", required=True, metavar="M", help="smollm2, or a folder, a .gguf file or a wheel")
    add(
        "--adapters",
        required=True,
        type=Path,
        metavar="DIR",
        help="the folder that holds the adapters' folders",
    )
    add("--port", type=int, default=8000, metavar="N", help="on 127.0.0.1; default: 8000")
    add(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=A:0.9,B:0.1",
        help="a name for several adapters with weights; a user always gets the same one; may be "
        "given several times",
    )
    add(
        "--batch", type=int, default=32, metavar="N", help="requests that run together; default: 32"
    )
    add(
        "--pages",
        type=int,
        default=8192,
        metavar="N",
        help="of memory for keys and adapters; a page holds the keys of one token; default: 8192",
    )
    add(
        "--queue",
        type=int,
        default=1024,
        metavar="N",
        help="requests that wait or run; one more is refused with 429; default: 1024",
    )
    add(
        "--keep-quantised",
        action="store_true",
        help="keep the weights in the types of the file: a fraction of the memory, but slower",
    )
    add(
        "--template",
        metavar="NAME",
        help="chatml, or a file that holds a chat template; default: the model's",
    )
    serve.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Load the model, and serve it until a signal."""
    from lora_np.pretrained import load_llm, template_in
    from lora_np.serve import Engine
    from lora_np.serve.alias import alias_of
    from lora_np.serve.http import need_packages, serve_http
    from lora_np.serve.names import folders_in
    from lora_np.serve.service import Limits

    a = arguments
    need_packages()  # what is wrong is said before the model is read
    aliases, limits = [alias_of(text) for text in a.alias], Limits(queue=a.queue)
    folders = folders_in(a.adapters)
    place = Path(a.model).resolve()
    template = None if a.template is None else template_in(a.template)
    llm = load_llm(a.model, keep_quantised=a.keep_quantised)
    serve_http(
        Engine(llm.model, folders, pages=a.pages, batch=a.batch),
        llm.tokenizer if template is None else llm.tokenizer.with_template(template),
        model_name=place.stem if place.is_file() else place.name,
        folder=a.adapters,
        context=min(llm.model.block_size, a.pages),
        port=a.port,
        aliases=aliases,
        limits=limits,
    )
    return 0
