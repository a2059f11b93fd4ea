r"""Convert an adapter of any method that merges to plain LoRA: the nearest one of W - W0.

Servers and runtimes read LoRA only. A merged method is a weight W, so its change W - W0 is a
matrix, and LoRA's nearest change of rank r keeps the r largest singular values::

    min over B (out, r), A (r, in) of ||W - W0 - B A||_F = sqrt(sum_{i > r} sigma_i^2)

The rank is that of a matrix in the file: GPT-2's c_attn, which stacks q, k and v, gets one B A.

A file in PEFT's form needs no model, and one weight is in memory at a time (on_checkpoint.py). Our
own form names the layers of a model of ours, which is therefore built first.

Methods round: DoRA at its start changes W0 by the rounding of its lengths, at full rank. So what is
below float32's eps times ||W0||_F in spectral norm, which bounds such errors, is no change.

LoRA holds changes of matrices only. Other changes, of biases and norms, are measured and left out.

Source: Eckart, Young: The approximation of one matrix by another of lower rank. Psychometrika 1
(1936).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters.cut import Keep, naming
from lora_np.adapters.extract import Extracted, nearest
from lora_np.adapters.file import CONFIG
from lora_np.adapters.on_checkpoint import Change, of_checkpoint
from lora_np.adapters.on_model import load_adapter
from lora_np.adapters.peft_config import ORIGIN
from lora_np.adapters.weights import CONV1D_MODELS, model_type
from lora_np.adapters.write import Written, named_tensors, write_adapter
from lora_np.backend import to_host
from lora_np.files import load_json, open_weights
from lora_np.layers import Layer, Linear, copy_model
from lora_np.methods import merge
from lora_np.methods.contract import METHOD_FIELD, Fields
from lora_np.methods.file_form import of_file
from lora_np.methods.peft_lora import as_fields
from lora_np.methods.stacked import homes_of
from lora_np.parameters import Parameter
from lora_np.pretrained import file_layout, load_model
from lora_np.pretrained.find import expect_base, kept_of_records
from lora_np.tables import listed

EPS = float(np.finfo(np.float32).eps)  # files and models round W to a part of this, or less


def convert_adapter(
    adapter: str | Path,
    base: str | Path | Layer,
    folder: str | Path,
    keep: Keep,
    rng: np.random.Generator | None = None,
) -> Extracted:
    """Write the plain LoRA adapter that is nearest to an adapter of another method, in float32.

    Parameters
    ----------
    adapter : str or Path
        An adapter that :func:`~lora_np.adapters.load_adapter` can read, of a method that merges.
    base : str, Path or Layer
        The weights that it adapts: a safetensors file, a Hugging Face folder, or a model. An
        adapter in lora_np's own form needs a model, or the folder of one that lora_np has.
    folder : str or Path
        A new or an empty folder.
    keep : Keep
        How many directions to keep of each matrix of the base.
    rng : numpy.random.Generator, optional
        For the randomised SVD of large matrices; by default a generator with a fixed seed.

    Returns
    -------
    Extracted
        Its `fits` are the errors of the matrices. `beyond` are the changes that are left out.

    Raises
    ------
    CheckpointError
        If a file is broken or quantised, or does not fit the other, the folder is not empty, or the
        adapter's ``training.json`` names another base.
    ValueError
        If the method does not merge, or changes no matrix by more than rounding. Nothing is then
        written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import MLP, Keep, convert_adapter, inject, save_adapter
    >>> from lora_np.methods import DoraConfig
    >>> base = MLP(4, 8, rng := np.random.default_rng(0))
    >>> adapted = inject(base, DoraConfig(r=1, target_modules=["up_proj"]), rng)
    >>> adapted.up_proj.m.value *= 2.0  # so that W - W0 = W0, of rank 4
    >>> with tempfile.TemporaryDirectory() as d:
    ...     save_adapter(adapted, f"{d}/dora")
    ...     found = convert_adapter(f"{d}/dora", base, f"{d}/lora", Keep(rank=4))
    >>> found.fits[0].name, found.fits[0].r, found.fits[0].written < 1e-6 * found.fits[0].norm
    ('up_proj', 4, True)
    """
    fields, found = _config(adapter), Extracted()
    with ExitStack() as stack:
        flag, changes = _changes(adapter, base, fields, found, stack)
        modules = _truncated(changes, keep, rng or np.random.default_rng(0), found, str(adapter))
        of_base = {**_origin(fields), "record": kept_of_records([adapter])}
        write_adapter(folder, modules, dtype=None, fan_in_fan_out=flag, **of_base)
    return found


def _origin(fields: Fields) -> dict[str, Any]:
    """Return what the new config says of the base, as arguments of ``write_adapter``."""
    origin = {key: fields[key] for key in ORIGIN if fields.get(key) is not None}
    return {"base_model": fields.get("base_model_name_or_path"), "origin": origin}


def _changes(
    adapter: str | Path,
    base: str | Path | Layer,
    fields: Fields,
    found: Extracted,
    stack: ExitStack,
) -> tuple[bool, Iterator[Change]]:
    """Return fan_in_fan_out of the base's files, and the changes; `stack` closes the files."""
    if isinstance(base, Layer) or METHOD_FIELD in fields:
        model = base if isinstance(base, Layer) else load_model(base, np.float64)
        model = copy_model(model, dtype=np.float64)
        adapted = load_adapter(model, adapter)
        return file_layout(model).fan_in_fan_out, of_model(adapted, model, found)
    weights = stack.enter_context(open_weights(base))
    expect_base(adapter, weights)
    flag = bool(fields.get("fan_in_fan_out")) or model_type(base) in CONV1D_MODELS
    return flag, of_checkpoint(adapter, weights, flag, found)


def _config(adapter: str | Path) -> dict[str, Any]:
    """Return the fields of an adapter's config; none for a single file."""
    path = Path(adapter) / CONFIG
    fields = load_json(path) if path.is_file() else {}
    return fields if isinstance(fields, dict) else {}


def nearest_lora(
    adapted: Layer, base: Layer, keep: Keep, rng: np.random.Generator | None = None
) -> tuple[Any, Extracted]:
    """Return a model with the plain LoRA that is nearest to its adapters, and the errors.

    Layers that a file stacks in one matrix get one A; see :func:`convert_adapter`.

    Parameters
    ----------
    adapted : Layer
        From ``inject`` or ``load_adapter``; its method must merge.
    base : Layer
        The plain model that it was adapted from; the result shares its arrays.
    keep : Keep
        How many directions to keep of each matrix in the base's files.
    rng : numpy.random.Generator, optional
        For the randomised SVD of large matrices; by default a generator with a fixed seed.

    Raises
    ------
    ValueError
        If the method does not merge, or changes no matrix by more than rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, Keep, inject, nearest_lora
    >>> from lora_np.methods import DoraConfig
    >>> rng = np.random.default_rng(0)
    >>> base, x = MLP(4, 8, rng), np.ones((1, 4), np.float32)
    >>> adapted = inject(base, DoraConfig(r=1, target_modules=["up_proj"]), rng)
    >>> adapted.up_proj.m.value *= 2.0
    >>> lora, found = nearest_lora(adapted, base, Keep(rank=4))
    >>> type(lora.up_proj).__name__, np.allclose(lora.forward(x)[0], adapted.forward(x)[0])
    ('LoRALinear', True)
    """
    found, rng = Extracted(), rng or np.random.default_rng(0)
    modules = _truncated(of_model(adapted, base, found), keep, rng, found, "the adapter")
    tensors, ranks, scales = named_tensors(modules)
    return of_file(as_fields(ranks, scales), tensors, base, file_layout(base).places), found


def _truncated(
    changes: Iterator[Change], keep: Keep, rng: np.random.Generator, found: Extracted, source: str
) -> Iterator[Written]:
    """Yield the nearest factors of each change; raise ValueError if there are none."""
    for name, W0, W in changes:
        if np.array_equal(W0, W):
            found.rounding.append(name)
            continue
        with naming(name):
            floor, delta = EPS * float(np.linalg.norm(W0)), W.astype(np.float64) - W0
            modules = list(nearest(name, delta, keep, floor, rng, found))
        yield from modules
    if not found.fits and found.beyond:
        raise ValueError(
            f"{source} changes only {listed(list(found.beyond))}, which plain LoRA cannot hold: "
            "load it onto its model with load_adapter, and merge it there"
        )
    if not found.fits:
        raise ValueError(f"{source} changes no matrix by more than rounding: it was not trained")


# ------------------------------------------------------------------------------- on a model of ours


def of_model(adapted: Layer, base: Layer, found: Extracted) -> Iterator[Change]:
    """Yield W0 and W of each matrix in a model's files that its adapters change.

    Parameters
    ----------
    adapted, base : Layer
        A model with adapters, and without.
    found : Extracted
        Gets all other changes.
    """
    plain = merge(adapted)
    merged, layers = {"": plain, **plain.modules()}, {"": base, **base.modules()}
    for path, layer in merged.items():
        before = dict(layers[path].parts()) if path in layers else {}
        for name, p in layer.parts():
            if isinstance(p, Parameter) and not (isinstance(layer, Linear) and name == "W"):
                old: Any = before.get(name)
                full = f"{path}.{name}" if path else name
                found.leave_out(full, 0.0 if old is None else to_host(old.value), to_host(p.value))
    for name, homes in homes_of(base, file_layout(base).places).items():
        _, place, first = homes[0]
        W0 = np.zeros((place.total, first.W.shape[1]), first.W.dtype)  # (all rows, in)
        W = W0.copy()
        for path, (_, start, _), layer in homes:
            rows = slice(start, start + layer.d_out)
            W0[rows], W[rows] = to_host(layer.W.value), to_host(merged[path].W.value)
        if not np.array_equal(W0, W):
            yield name, W0, W
