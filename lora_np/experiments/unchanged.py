"""A base that many adapters share: is it the same, bit for bit, after a training?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from lora_np.backend import to_host
from lora_np.experiments.folder import SweepError
from lora_np.layers import Layer
from lora_np.tables import first_of


def parameter_hashes(model: Layer) -> dict[str, str]:
    """Return a SHA-256 of the bytes of every Parameter by name, as stored, with dtype and shape.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear
    >>> from lora_np.experiments.unchanged import parameter_hashes
    >>> layer = Linear(3, 2, np.random.default_rng(0))
    >>> before = parameter_hashes(layer)
    >>> layer.W.value[0, 0] = np.nextafter(layer.W.value[0, 0], np.float32(1))
    >>> [name for name, sha in parameter_hashes(layer).items() if sha != before[name]]
    ['W']
    """
    found = {}
    for name, p in model.parameters().items():
        sha = hashlib.sha256()
        for end, array in p.arrays().items():
            host = np.ascontiguousarray(to_host(array))
            sha.update(f"{end} {host.dtype} {host.shape}\n".encode())
            sha.update(host.tobytes())
        found[name] = sha.hexdigest()
    return found


def whole(found: Mapping[str, str]) -> str:
    """Return one SHA-256 of the hashes of all Parameters."""
    return hashlib.sha256("".join(found.values()).encode()).hexdigest()


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str], name: str) -> None:
    """Raise SweepError if a training has changed the base; the message names its Parameters."""
    changed = [p for p in {**before, **after} if before.get(p) != after.get(p)]
    if changed:
        raise SweepError(
            f"training {name} changed {first_of(changed)} of the base, which all adapters share: "
            "train an adapter over it (lora_np.inject)"
        )
