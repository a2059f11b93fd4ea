"""Letters drawn by a diffusion model: ``images`` and its commands that train."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lora_np.cli.images_report import add_report
from lora_np.cli.images_sample import FOLDER, add_sample, add_seed, expect_seed, given
from lora_np.cli.parsing import MODEL, OUTPUT, TRAINING, OneLineParser
from lora_np.cli.says import note
from lora_np.crew import progress_bar
from lora_np.progress import log, shows_bars

QUICK = {"images": 4000, "k": 96, "d": 128, "d_hidden": 256, "n_block": 2, "steps": 600}


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
    add_sample(parts)
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
    add_seed(base)
    base.set_defaults(run=run_base)


def _add_refine(parts: Any) -> None:
    said = "put small convolutions around a base, for styles such as outline"
    refine = parts.add_parser("refine", help=said)
    refine.add_argument("--base", help="the folder of a base", **FOLDER)
    refine.add_argument("--out", help="a new folder for a base", **FOLDER)
    add_seed(refine)
    refine.set_defaults(run=run_refine)


def _add_style(parts: Any) -> None:
    from lora_np.images.glyphs import STYLES
    from lora_np.images.refiner import REFINED_STYLE
    from lora_np.images.training import ALL_WEIGHTS_STYLE, StyleSettings

    style = parts.add_parser("style", help="train a style on a few images of some letters")
    names = ", ".join(STYLES)
    group = style.group(MODEL)
    _add_setting(group, "--style", str, names, StyleSettings.style, metavar="NAME")
    _add_setting(group, "--images", int, "number of images to learn from", StyleSettings.images)
    shown = "the letters that the images show"
    _add_setting(group, "--letters", str, shown, StyleSettings.of, "ABC...", dest="of")
    around = f"; on a refined base: {REFINED_STYLE['steps']}"
    _add_training(style, StyleSettings, ALL_WEIGHTS_STYLE, r=4, more_steps=around)
    style.set_defaults(run=run_style)


def _add_distil(parts: Any) -> None:
    from lora_np.images.training import ALL_WEIGHTS_DISTIL, DistilSettings

    distil = parts.add_parser("distil", help="train an acceleration: letters in one to four steps")
    distil.group(MODEL).add_argument(
        "--guidance",
        type=_range,
        metavar="W,W",
        help="weight of the teacher's guidance, or the ends of a range of weights; default: "
        + ",".join(map(str, DistilSettings.guidance)),
    )
    _add_training(distil, DistilSettings, ALL_WEIGHTS_DISTIL, r=16)
    distil.set_defaults(run=run_distil)


def _add_training(
    parser: OneLineParser, settings: Any, full: Mapping[str, Any], r: int, more_steps: str = ""
) -> None:
    """Add the options of a training on a base; `full` has the defaults that --full changes."""
    parser.group(MODEL).add_argument("--base", help="the folder of a base", **FOLDER)
    group = parser.group(TRAINING)
    how = group.add_mutually_exclusive_group()
    how.add_argument("--r", type=int, default=r, metavar="R", help=f"rank of LoRA; default: {r}")
    how.add_argument("--full", action="store_true", help="train all weights, without LoRA")
    steps, lr = (
        f"{getattr(settings, name)}" + (f", with --full: {full[name]}" if name in full else "")
        for name in ("steps", "lr")
    )
    _add_setting(group, "--steps", int, "steps of the training", steps + more_steps)
    _add_setting(group, "--lr", float, "learning rate", lr, "LR")
    add_seed(group)
    parser.group(OUTPUT).add_argument("--out", help="a new folder for the adapter", **FOLDER)


def _add_setting(
    group: Any, option: str, kind: Any, what: str, default: Any, metavar: str = "N", **how: Any
) -> None:
    """Add an option that is None unless it is given; None stands for the setting's default."""
    said = f"{what}; default: {default}"
    group.add_argument(option, type=kind, metavar=metavar, help=said, **how)


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
    settings = BaseSettings(**{**quick, **given(a, "k")})
    expect_seed(a.seed)
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
    note(
        f"{said}{number:,} weights, {base.codec.k} latents, {time.perf_counter() - start:.0f} "
        f"seconds\nwritten to {a.out}/"
    )
    return 0


def run_refine(arguments: argparse.Namespace) -> int:
    """Put convolutional networks around a base."""
    from lora_np.images.folder import refine_base

    expect_seed(arguments.seed)
    refine_base(arguments.base, arguments.out, arguments.seed)
    note(f"a base that can learn what is local in an image\nwritten to {arguments.out}/")
    return 0


def run_style(arguments: argparse.Namespace) -> int:
    """Train a style."""
    from lora_np.images.latent import NotHeld
    from lora_np.images.refiner import REFINED_STYLE, Refined
    from lora_np.images.training import ALL_WEIGHTS_STYLE, Base, StyleSettings, train_style

    def settings_for(base: Base) -> StyleSettings:
        around = REFINED_STYLE if isinstance(base.denoiser, Refined) else {}
        recipe = ALL_WEIGHTS_STYLE if arguments.full else around
        chosen = given(arguments, "style", "images", "of", "steps", "lr")
        return StyleSettings(**{**recipe, **chosen})

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
        return DistilSettings(**{**recipe, **given(arguments, "guidance", "steps", "lr")})

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
    expect_seed(a.seed)
    new_folder(a.out)  # before the work
    base, rng, start = load_base(a.base), np.random.default_rng(a.seed), time.perf_counter()
    settings = settings_for(base)
    method = method_of(None if a.full else a.r, base.denoiser)
    with _plain_warnings(), one_blas_thread(), _Bar(settings.steps) as bar:
        trained = train(base, method, rng, settings, after=bar)
    about |= {"settings": asdict(settings), "seed": a.seed}
    save_trained(a.out, trained, base, a.base.resolve().name, about)
    number = sum(p.size for p in trained.parameters().values() if p.trainable)
    note(f"{number:,} weights, {time.perf_counter() - start:.0f} seconds\nwritten to {a.out}/")
    return 0


# ------------------------------------------------------------------------------------ shared


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning, such as of a missing font, as one line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *where, **more: log.warning(str(message))
        yield


class _Bar:
    """A progress bar of training steps on a screen; nothing elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.bar, self.is_screen = steps, None, shows_bars()

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
