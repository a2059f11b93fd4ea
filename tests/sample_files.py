"""Tensor files and adapters made for tests, sound and otherwise."""

import json
import struct

import numpy as np

from lora_np.adapters import write_adapter
from lora_np.files import TensorFile

PREFIX = "base_model.model."


def factors(rng, d_out, r, d_in, dtype=np.float32):
    """Random B (out, r) and A (r, in)."""
    return (rng.standard_normal(s).astype(dtype) for s in ((d_out, r), (r, d_in)))


def modules_of(rng, shapes, dtype=np.float32):
    """Adapters (name, B, A, scale) of {name: (out, r, in, scale)}."""
    return [(name, *factors(rng, *shape, dtype), scale) for name, (*shape, scale) in shapes.items()]


def raw(header, data=b"", length=None):
    """The bytes of a safetensors file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start, end, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def tampered(folder, rng, changes=None, tensors=None, shapes=None):
    """An adapter's folder with fields of its config and tensors replaced (None: removed)."""
    write_adapter(folder, modules_of(rng, shapes or {"h.0.q": (6, 2, 5, 2.0)}))
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **(changes or {})}))
    if tensors:
        path = folder / "adapter_model.safetensors"
        with TensorFile(path) as file:
            held = {name: file.read(name, None) for name in file.names}
        held.update({PREFIX + name: x for name, x in tensors.items()})
        save_any(path, {name: x for name, x in held.items() if x is not None})
    return folder


def save_any(path, arrays):
    """Like save_tensors, which refuses what these tests need."""
    from safetensors.numpy import save_file

    save_file(arrays, path)
