"""Read the layer and the kind of a module from its name."""

from __future__ import annotations

import re
from collections.abc import Sequence


def layers_and_kinds(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (layer, kind) of each module: the first number in its name, and its last part.

    If two modules would get the same place, the kind is everything after the number; if that is
    not enough, the layer is everything up to and including the number. Without a number, the layer
    is "".

    Parameters
    ----------
    names : sequence of str
        "model.layers.3.self_attn.q_proj", or kohya's "lora_te_layers_3_self_attn_q_proj". The kind
        of a name without dots is the part after the last number.

    Examples
    --------
    >>> from lora_np.adapters.kinds import layers_and_kinds
    >>> layers_and_kinds(["model.layers.3.self_attn.q_proj", "lora_te_layers_3_self_attn_q_proj"])
    [('3', 'q_proj'), ('3', 'self_attn_q_proj')]
    """
    found: list[tuple[str, str]] = []
    for split in (_short_place, _middle_place, _long_place):
        found = [split(name) for name in names]
        if len(set(found)) == len(set(names)):
            break
    return found


NUMBER = re.compile(r"(?<![^._])(\d+)(?![^._])")


def _short_place(name: str) -> tuple[str, str]:
    number = NUMBER.search(name)
    last = name.split(".")[-1] if "." in name else NUMBER.split(name)[-1].lstrip("_")
    return (number[1] if number else ""), last or name


def _middle_place(name: str) -> tuple[str, str]:
    number = NUMBER.search(name)
    return (number[1], name[number.end() :].lstrip("._") or name) if number else ("", name)


def _long_place(name: str) -> tuple[str, str]:
    number = NUMBER.search(name)
    return (name[: number.end()], name[number.end() :].lstrip("._")) if number else ("", name)
