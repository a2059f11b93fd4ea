"""The folder of an image model: written while it is trained, read by whatever builds on it.

    image_model.json   body, settings, seed, digests; "complete" once the model is trained
    denoiser.npz       the denoiser's Parameters by name
    codec.npz          mean, basis and scale of the latents
    pretraining.npz    the state of a training that was stopped

The record is written first and completed last, so a folder that says it is complete is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np

from lora_np import __version__
from lora_np.files import CheckpointError, load_arrays, load_json, save_arrays, save_json
from lora_np.files.atomic import replacing_folder, strangers
from lora_np.files.lock import ELSEWHERE, clear, held
from lora_np.images.denoiser import Denoiser, digest_of, mlp_denoiser
from lora_np.images.dit import dit_denoiser
from lora_np.images.latent import SvdCodec
from lora_np.images.refiner import REFINER, Refined, refine
from lora_np.images.training import Base, BaseSettings, train_base
from lora_np.layers import copy_model
from lora_np.pretrained import fingerprint
from lora_np.reading import shown
from lora_np.train import load_parameters, save_parameters
from lora_np.train.loop import AfterStep

CONFIG, WEIGHTS, CODEC = "image_model.json", "denoiser.npz", "codec.npz"
STATE = "pretraining.npz"
LARGEST = 4096  # of a size


def _mlp(codec: SvdCodec, rng: np.random.Generator, **sizes: int) -> Denoiser:
    return mlp_denoiser(rng, **sizes)


BODIES: dict[str, Callable[..., Denoiser]] = {"mlp": _mlp, "dit": dit_denoiser}  # by kind


def save_base(
    folder: str | Path, base: Base, body: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write an image model to a folder, and return the record.

    Parameters
    ----------
    folder : str or Path
        A new or an empty folder. It appears with all its files or not at all.
    base : Base
    body : mapping
        How the denoiser is built: its ``kind``, a key of ``BODIES``, and the arguments of that
        function.
    about : mapping, optional
        What else the record holds, such as the settings of the training and the seed. Under
        ``refiner`` it has the sizes of the networks of a Refined.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.images import BaseSettings, train_base
    >>> from lora_np.images.folder import load_base, save_base
    >>> tiny = BaseSettings(images=200, k=8, d=16, d_hidden=16, n_block=1, steps=2, batch=8)
    >>> base = train_base(np.random.default_rng(0), tiny)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = save_base(folder, base, {"kind": "mlp", **tiny.sizes()})
    ...     again = load_base(folder)
    >>> np.array_equal(again.codec.basis, base.codec.basis), record["codec"] == again.codec.digest()
    (True, True)
    """
    folder = Path(folder)
    if _read(folder):
        raise CheckpointError(f"{folder} already holds an image model: {ELSEWHERE}")
    _expect_empty(folder)
    record = _record(base, body, about or {})
    with replacing_folder(folder.resolve()) as temporary:  # a link is not replaced
        _write(temporary, base, record)
    return record


def load_base(folder: str | Path) -> Base:
    """Read an image model from a folder.

    Raises
    ------
    CheckpointError
        If the folder does not hold a complete image model, or a file in it is damaged or has
        changed.
    """
    folder = Path(folder)
    record = _read(folder)
    if not record:
        raise CheckpointError(
            f"{folder} has no {CONFIG}: give the folder of an image model, which lora-np images "
            f"base --out DIR makes"
        )
    if record.get("complete") is not True:
        raise CheckpointError(
            f"{folder} holds an image model whose training was stopped: run the same command as "
            f"before to continue, or remove it"
        )
    codec = _codec(folder)
    denoiser = _denoiser(folder, record, codec)
    base = Base(denoiser, codec)
    for what, found in digests_of(base).items():
        if record.get(what, found) != found:
            path = CODEC if what == "codec" else WEIGHTS
            raise CheckpointError(f"{folder / path} has changed since {CONFIG} was written")
    return base


def make_base(
    folder: str | Path,
    settings: BaseSettings,
    seed: int,
    *,
    take_over: bool = False,
    after: AfterStep | None = None,
) -> dict[str, Any]:
    """Train an image model in a folder, or continue a training that was stopped there.

    Parameters
    ----------
    folder : str or Path
        A new folder, or one in which the same training was begun.
    settings : BaseSettings
    seed : int
    take_over : bool
        As for :func:`lora_np.files.lock.hold`.
    after : callable, optional
        As for :func:`~lora_np.images.train_base`.

    Returns
    -------
    dict
        The record in the folder. A complete model is only read.

    Raises
    ------
    CheckpointError
        If the folder holds anything else.
    """
    folder, made_with = Path(folder), {"settings": _as_json(asdict(settings)), "seed": seed}
    record = _begun(folder, made_with)
    if record.get("complete"):
        clear(folder)
        return record
    with held(folder, CheckpointError, take_over):
        if not _begun(folder, made_with):  # another process may have written since
            save_json(folder / CONFIG, {"complete": False, **made_with})
        rng, state = np.random.default_rng(seed), folder / STATE
        base = train_base(rng, settings, state=state, after=after)
        body = {"kind": "mlp", **settings.sizes()}
        record = _record(base, body, made_with)
        _write(folder, base, record)
        state.unlink(missing_ok=True)
    return record


def refine_base(folder: str | Path, out: str | Path, seed: int = 0) -> dict[str, Any]:
    """Put convolutional networks around the denoiser of a folder, and write it to another.

    Parameters
    ----------
    folder : str or Path
        A base that is not refined.
    out : str or Path
        A new folder.
    seed : int
        Of the networks' weights.

    Returns
    -------
    dict
        The record in the new folder.

    Raises
    ------
    CheckpointError
        If the base is refined already, or the new folder holds a model.
    """
    base, record = load_base(folder), _read(Path(folder))
    if isinstance(base.denoiser, Refined):
        raise CheckpointError(f"{folder} has convolutions around its denoiser already: use it")
    refined = refine(base, np.random.default_rng(seed), **REFINER)
    about = {name: record[name] for name in ("settings", "seed") if name in record}
    about |= {"refiner": REFINER, "refiner_seed": seed}
    return save_base(out, refined, record["body"], about)


def record_of_base(folder: str | Path) -> dict[str, Any]:
    """Return the digests in the record of an image model, which identify the model."""
    record = _read(Path(folder))
    return {name: record.get(name) for name in ("fingerprint", "weights", "codec")}


def digests_of(base: Base) -> dict[str, str]:
    """Return what identifies an image model: of its gains, of all its weights, of its codec."""
    denoiser = base.denoiser
    digests = {"fingerprint": fingerprint(denoiser), "weights": digest_of(denoiser)}
    return {**digests, "codec": base.codec.digest()}


# ---------------------------------------------------------------------------- what it holds


def _record(base: Base, body: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    versions = {"lora_np": __version__, "numpy": np.__version__, "python": python_version()}
    return {"complete": True, **about, "body": dict(body), **digests_of(base), "versions": versions}


def _write(folder: Path, base: Base, record: Mapping[str, Any]) -> None:
    save_parameters(folder / WEIGHTS, base.denoiser)
    save_arrays(folder / CODEC, base.codec.arrays())
    save_json(folder / CONFIG, record)  # last: it says that the others are complete


def _read(folder: Path) -> dict[str, Any]:
    """Return the record in a folder; an empty dict if there is none."""
    path = folder / CONFIG
    record = load_json(path) if path.is_file() else {}
    if not isinstance(record, dict) or (record and "complete" not in record):
        raise CheckpointError(f"{path} is not the record of an image model: {ELSEWHERE}")
    return record


def _begun(folder: Path, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the same training in a folder; an empty dict for a new folder."""
    record = _read(folder)
    if not record:
        _expect_empty(folder)
        return {}
    for name, before, now in _differences(record, made_with):
        raise CheckpointError(
            f"{folder} was begun with {name} = {shown(before)}, now {shown(now)}: {ELSEWHERE}, or "
            f"remove it"
        )
    return record


def _expect_empty(folder: Path) -> None:
    """Raise CheckpointError if there is a file in place of the folder, or one in it."""
    found = sorted(strangers(folder)) if folder.is_dir() else []
    if found or (folder.exists() and not folder.is_dir()):
        what = found[0].name if found else "a file"
        raise CheckpointError(f"{folder} holds {what}, but no {CONFIG}: {ELSEWHERE}")


def _differences(
    record: Mapping[str, Any], made_with: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the settings in which a record differs: name, before, now."""
    before, now = record.get("settings"), made_with["settings"]
    before = before if isinstance(before, dict) else {}
    pairs = [(name, before.get(name), now.get(name)) for name in {**before, **now}]
    pairs.append(("seed", record.get("seed"), made_with["seed"]))
    return [pair for pair in pairs if pair[1] != pair[2]]


def _denoiser(folder: Path, record: Mapping[str, Any], codec: SvdCodec) -> Denoiser:
    """Return the denoiser of a folder."""
    path, body, around = folder / CONFIG, record.get("body"), record.get("refiner")
    if not isinstance(body, dict) or body.get("kind") not in list(BODIES):  # perhaps no string
        raise CheckpointError(f"{path} names no body that is known: {', '.join(BODIES)}")
    kind, sizes = body["kind"], {name: size for name, size in body.items() if name != "kind"}
    rng = np.random.default_rng(0)  # what it draws is overwritten
    try:
        denoiser = BODIES[kind](codec, rng, **_whole(path, sizes))
        if around is not None:
            kind, inner = "refiner", denoiser
            denoiser = copy_model(Refined(inner, codec, rng, **_whole(path, around)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has sizes that fit no {kind}: {error}") from None
    load_parameters(folder / WEIGHTS, denoiser)
    return denoiser


def _whole(path: Path, sizes: Any) -> dict[str, int]:
    """Return sizes; raise CheckpointError if they are not whole numbers in the expected range."""
    whole = isinstance(sizes, dict) and all(
        type(size) is int and 0 < size <= LARGEST for size in sizes.values()
    )
    if not whole:
        raise CheckpointError(f"{path} has a size that is not a whole number from 1 to {LARGEST}")
    return sizes


def _codec(folder: Path) -> SvdCodec:
    arrays = load_arrays(folder / CODEC)
    try:
        return SvdCodec.of_arrays(arrays)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{folder / CODEC} is not a codec") from None


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(content))
