"""Serving many adapters over one base: ``serve``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

PORT = 8000


def add_serve(commands: Any) -> None:
    """Add the parser of ``serve``."""
    serve = commands.add_parser(
        "serve",
        help="answer requests for many adapters over one model, over HTTP or from a file",
        description="Serves a model and adapters on this machine with the API of OpenAI's clients: "
        "an adapter is a model, and its name is that of its folder. Requests for any of them share "
        "a batch. SIGTERM or Ctrl-C finishes what runs. With --requests, a file is answered, and "
        "nothing is served.",
        epilog="Examples: lora-np serve --model smollm2 --adapters customers --port 8000; lora-np "
        "serve --model smollm2 --adapters customers --requests r.jsonl --out answers.jsonl",
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
        help="pages of memory for keys and adapters; a page holds the keys of one token; "
        "default: 8192",
    )
    add(
        "--queue",
        type=int,
        default=1024,
        metavar="N",
        help="the most requests that wait or run; one more is refused with 429; default: 1024",
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
    _add_ways(add)
    serve.set_defaults(run=run_serve)


def _add_ways(add: Any) -> None:
    """Add the options that say where the requests come from."""
    add("--port", type=int, metavar="N", help=f"on 127.0.0.1; default: {PORT}")
    add(
        "--requests",
        type=Path,
        metavar="FILE",
        help="answer this file instead: on each line the JSON of a request, as over HTTP",
    )
    add("--out", type=Path, metavar="FILE", help="a new file for the answers to --requests")


def run_serve(arguments: argparse.Namespace) -> int:
    """Load the model; serve it until a signal, or answer a file."""
    from lora_np.pretrained import load_llm, template_in
    from lora_np.serve import Engine
    from lora_np.serve.alias import alias_of
    from lora_np.serve.http.server import serve_http
    from lora_np.serve.http.service import Limits, body_for
    from lora_np.serve.names import folders_in

    a = arguments
    _expect_one_way(a)  # before the model is read, which takes long
    aliases, limits = [alias_of(text) for text in a.alias], Limits(queue=a.queue)
    folders = folders_in(a.adapters)
    place = Path(a.model).absolute()
    template = None if a.template is None else template_in(a.template)
    llm = load_llm(a.model, keep_quantised=a.keep_quantised)
    tokenizer = llm.tokenizer if template is None else llm.tokenizer.with_template(template)
    engine = Engine(llm.model, folders, pages=a.pages, batch=a.batch)
    name = place.stem if place.is_file() else place.name
    if a.requests is not None:
        return _answer_file(a, engine, tokenizer, name, aliases)
    serve_http(
        engine,
        tokenizer,
        model_name=name,
        folder=a.adapters,
        port=PORT if a.port is None else a.port,
        aliases=aliases,
        limits=replace(limits, body=body_for(engine.longest)),
    )
    return 0


def _expect_one_way(a: argparse.Namespace) -> None:
    """Raise ValueError unless the options are those of a server, or of a file."""
    from lora_np.serve.http.server import need_packages

    if (a.requests is None) != (a.out is None):
        raise ValueError("--requests and --out go together: give both, or neither for a server")
    if a.requests is None:
        need_packages()
        return
    if a.port is not None:
        raise ValueError("--port is of a server, --requests of a file: give one of them")
    if a.out.exists():
        raise ValueError(f"--out {a.out} exists: choose a new file, nothing is overwritten")
    if not a.out.parent.is_dir():
        raise ValueError(f"--out {a.out}: there is no folder {a.out.parent}: make it first")


def _answer_file(
    a: argparse.Namespace, engine: Any, tokenizer: Any, name: str, aliases: list[Any]
) -> int:
    """Write the answers to a file of requests; return 1 if one of them is an error."""
    import numpy as np

    from lora_np.crew import progress_bar
    from lora_np.serve.lines import answers_to, read_requests, write_line
    from lora_np.serve.names import Names
    from lora_np.tables import counted

    names = Names(name, engine.names, aliases, np.random.default_rng())
    lines, errors = read_requests(a.requests, names), 0
    with (  # half a surrogate pair, which UTF-8 does not hold, is written as JSON's escape
        a.out.open("x", encoding="utf-8", errors="backslashreplace") as file,
        progress_bar(unit=" tokens", disable=None) as bar,
    ):
        for answer in answers_to(lines, engine, tokenizer, names, bar.update):
            errors += "error" in answer
            write_line(file, answer)
    failed = f", {errors} of them {'an error' if errors == 1 else 'errors'}" if errors else ""
    print(f"{counted(len(lines), 'answer')}{failed}: written to {a.out}")
    return 1 if errors else 0
