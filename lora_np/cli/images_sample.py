"""The command ``images sample``: letters drawn by a base and its adapters."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lora_np.cli.parsing import OUTPUT
from lora_np.cli.says import note
from lora_np.progress import log
from lora_np.reading import printable

STEPS = {"ddpm": 50, "ddim": 20, "dpm_solver": 8, "consistency": 2}  # by default
ACROSS = 8  # images in a row of a sheet
MOST = 10_000  # images of a sheet
FOLDER: dict[str, Any] = {"type": Path, "required": True, "metavar": "DIR"}


def add_sample(parts: Any) -> None:
    """Add the parser of ``images sample``."""
    sample = parts.add_parser(
        "sample",
        help="draw letters, and write them as a PNG",
        epilog='Example: lora-np images sample --base b --adapter bold --weight 1.25 --text "LORA" '
        "--out lora.png",
    )
    add = sample.group("model and adapters").add_argument
    add("--base", help="the folder of a base", **FOLDER)
    add("--adapter", action=_Weighed, type=Path, metavar="DIR",
        help="a style or an acceleration of this base; may be given several times")  # fmt: skip
    add("--weight", action=_Weighed, type=float, metavar="W",
        help="weight of the --adapter before it; default: 1")  # fmt: skip
    group = sample.group("what is drawn")
    add, what = group.add_argument, group.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="WORDS", help='a letter, a family or both: "serif R"')
    what.add_argument("--text", metavar="LETTERS", help="one image of each letter, in a row")
    add("--family", metavar="NAME", help="sans, serif or mono, for --text; default: any")
    number = "number of images of a prompt, or of rows of a text; default: 8 images, 1 row"
    add("--n", type=int, metavar="N", help=number)
    add_seed(group)
    add = sample.group("sampler").add_argument
    add("--sampler", choices=tuple(STEPS),
        help="default: the one that the adapters were distilled for, else ddim")  # fmt: skip
    steps = ", ".join(f"{sampler} {number}" for sampler, number in STEPS.items())
    add("--steps", type=int, metavar="N", help=f"steps of the sampler; default: {steps}")
    guidance = "weight of guidance: 0 ignores the prompt, above 1 exaggerates it; default: 1"
    add("--guidance", type=float, default=1.0, metavar="W", help=guidance)
    add = sample.group(OUTPUT).add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="a new .png file")
    sample.set_defaults(run=run_sample, weighed=[])


class _Weighed(argparse.Action):
    """Keeps each --adapter with the --weight that follows it."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        """Append an adapter with weight 1, or set the weight of the last one."""
        weighed = list(namespace.weighed)
        if self.dest == "adapter":
            weighed.append((value, None))
        elif not weighed or weighed[-1][1] is not None:
            parser.error(f"--weight {value:g} follows no --adapter of its own: give one for each")
        else:
            weighed[-1] = (weighed[-1][0], value)
        namespace.weighed = weighed


def run_sample(arguments: argparse.Namespace) -> int:
    """Draw letters, and write them to a picture that says how."""
    import numpy as np

    from lora_np import images
    from lora_np.crew import one_blas_thread
    from lora_np.images.adapters import adapted, cautions, needed_sampler
    from lora_np.images.folder import load_base
    from lora_np.images.sheet import save_png

    a = arguments
    expect_seed(a.seed)
    if a.out.exists():
        raise ValueError(f"{a.out} already exists: choose another --out")
    if a.out.suffix.lower() != ".png":
        raise ValueError(f"--out {a.out}: the picture is a PNG, so its name must end with .png")
    prompts, columns = _prompts(a)
    words = np.array([images.words_of(prompt) for prompt in prompts])  # (n, 2)
    folders = [folder for folder, _ in a.weighed]
    weights = [1.0 if weight is None else weight for _, weight in a.weighed]
    base = load_base(a.base)
    sampler = a.sampler or needed_sampler(folders, weights) or "ddim"
    steps = STEPS[sampler] if a.steps is None else a.steps
    how: dict[str, Any] = {"steps": steps, "guidance": a.guidance}
    draw, rng = images.SAMPLERS[sampler], np.random.default_rng(a.seed)
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):  # decode finds both
        denoiser = adapted(base, folders, weights)
        drawn = base.codec.decode(draw(denoiser, words, rng=rng, **how))
    for caution in cautions(folders, weights, sampler, **how):
        log.warning(caution)
    about = {"seed": a.seed, "sampler": sampler, **how, "adapters": list(zip(folders, weights))}
    save_png(a.out, drawn, columns, _metadata(a, about))
    note(f"{len(drawn)} letters by {sampler} in {steps} steps\nwritten to {a.out}")
    return 0


def _prompts(arguments: argparse.Namespace) -> tuple[list[str], int]:
    """Return the prompt of every image, and the images in a row."""
    a, default = arguments, 8 if arguments.text is None else 1
    n = default if a.n is None else a.n
    most = max(1, MOST // len(a.text or " "))
    if not 1 <= n <= most:
        raise ValueError(f"--n {n}: expected 1 to {most}")
    if a.text is None:
        if a.family is not None:
            raise ValueError("--family is for --text: name the family in the prompt")
        return [a.prompt] * n, min(n, ACROSS)
    if not a.text or any(letter.isspace() for letter in a.text):
        raise ValueError(f"--text {printable(repr(a.text))}: expected letters, without spaces")
    return [f"{a.family or ''} {letter}".strip() for letter in a.text] * n, len(a.text)


def _metadata(arguments: argparse.Namespace, about: dict[str, Any]) -> dict[str, str]:
    """Return the text of a picture's metadata: all that is needed to draw it again."""
    from lora_np import __version__
    from lora_np.images.folder import record_of_base

    base = {"name": str(arguments.base), **record_of_base(arguments.base)}
    asked = given(arguments, "prompt", "text", "family", "n")
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in {**asked, **about, "base": base}.items()
    }
    return {**texts, "Software": f"lora_np {__version__}"}


# ------------------------------------------------------------ shared with the other commands


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the settings that were given, by name."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def add_seed(group: Any) -> None:
    """Add ``--seed``."""
    said = "seed of all random draws; default: 0"
    group.add_argument("--seed", type=int, default=0, metavar="N", help=said)


def expect_seed(seed: int) -> None:
    """Refuse a negative seed."""
    if seed < 0:
        raise ValueError(f"--seed {seed}: expected at least 0")
