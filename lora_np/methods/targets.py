"""Find the modules that a configuration names: by the ends of their paths, by a pattern, or all.

The rules of matching are PEFT's. A list holds names ("q_proj") or longer ends of a path
("0.attn.q_proj"); a string is "all-linear" or a regular expression for the whole path. The keys of
rank_pattern and alpha_pattern are regular expressions for the end of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from lora_np.layers import Embedding, Layer, Linear
from lora_np.patterns import Pattern, at_the_end

KINDS: dict[type[Layer], str] = {Linear: "linear layer", Embedding: "embedding"}


def linear_paths(
    model: Layer,
    targets: Sequence[str] | str,
    blocks: int | Sequence[int] | None = None,
    kinds: tuple[type[Layer], ...] = (Linear,),
) -> list[str]:
    """Return the paths of the layers that `targets` names, in the model's order.

    Parameters
    ----------
    model : Layer
    targets : sequence of str, or str
        Names or ends of paths, or "all-linear", or a regular expression for a whole path.
    blocks : int or sequence of int, optional
        Only layers in these blocks; a block is the first number in a path.
    kinds : tuple of types
        The kinds of layers that may be named; "all-linear" names linear layers alone.

    Raises
    ------
    ValueError
        If a target matches no such layer; the message suggests the nearest names.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP
    >>> from lora_np.methods.targets import linear_paths
    >>> linear_paths(MLP(4, 16, np.random.default_rng(0)), ["up_proj"])
    ['up_proj']
    """
    if targets == "all-linear":
        if Linear not in kinds:
            raise ValueError(
                f"target_modules = 'all-linear', but the method adapts {_what(kinds)}s"
            )
        kinds = (Linear,)
    return module_paths(
        model, targets, blocks, lambda layer: isinstance(layer, kinds), _what(kinds)
    )


def _what(kinds: tuple[type[Layer], ...]) -> str:
    return " or ".join(KINDS.get(kind, kind.__name__) for kind in kinds)


def module_paths(
    model: Layer,
    targets: Sequence[str] | str,
    blocks: int | Sequence[int] | None,
    fits: Callable[[Layer], bool],
    what: str,
) -> list[str]:
    """Return the paths of the layers that `fits` admits and `targets` names; `what` they are.

    The other arguments and the errors are those of :func:`linear_paths`.
    """
    modules = {"": model, **model.modules()}
    paths = [path for path, layer in modules.items() if fits(layer)]
    if not paths:
        raise ValueError(f"the model has no {what} to adapt")
    return _in_blocks(_named(paths, targets, what), blocks)


def _in_blocks(chosen: list[str], blocks: int | Sequence[int] | None) -> list[str]:
    """Return the paths that lie in these blocks."""
    if blocks is None:
        return chosen
    blocks = [int(b) for b in np.atleast_1d(blocks)]
    kept = [path for path in chosen if block_of(path) in blocks]
    missing = sorted(set(blocks) - {block_of(path) for path in kept})
    if missing or not kept:
        have = sorted({b for b in map(block_of, chosen) if b is not None})
        raise ValueError(
            f"layers_to_transform names blocks {missing}, but the targets are in blocks {have}"
        )
    return kept


def _named(paths: list[str], targets: Sequence[str] | str, what: str) -> list[str]:
    """Return the paths that match; `what` they lead to is for the error."""
    if targets == "all-linear":
        return paths
    if isinstance(targets, str):
        chosen = [path for path in paths if matches(targets, path)]
        if not chosen and any(ends_with(path, targets) for path in paths):
            raise ValueError(
                f"target_modules {targets!r} is a string, read as a regular expression for a whole "
                f"path: to name modules, pass [{targets!r}]"
            )
        if not chosen:
            raise no_match(targets, paths, what)
        return chosen
    for name in targets:
        if not any(ends_with(path, name) for path in paths):
            raise no_match(name, paths, what)
    return [path for path in paths if matches(targets, path)]


def matches(targets: Sequence[str] | str, path: str) -> bool:
    """Whether a list holds the path or its end, or an expression matches the whole path."""
    if isinstance(targets, str):
        return Pattern(targets).fullmatch(path)
    return any(ends_with(path, name) for name in targets)


def ends_with(path: str, name: str) -> bool:
    """Whether `path` is `name` or ends with ".name"."""
    return path == name or path.endswith(f".{name}")


def no_match(target: str, paths: list[str], what: str, of: str = "target module") -> ValueError:
    """Return an error that suggests the names nearest to `target`."""
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    near = get_close_matches(target, [*names, *paths], n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"the model has {', '.join(names)}"
    return ValueError(f"{of} {target!r} matches no {what}: {hint}")


def block_of(path: str) -> int | None:
    """Return the first number in a path, None if it has none."""
    number = next((part for part in path.split(".") if part.isdigit()), None)
    return None if number is None else int(number)


def check_rank(r: int, path: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError if rank `r` is above the limit of a weight (out, in)."""
    d_out, d_in = shape
    if r > min(d_in, d_out):
        raise ValueError(
            f"rank {r} for {path or 'the layer'} is above the limit {min(d_in, d_out)} of its "
            f"{d_out} x {d_in} weight"
        )


# ------------------------------------------------------------------------------------- patterns


def lookup(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return the value of the first key that matches `path` or its end after a dot."""
    for key, value in (pattern or {}).items():
        if at_the_end(key).match(path):
            return value
    return default


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise PatternError, a ValueError, if a key cannot be used as a regular expression."""
    for key in patterns:
        at_the_end(key)


def check_used(patterns: Iterable[str], paths: list[str]) -> None:
    """Raise ValueError if a key matches none of the paths."""
    for key in patterns:
        if all(lookup({key: True}, path, None) is None for path in paths):
            raise no_match(key, paths, "adapted layer", "pattern")
