"""The sweep over ranks, and the models that it leaves: ``sweep`` and ``generate``."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lora_np.backend import get_device
from lora_np.cli.experiment import Writers, add_options, carry_out, folder_name, whole_numbers
from lora_np.cli.parsing import OUTPUT, TRAINING, WHAT
from lora_np.cli.workers import jobs_of

QUICK = {
    "text": {"ranks": (1, 4, 16), "seeds": 1, "pretrain_steps": 80, "steps": 25, "windows": 32},
    "linear": {"ranks": (1, 4, 16), "seeds": 1, "d_in": 24, "d_out": 16, "steps": 1000},
    "llm": {
        **{"ranks": (1, 16), "seeds": 1, "top_layers": 2, "samples": 48, "steps": 12},
        **{"lora_lr": 6.4e-3, "full_lr": 1.6e-3},
    },
}
WHOLE = {  # options whose value is a whole number, by the title of their group
    WHAT: {"seeds": "number of seeds"},
    TRAINING: {
        "steps": "steps of each run",
        "batch-size": "windows or samples per batch",
        "pretrain-steps": "steps of pretraining the base",
    },
    "text task": {
        "block-size": "bytes per window",
        "d-model": "width of the transformer",
        "n-layer": "number of blocks",
        "n-head": "heads per block",
        "windows": "held-out windows to evaluate",
    },
    "linear task": {"d-in": "columns of W0", "d-out": "rows of W0"},
    "llm task": {
        "top-layers": "how many blocks are adapted, the last ones",
        "samples": "samples to train on; a quarter each to validate on and to test on",
    },
}
RATES = {
    "pretrain-lr": "learning rate of the base",
    "lora-lr": "where LoRA's searches for a learning rate start",
    "full-lr": "where full fine-tuning's search starts",
}
NO_SETTINGS = ("run", "task", "quick", "out", "base", "jobs", "take_over", "format", "quiet")


def add_sweep(commands: Any) -> None:
    """Add the parser of ``sweep``."""
    sweep = commands.add_parser(
        "sweep",
        help="loss against rank: pretrain, adapt at every rank, compare",
        description="Text: a small model is pretrained on one text and adapted to another. Linear: "
        "a planted change, where theory knows the answer. LLM: the last blocks of a real language "
        "model are adapted to answers. An option that the task does not have is refused.",
    )
    add = sweep.group(WHAT).add_argument
    add("--task", choices=("text", "linear", "llm"), help="default: text; llm with --model")
    add("--ranks", type=whole_numbers, metavar="R,R,...", help=_default("ranks"))
    modules = "NAME,NAME|all-linear|REGEX"
    add("--target-modules", type=targets, metavar=modules, help=_default("target-modules"))
    for title, options in WHOLE.items():
        for name, meaning in options.items():
            said = f"{meaning}; {_default(name)}"
            sweep.group(title).add_argument(f"--{name}", type=int, metavar="N", help=said)
    add = sweep.group(TRAINING).add_argument
    for name, meaning in RATES.items():
        add(f"--{name}", type=float, metavar="LR", help=f"{meaning}; {_default(name)}")
    add = sweep.group("text task").add_argument
    add("--pretrain-text", metavar="FILE", help="your own text for the base")
    add("--adapt-text", metavar="FILE", help="your own text to adapt it to")
    decay = f"ratio of neighbouring planted singular values; {_default('decay')}"
    sweep.group("linear task").add_argument("--decay", type=float, metavar="X", help=decay)
    add = sweep.group("llm task").add_argument
    add("--model", metavar="MODEL", help="smollm2, or a folder, a .gguf file or a wheel")
    add("--data", metavar="FILE", help="your samples; default: questions for SQL")
    quick = "a small sweep in 20 seconds; of a language model, in a minute"
    add_options(sweep, quick, "runs/<task>-<settings>/")
    device = "cpu or cuda; default: cpu"
    sweep.group(OUTPUT).add_argument("--device", metavar="DEVICE", help=device)
    sweep.set_defaults(run=run_sweep)


def _default(name: str) -> str:
    """Return the help text for the default of a setting of the sweep."""
    field, shown = name.replace("-", "_"), {}
    for task, settings in settings_by_task().items():
        if (value := getattr(settings, field, None)) is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            shown.setdefault(text, task)
    said = {text: "" if task == "text" else f"{task} task: " for text, task in shown.items()}
    return "default: " + "; ".join(f"{task * (len(said) > 1)}{text}" for text, task in said.items())


def settings_by_task() -> dict[str, Any]:
    """Return the class of each task's settings."""
    from lora_np.experiments.rank_sweep import LinearSettings, LlmSettings, TextSettings

    return {kind.task: kind for kind in (TextSettings, LinearSettings, LlmSettings)}


def targets(text: str) -> tuple[str, ...] | str:
    """Return the names of modules in a list with commas, or an expression as it is."""
    names = [name.strip() for name in text.split(",")]
    plain = all(re.fullmatch(r"[\w.]+", name) for name in names) and text != "all-linear"
    return tuple(names) if plain else text


def run_sweep(arguments: argparse.Namespace) -> int:
    """Run or resume a sweep, and write its pictures."""
    from lora_np.experiments.rank_sweep import rank_sweep
    from lora_np.experiments.rank_sweep.estimate import estimate
    from lora_np.experiments.rank_sweep.picture import plot_rank_vs_loss, plot_spectrum
    from lora_np.experiments.rank_sweep.report import table
    from lora_np.experiments.rank_sweep.run import check_sweep
    from lora_np.experiments.terminal import Terminal

    settings = sweep_settings(arguments)
    get_device(settings.device)
    out = arguments.out or Path("runs") / folder_name(settings, arguments.quick)

    def files(results: dict[str, Any]) -> Writers:
        curve = {"rank_vs_loss.png": partial(plot_rank_vs_loss, results)}
        if "spectrum" not in results:  # full fine-tuning diverged
            return curve
        return {**curve, "spectrum.png": partial(plot_spectrum, results)}

    return carry_out(
        arguments,
        jobs_of(arguments, settings),
        Terminal(out),
        partial(check_sweep, settings, out),
        partial(rank_sweep, settings, out),
        "results.json",
        files,
        lambda results: [table(results)],
        lambda executor, jobs: estimate(settings, executor, jobs),
    )


def sweep_settings(arguments: argparse.Namespace) -> Any:
    """Return the task's settings: its defaults, or the quick ones, with the options given."""
    task = arguments.task or ("text" if arguments.model is None else "llm")
    settings = settings_by_task()[task]()
    names = {field.name for field in fields(settings)}
    options = {**vars(arguments)}
    for name in NO_SETTINGS:
        options.pop(name, None)
    given = {name: value for name, value in options.items() if value is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in names]
    if foreign:
        raise ValueError(f"--task {task} has no option {', '.join(foreign)}")
    return replace(settings, **{**(QUICK[task] if arguments.quick else {}), **given})


def add_generate(commands: Any) -> None:
    """Add the parser of ``generate``."""
    generate = commands.add_parser("generate", help="generate text with a model of a sweep")
    add = generate.add_argument
    add("--run", dest="folder", type=Path, required=True, metavar="DIR", help="folder of the sweep")
    add("--prompt", metavar="TEXT", default="def ", help='default: "def "')
    add(
        "--model",
        metavar="NAME",
        default="best",
        help="base, full, or a rank; default: the best on validation",
    )
    add("--tokens", type=int, metavar="N", default=300, help="bytes to write; default: 300")
    likeliest = "0: the likeliest; default: 0.8"
    add("--temperature", type=float, metavar="X", default=0.8, help=likeliest)
    top_k = "draw only from the K likeliest bytes; default: all"
    add("--top-k", type=int, metavar="K", help=top_k)
    add("--seed", type=int, metavar="N", default=0, help="of what is drawn; default: 0")
    add("--device", metavar="DEVICE", default="cpu", help="cpu or cuda; default: cpu")
    generate.set_defaults(run=run_generate)


def run_generate(arguments: argparse.Namespace) -> int:
    """Continue the prompt with a model of a finished sweep."""
    import numpy as np

    from lora_np.data import decode, encode
    from lora_np.experiments.rank_sweep.models import load_model

    model = load_model(arguments.folder, arguments.model, arguments.device)
    if arguments.tokens < 0 or arguments.seed < 0:
        raise ValueError(
            f"--tokens {arguments.tokens} and --seed {arguments.seed}: expected at least 0"
        )
    if not arguments.prompt:
        raise ValueError("the prompt is empty: give at least one character")
    tokens = model.generate(
        encode(arguments.prompt),
        arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        rng=np.random.default_rng(arguments.seed),
    )
    print(decode(tokens))
    return 0
