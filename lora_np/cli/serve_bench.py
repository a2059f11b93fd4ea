"""The command ``serve-bench``: what a batch with many adapters costs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_np.cli.experiment import CAUTION, whole_numbers
from lora_np.cli.parsing import OUTPUT
from lora_np.cli.says import add_format, listen, note
from lora_np.cli.says import report as say
from lora_np.cli.sweep import targets

DESCRIPTION = (
    "Each side takes its turn on one BLAS thread, and ratios are printed. Measurements: "
    "pool: a warm pool of 1, 10, 100 and 1,000 adapters, requests for any of them; "
    "distinct: 1, 2, 4, ... distinct adapters in the batch, up to one for each row, also one "
    "adapter at a time and, with --peft, PEFT: the picture; "
    "disk: 10,000 adapters on disk (1.2 GB in the temporary folder), requests by Zipf(1), room for "
    "256, reads included; "
    "wide: 1,000 distinct adapters in one batch of 1,024 rows; "
    "real: 8 distinct adapters, whole answers at each of --contexts; "
    "long: 8 distinct adapters, the writing alone at each of --contexts. "
    "Adapters are random. docs/serving.md shows a run."
)


def names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas."""
    return tuple(name.strip() for name in text.split(","))


def add_serve_bench(commands: Any) -> None:
    """Add the parser of ``serve-bench``."""
    parser = commands.add_parser(
        "serve-bench",
        help="what many adapters in one batch cost, against the base alone and one at a time",
        description=DESCRIPTION,
        epilog="Examples: lora-np serve-bench --only distinct --peft --out runs/serve; "
        "lora-np serve-bench --model smollm2 --contexts 64,512",
    )
    add = parser.group("model and adapters").add_argument
    model = "small (default), a random Llama of 3.2M parameters; smollm2, or a folder, a .gguf "
    add("--model", metavar="MODEL", help=f"{model}file or a wheel")
    add("--r", type=int, metavar="R", help="rank of the adapters; default: 8")
    modules = "adapted layers, separated by commas; default: q_proj,v_proj"
    add("--target-modules", type=targets, metavar="NAME,NAME", help=modules)
    add = parser.group("what is measured").add_argument
    only = "measurements, separated by commas; default: pool,distinct,disk,wide for small, "
    add("--only", type=names, metavar="NAME,NAME", help=f"{only}real,long for others")
    add("--batch", type=int, metavar="N", help="rows of a batch; default: 64")
    add("--prompt", type=int, metavar="N", help="tokens of a prompt; default: 16")
    add("--new", type=int, metavar="N", help="new tokens of an answer; default: 32")
    contexts = "tokens of the prompts of real and long; default: 64,512,2048"
    add("--contexts", type=whole_numbers, metavar="N,N", help=contexts)
    add("--rounds", type=int, metavar="N", help="turns of each side; default: 7")
    requests = "requests of a round of disk; default: 2048"
    add("--requests", type=int, metavar="N", help=requests)
    add("--peft", action="store_true", help="measure PEFT too; it must be installed")
    add("--quick", action="store_true", help="tiny sizes, in a few seconds")
    add = parser.group(OUTPUT).add_argument
    add("--out", type=Path, metavar="DIR", help="write results.json, serve.txt and serve.png")
    add_format(parser)
    parser.set_defaults(run=run_serve_bench)


def run_serve_bench(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, and write them with the picture."""
    from lora_np.experiments.serving import QUICK, BenchSettings, report, serving_study
    from lora_np.experiments.serving.picture import plot_serving
    from lora_np.files import save_json, save_text
    from lora_np.files.atomic import make_folder

    fields = ("model", "only", "batch", "prompt", "new", "contexts", "r", "target_modules")
    fields += ("rounds", "requests")
    given = {name: getattr(arguments, name) for name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    start = QUICK if arguments.quick else BenchSettings()
    settings, out = replace(start, **given, peft=arguments.peft), arguments.out
    if out is not None:
        make_folder(out)  # before the work: DIR may not be writable

    def keep(results: dict[str, Any]) -> None:
        if out is not None:
            save_json(out / "results.json", results)

    results = serving_study(settings, listen, keep)
    parts = [report(results), *(["", CAUTION] if arguments.quick else [])]
    say(arguments, *parts)
    if out is not None:
        save_text(out / "serve.txt", "".join(f"{part}\n" for part in parts))
        files = ["results.json", "serve.txt"]
        if "distinct" in results["measured"]:
            plot_serving(results, out / "serve.png")
            files.append("serve.png")
        note(f"\nwritten to {out}/: {', '.join(files)}")
    return 0
