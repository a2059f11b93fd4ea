"""Letters drawn by a diffusion model: ``images base``, ``style``, ``distil`` and ``sample``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_np.cli.images_report import add_report
from lora_np.crew import progress_bar
from lora_np.reading import printable

QUICK = {"images": 4000, "k": 96, "d": 128, "d_hidden": 256, "n_block": 2, "steps": 600}
STEPS = {"ddpm": 50, "ddim": 20, "dpm_solver": 8, "consistency": 2}  # by default
ACROSS = 8  # images in a row of a sheet
MOST = 10_000  # images of a sheet
FOLDER: dict[str, Any] = {"type": Path, "required": True, "metavar": "DIR"}


def add_images(commands: Any) -> None:
    """Add the parser of ``images`` and those of its commands."""
    images = commands.add_parser(
        "images",
        help="letters from a diffusion model: a base, a style, fewer steps, pictures",
        description="Train a diffusion model of letters, the base, from nothing in a minute or "
        "two; then adapters of it: a style, and an acceleration that can be added to the style.",
    )
    parts = images.add_subparsers(metavar="command", required=True, help="one of these")
    _add_base(parts)
    _add_refine(parts)
    _add_style(parts)
    _add_distil(parts)
    _add_sample(parts)
    add_report(parts)


def _add_base(parts: Any) -> None:
    from lora_np.images.training import BaseSettings

    base = parts.add_parser("base", help="train a base from nothing, on regular letters")
    _add_setting(base, "--k", int, "number of latents of an image", BaseSettings.k)
    quick = "a small base in a few seconds, which draws worse"
    base.add_argument("--quick", action="store_true", help=quick)
    base.add_argument("--out", help="a new folder, or that of a base that was stopped", **FOLDER)
    take_over = "take DIR from a process on another host, if that process has ended"
    base.add_argument("--take-over", action="store_true", help=take_over)
    _add_seed(base)
    base.set_defaults(run=run_base)


def _add_refine(parts: Any) -> None:
    said = "put small convolutions around a base, for styles such as outline"
    refine = parts.add_parser("refine", help=said)
    refine.add_argument("--base", help="the folder of a base", **FOLDER)
    refine.add_argument("--out", help="a new folder for a base", **FOLDER)
    _add_seed(refine)
    refine.set_defaults(run=run_refine)


def _add_style(parts: Any) -> None:
    from lora_np.images.glyphs import STYLES
    from lora_np.images.refiner import REFINED_STYLE
    from lora_np.images.training import ALL_WEIGHTS_STYLE, StyleSettings

    style = parts.add_parser("style", help="train a style on a few images of some letters")
    names = ", ".join(STYLES)
    _add_setting(style, "--style", str, names, StyleSettings.style, metavar="NAME")
    _add_setting(style, "--images", int, "number of images to learn from", StyleSettings.images)
    shown = "the letters that the images show"
    _add_setting(style, "--letters", str, shown, StyleSettings.of, "ABC...", dest="of")
    around = f"; on a refined base: {REFINED_STYLE['steps']}"
    _add_training(style, StyleSettings, ALL_WEIGHTS_STYLE, r=4, more_steps=around)
    style.set_defaults(run=run_style)


def _add_distil(parts: Any) -> None:
    from lora_np.images.training import ALL_WEIGHTS_DISTIL, DistilSettings

    distil = parts.add_parser("distil", help="train an acceleration: letters in one to four steps")
    distil.add_argument(
        "--guidance",
        type=_range,
        metavar="W,W",
        help="weight of the teacher's guidance, or the ends of a range of weights; default: "
        + ",".join(map(str, DistilSettings.guidance)),
    )
    _add_training(distil, DistilSettings, ALL_WEIGHTS_DISTIL, r=16)
    distil.set_defaults(run=run_distil)


def _add_training(
    parser: Any, settings: Any, full: Mapping[str, Any], r: int, more_steps: str = ""
) -> None:
    """Add the options of a training on a base; `full` has the defaults that --full changes."""
    parser.add_argument("--base", help="the folder of a base", **FOLDER)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--r", type=int, default=r, metavar="R", help=f"rank of LoRA; default: {r}")
    how.add_argument("--full", action="store_true", help="train all weights, without LoRA")
    steps, lr = (
        f"{getattr(settings, name)}" + (f", with --full: {full[name]}" if name in full else "")
        for name in ("steps", "lr")
    )
    _add_setting(parser, "--steps", int, "steps of the training", steps + more_steps)
    _add_setting(parser, "--lr", float, "learning rate", lr, "X")
    parser.add_argument("--out", help="a new folder for the adapter", **FOLDER)
    _add_seed(parser)


def _add_setting(
    parser: Any, option: str, kind: Any, what: str, default: Any, metavar: str = "N", **how: Any
) -> None:
    """Add an option that is None unless it is given; None stands for the setting's default."""
    said = f"{what}; default: {default}"
    parser.add_argument(option, type=kind, metavar=metavar, help=said, **how)


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the settings that were given, by name."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _add_sample(parts: Any) -> None:
    sample = parts.add_parser(
        "sample",
        help="draw letters, and write them as a PNG",
        epilog='Example: lora-np images sample --base b --adapter bold --weight 1.25 --text "LORA" '
        "--out lora.png",
    )
    add = sample.add_argument
    add("--base", help="the folder of a base", **FOLDER)
    add("--adapter", action=_Weighed, type=Path, metavar="DIR",
        help="a style or an acceleration of this base; may be given several times")  # fmt: skip
    add("--weight", action=_Weighed, type=float, metavar="W",
        help="weight of the --adapter before it; default: 1")  # fmt: skip
    what = sample.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="WORDS", help='a letter, a family or both: "serif R"')
    what.add_argument("--text", metavar="LETTERS", help="one image of each letter, in a row")
    add("--family", metavar="NAME", help="sans, serif or mono, for --text; default: any")
    number = "number of images of a prompt, or of rows of a text; default: 8 images, 1 row"
    add("--n", type=int, metavar="N", help=number)
    add("--sampler", choices=tuple(STEPS),
        help="default: the one that the adapters were distilled for, else ddim")  # fmt: skip
    steps = ", ".join(f"{sampler} {number}" for sampler, number in STEPS.items())
    add("--steps", type=int, metavar="N", help=f"steps of the sampler; default: {steps}")
    guidance = "weight of guidance: 0 ignores the prompt, above 1 exaggerates it; default: 1"
    add("--guidance", type=float, default=1.0, metavar="W", help=guidance)
    add("--out", type=Path, required=True, metavar="FILE", help="a new .png file")
    _add_seed(sample)
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


def _add_seed(parser: Any) -> None:
    said = "seed of all random draws; default: 0"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=said)


def _range(text: str) -> tuple[float, float]:
    """Return the two ends of a range; one number is both."""
    try:
        ends = sorted(float(part) for part in text.split(","))
        low, *high = ends
        if len(high) > 1 or not all(math.isfinite(end) for end in ends):
            raise ValueError
    except ValueError:
        expected = "expected a number, or two as in 1,1.5"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None
    return low, ends[-1]


# --------------------------------------------------------------------------------- training


def run_base(arguments: argparse.Namespace) -> int:
    """Train a base, or continue one that was stopped."""
    from lora_np.images.folder import load_base, make_base
    from lora_np.images.training import BaseSettings

    a, quick = arguments, QUICK if arguments.quick else {}
    settings = BaseSettings(**{**quick, **_given(a, "k")})
    _expect_seed(a.seed)
    start = time.perf_counter()
    try:
        with _plain_warnings(), _Bar(settings.steps) as bar:
            make_base(a.out, settings, a.seed, take_over=a.take_over, after=bar)
    except KeyboardInterrupt:
        print(f"\nstopped: run the same command to continue in {a.out}", file=sys.stderr)
        return 130
    base = load_base(a.out)
    number = sum(p.size for p in base.denoiser.parameters().values())
    said = "a quick base, which draws worse: " if a.quick else ""
    print(
        f"{said}{number:,} weights, {base.codec.k} latents, {time.perf_counter() - start:.0f} "
        f"seconds\nwritten to {a.out}/"
    )
    return 0


def run_refine(arguments: argparse.Namespace) -> int:
    """Put convolutional networks around a base."""
    from lora_np.images.folder import refine_base

    _expect_seed(arguments.seed)
    refine_base(arguments.base, arguments.out, arguments.seed)
    print(f"a base that can learn what is local in an image\nwritten to {arguments.out}/")
    return 0


def run_style(arguments: argparse.Namespace) -> int:
    """Train a style."""
    from lora_np.images.latent import NotHeld
    from lora_np.images.refiner import REFINED_STYLE, Refined
    from lora_np.images.training import ALL_WEIGHTS_STYLE, Base, StyleSettings, train_style

    def settings_for(base: Base) -> StyleSettings:
        around = REFINED_STYLE if isinstance(base.denoiser, Refined) else {}
        recipe = ALL_WEIGHTS_STYLE if arguments.full else around
        given = _given(arguments, "style", "images", "of", "steps", "lr")
        return StyleSettings(**{**recipe, **given})

    about = {"kind": "style", "style": arguments.style or StyleSettings.style}
    try:
        return _train(arguments, train_style, settings_for, about)
    except NotHeld as error:
        way_out = f"lora-np images base --k {error.k} --out DIR makes such a base"
        raise ValueError(f"{error}: {way_out}") from None


def run_distil(arguments: argparse.Namespace) -> int:
    """Train an acceleration."""
    from lora_np.images.training import ALL_WEIGHTS_DISTIL, Base, DistilSettings, distil

    def settings_for(base: Base) -> DistilSettings:
        recipe = ALL_WEIGHTS_DISTIL if arguments.full else {}
        return DistilSettings(**{**recipe, **_given(arguments, "guidance", "steps", "lr")})

    guidance = arguments.guidance or DistilSettings.guidance
    about = {"kind": "lcm", "sampler": "consistency", "guidance": list(guidance)}
    return _train(arguments, distil, settings_for, about)


def _train(
    arguments: argparse.Namespace, train: Any, settings_for: Any, about: dict[str, Any]
) -> int:
    """Train something on a base, and write it as an adapter."""
    from dataclasses import asdict

    import numpy as np

    from lora_np.adapters.write import new_folder
    from lora_np.crew import one_blas_thread
    from lora_np.images.adapters import method_of, save_trained
    from lora_np.images.folder import load_base

    a = arguments
    _expect_seed(a.seed)
    new_folder(a.out)  # before the work
    base, rng, start = load_base(a.base), np.random.default_rng(a.seed), time.perf_counter()
    settings = settings_for(base)
    method = method_of(None if a.full else a.r, base.denoiser)
    with _plain_warnings(), one_blas_thread(), _Bar(settings.steps) as bar:
        trained = train(base, method, rng, settings, after=bar)
    about |= {"settings": asdict(settings), "seed": a.seed}
    save_trained(a.out, trained, base, a.base.resolve().name, about)
    number = sum(p.size for p in trained.parameters().values() if p.trainable)
    print(f"{number:,} weights, {time.perf_counter() - start:.0f} seconds\nwritten to {a.out}/")
    return 0


def run_sample(arguments: argparse.Namespace) -> int:
    """Draw letters, and write them to a picture that says how."""
    import numpy as np

    from lora_np import images
    from lora_np.crew import one_blas_thread
    from lora_np.images.adapters import adapted, cautions, needed_sampler
    from lora_np.images.folder import load_base
    from lora_np.images.sheet import save_png

    a = arguments
    _expect_seed(a.seed)
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
        _warn(caution)
    about = {"seed": a.seed, "sampler": sampler, **how, "adapters": list(zip(folders, weights))}
    save_png(a.out, drawn, columns, _metadata(a, about))
    print(f"{len(drawn)} letters by {sampler} in {steps} steps\nwritten to {a.out}")
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
    asked = _given(arguments, "prompt", "text", "family", "n")
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in {**asked, **about, "base": base}.items()
    }
    return {**texts, "Software": f"lora_np {__version__}"}


# ------------------------------------------------------------------------------------ shared


def _expect_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"--seed {seed}: expected at least 0")


def _warn(message: Any) -> None:
    print(f"lora-np: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning, such as of a missing font, as one line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *where, **more: _warn(message)
        yield


class _Bar:
    """A progress bar of training steps on a screen; nothing elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.bar, self.is_screen = steps, None, sys.stderr.isatty()

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, model: Any, step: int, gradient: Any) -> None:
        """Show that a step is done; it may have begun in another process."""
        if not self.is_screen:
            return
        if self.bar is None:
            self.bar: Any = progress_bar(total=self.steps, initial=step, unit=" steps")
        self.bar.update()

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
