"""Adapters of an image model: what is trained, how adapters are kept, weighed and added.

A style and an acceleration are changes of the same weights, tau = W - W0, so they can be added::

    W = W0 + l1 tau_style + l2 tau_LCM

This is task arithmetic; with LoRA each tau is s B A, and the sum is one LoRA of concatenated
factors, which ``lora-np combine`` writes too. The adapters are ordinary folders. The record in each
names the base and its codec, and for an acceleration the sampler that it was distilled for.

Sources: Luo et al. (2023), LCM-LoRA, arXiv:2311.05556; Ilharco et al. (2022), Editing Models with
Task Arithmetic, arXiv:2212.04089.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lora_np import __version__
from lora_np.adapters import combine_adapters, load_adapter, save_adapter
from lora_np.adapters.on_model import fields_in, is_plain_lora
from lora_np.files import CheckpointError
from lora_np.images.denoiser import Denoiser
from lora_np.images.folder import digests_of
from lora_np.images.refiner import AROUND, Refined
from lora_np.images.samplers import SAMPLERS
from lora_np.images.training import Base
from lora_np.methods import MethodConfig, make_method
from lora_np.pretrained.find import expect_base, record_of_adapter
from lora_np.reading import shown
from lora_np.tables import counted

TARGETS = "all-linear"  # what LoRA adapts in a denoiser
Folders = Sequence[str | Path]


def method_of(r: int | None, denoiser: Denoiser | None = None) -> MethodConfig:
    """Return what is trained: LoRA of rank `r`, or all weights for None.

    Parameters
    ----------
    r : int or None
    denoiser : Denoiser, optional
        LoRA adapts all its linear layers; in a Refined, the convolutional networks alone.

    Examples
    --------
    >>> from lora_np.images.adapters import method_of
    >>> method_of(4).name, method_of(None).name
    ('lora', 'full')
    """
    if r is None:
        return make_method("full")
    where = AROUND if isinstance(denoiser, Refined) else {"target_modules": TARGETS}
    return make_method("lora", r=r, lora_alpha=r, **where)


def save_trained(
    folder: str | Path, trained: Denoiser, base: Base, name: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write an adapter of an image model with its record, and return the record.

    Parameters
    ----------
    folder : str or Path
        A new or an empty folder.
    trained : Denoiser
        From :func:`~lora_np.images.train_style` or :func:`~lora_np.images.distil`.
    base : Base
        What it was trained on.
    name : str
        What the base is called.
    about : mapping
        How it was trained. A ``sampler`` in it is the only one that the adapter fits.
    """
    record = {
        "base": {"name": name, **digests_of(base)},
        **about,
        "versions": {"lora_np": __version__, "numpy": np.__version__},
    }
    save_adapter(trained, folder, base_model=name, record=record)
    return record


def expect_made_on(base: Base, folder: str | Path) -> None:
    """Raise CheckpointError if an adapter's record names another base or another codec.

    An adapter without a record passes.
    """
    expect_base(folder, base.denoiser)
    made_on = record_of_adapter(folder).get("base")
    made_on = made_on if isinstance(made_on, dict) else {}
    found = digests_of(base)
    others = {"weights": "another base's weights", "codec": "latents of another codec"}
    for name, what in others.items():
        expected = made_on.get(name)
        if expected is not None and expected != found[name]:
            raise CheckpointError(
                f"{folder} was trained on {what} ({shown(expected)}; this base has "
                f"{found[name]!r}): give the base that it was trained on"
            )


def adapted(base: Base, folders: Folders, weights: Sequence[float]) -> Denoiser:
    """Return the denoiser of a base with the weighted sum of adapters.

    Parameters
    ----------
    base : Base
        It stays as it was.
    folders : sequence of str or Path
        Adapters of this base.
    weights : sequence of float
        One for each adapter. An adapter of weight 0 is left out.

    Raises
    ------
    CheckpointError
        If a file is broken, or an adapter was trained on another base or another codec.
    ValueError
        If a weight is missing or not finite, or if an adapter that is not LoRA has a weight other
        than 1 or is not the only one.
    """
    if len(folders) != len(weights):
        number = counted(len(weights), "weight")
        raise ValueError(f"{number} for {counted(len(folders), 'adapter')}: give one for each")
    for folder, weight in zip(folders, weights):
        if not math.isfinite(weight):
            raise ValueError(f"weight {weight} of {folder}: expected a finite number")
        expect_made_on(base, folder)
    used = [folder for folder, weight in zip(folders, weights) if weight]
    weights = [weight for weight in weights if weight]
    if not used:
        return base.denoiser
    if weights == [1.0]:
        return load_adapter(base.denoiser, used[0])
    for folder in used:
        if not is_plain_lora(fields_in(folder)):
            raise ValueError(
                f"{folder} is not LoRA, which alone can be weighed and added: use it with weight 1 "
                f"and without other adapters, or train it with --r"
            )
    if len(used) == 1:
        return _scaled(load_adapter(base.denoiser, used[0]), weights[0])
    with TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        combine_adapters(used, weights, f"{temporary}/sum")
        return load_adapter(base.denoiser, f"{temporary}/sum")


def _scaled(model: Denoiser, weight: float) -> Denoiser:
    """Multiply the change of a model with LoRA, s B A, by a weight, in place."""
    for name, p in model.parameters().items():
        if p.trainable and name.endswith(".B"):
            p.value *= weight
    return model


# ------------------------------------------------------------------------- which sampler fits


def needed_sampler(folders: Folders, weights: Sequence[float]) -> str | None:
    """Return the sampler that the adapters were distilled for; None if they fit every sampler.

    Adapters of weight 0 do not count.
    """
    needs = [sampler for sampler, _, _ in _needs(folders, weights)]
    return needs[0] if needs else None


def cautions(
    folders: Folders, weights: Sequence[float], sampler: str, steps: int, guidance: float
) -> list[str]:
    """Return warnings about a choice that will not draw as it should, each with the reason.

    Parameters
    ----------
    folders, weights
        As for :func:`~lora_np.images.adapted`.
    sampler : str
        A key of ``SAMPLERS``.
    steps : int
    guidance : float
    """
    needs, said = _needs(folders, weights), []
    for needed, folder, built_in in needs:
        if sampler != needed:
            said.append(
                f"{folder} was distilled for the sampler {needed}, not {sampler}: its x0 is the "
                f"end of a path, and gives no direction to step along"
            )
        if guidance != 1.0:
            said.append(
                f"{folder} has guidance {built_in} built in, and guidance {guidance:g} changes the "
                f"letters once more: use 1"
            )
    if sampler == "consistency" and not needs:
        blur = "a blur" if steps == 1 else "and each step adds fresh noise to it"
        said.append(
            f"no adapter is distilled for the sampler consistency: x0 is the mean of all images "
            f"that can have been under the noise, {blur}"
        )
    return said


def _needs(folders: Folders, weights: Sequence[float]) -> list[tuple[str, str | Path, str]]:
    """Return the sampler of each adapter that needs one, its folder, and its guidance in words."""
    found = []
    for folder in (folder for folder, weight in zip(folders, weights) if weight):
        record = record_of_adapter(folder)
        sampler, guidance = record.get("sampler"), record.get("guidance")
        if sampler in list(SAMPLERS):  # another's record may hold anything
            ends = map(str, guidance) if isinstance(guidance, list) else ["of its own"]
            found.append((sampler, folder, " to ".join(dict.fromkeys(ends))))
    return found
