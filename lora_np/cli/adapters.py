"""The commands that work on adapters and checkpoints as files, whatever model they belong to."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_np.analyse import Analysis


def add_adapter_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    _add_analyse(commands)


def _add_analyse(commands: Any) -> None:
    analyse = commands.add_parser(
        "analyse",
        help="which rank does an adapter, or the change between two checkpoints, need?",
        description="PATH is a LoRA adapter (a folder of PEFT's, or a .safetensors file), the "
        "folder of a sweep, or, with --base, a checkpoint that is compared with another.",
    )
    analyse.add_argument("path", type=Path, metavar="PATH")
    analyse.add_argument("--base", type=Path, metavar="FILE_OR_FOLDER", help="of before the change")
    analyse.add_argument("--out", type=Path, metavar="DIR", help="default: runs/analyse-<name>/")
    analyse.set_defaults(run=run_analyse)


def run_analyse(arguments: argparse.Namespace) -> int:
    """Print the ranks of every module, and write them with their picture."""
    from lora_np.analyse import check_folder, save_analysis, source_of
    from lora_np.checkpoint import replacing
    from lora_np.plots import plot_rank_map

    name = arguments.path.resolve().name.removesuffix(".safetensors")
    out = arguments.out or Path("runs") / f"analyse-{name}"
    check_folder(out, source_of(arguments.path, arguments.base))  # before the work
    analysis = _analysis(arguments.path, arguments.base)
    print(analysis.table())
    print("\n".join(["", *analysis.notes(), analysis.sentence()]))
    save_analysis(analysis, out)
    with replacing(out / "ranks.png") as picture:
        plot_rank_map(analysis, picture)
    print(f"written to {out}/: analysis.json, ranks.png")
    return 0


def _analysis(path: Path, base: Path | None) -> Analysis:
    from lora_np.analyse import analyse_adapter, analyse_checkpoints, analyse_sweep

    if base is not None:
        return analyse_checkpoints(base, path)
    if (path / "results.json").is_file():
        return analyse_sweep(path)
    return analyse_adapter(path)
