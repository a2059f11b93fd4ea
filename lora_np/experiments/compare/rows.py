"""The contenders of the comparison: one line each.

A line is a label, its family, a method with its options, where its search for a learning rate
starts, and the claims that it enters. Starts differ between methods by a factor of a hundred: a
prefix needs rates near 0.4, full fine-tuning needs 0.004. A search moves by factors of two and ends
after seven rates, so a method that starts far from its best rate would look worse than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_np.experiments.study import Contender
from lora_np.methods import make_method
from lora_np.methods.table import hint

FULL, LORA = "full", "lora"  # the rows that others are held against
RANK, LOW, HIGH = 8, 1, 32
TOKENS = 16  # of a prompt and a prefix; a text may be so much shorter than the context

PLAIN, REWEIGHTED, INSERTED, BEFORE, FEW, CONTROL = FAMILIES = (
    "LoRA",
    "weights made otherwise",
    "adapters in the path",
    "before the text",
    "few of the base's numbers",
    "references and controls",
)


@dataclass(frozen=True)
class Row:
    """A contender of the comparison.

    Parameters
    ----------
    label : str
    family : str
        One of ``FAMILIES``.
    method : str or None
        A name in the table ``METHODS``; None for full fine-tuning.
    options : mapping
        The method's options.
    start : float
        Where the search for a learning rate starts.
    enters : tuple of str
        What it is in the claims (claims.py): "full", "lora", "adapter", ...
    on_linear : mapping
        Options that differ on a single linear layer, which is named "linear" (reach.py).

    Examples
    --------
    >>> from lora_np.experiments.compare.rows import Row
    >>> Row("small", "LoRA", "lora", {"r": 1}, 0.02).contender().method.r
    1
    """

    label: str
    family: str
    method: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    start: float = 2e-2
    enters: tuple[str, ...] = ()
    on_linear: Mapping[str, Any] = field(default_factory=dict)

    def contender(self, steps: int = 1, changed: Mapping[str, Any] | None = None) -> Contender:
        """Return the contender; raise ValueError if there is no such method or option.

        Options that are functions are given `steps`, the number of training steps; `changed` holds
        options that replace the row's.
        """
        if self.method is None:
            return Contender(self.label, None, self.start)
        options = {**self.options, **(changed or {})}
        options = {n: x(steps) if callable(x) else x for n, x in options.items()}
        return Contender(self.label, make_method(self.method, **options), self.start)


def _all(steps: int) -> int:
    return steps


def _half(steps: int) -> int:
    return steps // 2


def _tenth(steps: int) -> int:
    return steps // 10


def _lora(r: int = RANK, **options: Any) -> dict[str, Any]:
    """Return options of LoRA on all linear layers with scale 1."""
    return {"r": r, "lora_alpha": r, **ALL, **options}


ALL = {"target_modules": "all-linear"}
CUTS = {"total_step": _all, "tinit": _tenth, "tfinal": _half}  # when AdaLoRA cuts triplets
ADALORA = {"target_r": RANK, "init_r": 12, "lora_alpha": 12, **ALL, **CUTS}
WRG = {"r": RANK, **ALL}
ROOM = {"num_virtual_tokens": TOKENS}
QLORA = {"of": make_method("lora", **_lora())}

ROWS = (
    Row(FULL, CONTROL, None, {}, 4e-3, ("full",)),
    Row(LORA, PLAIN, "lora", _lora(), 2e-2, ("lora",)),
    Row(f"lora r={LOW}", PLAIN, "lora", _lora(LOW), 4e-2, ("low rank",)),
    Row(f"lora r={HIGH}", PLAIN, "lora", _lora(HIGH), 1e-2, ("high rank",)),
    Row("lora both zero", CONTROL, "lora", _lora(init_lora_weights="zero"), 2e-2, ("zero",)),
    Row("lora both random", CONTROL, "lora", _lora(init_lora_weights=False), 2e-2, ("random",)),
    Row("rslora", PLAIN, "lora", _lora(use_rslora=True), 1e-2),
    Row("lora+", PLAIN, "lora", _lora(loraplus_lr_ratio=8.0), 5e-3),
    Row("lora-fa", PLAIN, "lora", _lora(train_A=False), 4e-2),
    Row("pissa", PLAIN, "lora", _lora(init_lora_weights="pissa"), 1e-2),
    Row("olora", PLAIN, "lora", _lora(init_lora_weights="olora"), 1e-2),
    Row("adalora", PLAIN, "adalora", ADALORA, 1.6e-1),
    Row("dylora", PLAIN, "dylora", _lora(), 2e-2),
    Row("vera", PLAIN, "vera", {"r": 64, **ALL}, 2e-1),
    Row("qlora", PLAIN, "nf4", QLORA, 2e-2),
    Row("dora", REWEIGHTED, "dora", _lora(), 2e-2),
    Row("dora exact", REWEIGHTED, "dora", _lora(exact=True), 2e-2),
    Row("loha", REWEIGHTED, "loha", {"r": RANK, "alpha": RANK, **ALL}, 4e-2),
    Row("lokr", REWEIGHTED, "lokr", {"r": RANK, "alpha": RANK, **ALL}, 6e-2),
    Row("hira", REWEIGHTED, "hira", {"r": RANK, **ALL}, 8e-2),
    Row("oft", REWEIGHTED, "oft", {"oft_block_size": 16, **ALL}, 1e-2),
    Row("miss", REWEIGHTED, "miss", {"r": RANK, **ALL}, 1e-2),
    Row("wrg svd", REWEIGHTED, "wrg", {**WRG, "factor": "svd"}, 2e-2),
    Row("wrg gaussian", REWEIGHTED, "wrg", {**WRG, "factor": "gaussian"}, 2e-2, ("wrg",)),
    Row("houlsby", INSERTED, "bottleneck", {"placement": "houlsby"}, 2e-2, ("adapter",)),
    Row("pfeiffer", INSERTED, "bottleneck", {"placement": "pfeiffer"}, 4e-2, ("adapter",)),
    Row("parallel", INSERTED, "bottleneck", {"placement": "parallel", "scale": 4.0}, 2e-2),
    Row("prefix", BEFORE, "prefix", ROOM, 6e-1, ("prefix",)),
    Row(
        "prefix mlp",
        BEFORE,
        "prefix",
        {**ROOM, "prefix_projection": True},
        2e-2,
    ),
    Row("prompt", BEFORE, "prompt", ROOM, 4e-1),
    Row("bitfit", FEW, "bitfit", {}, 1e-1),
    Row("layernorm", FEW, "ln_tuning", {}, 8e-2),
    Row("ia3", FEW, "ia3", {}, 2e-1, (), {"target_modules": ["linear"], "feedforward_modules": []}),
    Row("shira", FEW, "shira", {"r": RANK, **ALL}, 2e-2),
    Row("intrinsic", FEW, "intrinsic", {"d": 400}, 1e-1),
)


def rows_called(names: Sequence[str] | None, rows: Sequence[Row] = ROWS) -> list[Row]:
    """Return the rows of these names in the table's order, by default all.

    Parameters
    ----------
    names : sequence of str or None
        Labels, or names of methods: then all rows of the method whose label is not its name.
    rows : sequence of Row

    Raises
    ------
    ValueError
        If a name is neither; the message suggests the nearest names.

    Examples
    --------
    >>> from lora_np.experiments.compare.rows import rows_called
    >>> [row.label for row in rows_called(["dora", "lora"])]
    ['lora', 'dora']
    """
    if names is None:
        return list(rows)
    labels, found = {row.label for row in rows}, set()
    methods = {row.method for row in rows if row.method is not None}
    for name in names:
        if name in labels:
            found.add(name)
        elif name in methods:
            found |= {row.label for row in rows if row.method == name}
        else:
            known = sorted({*labels, *methods})
            raise ValueError(f"there is no contender {name!r}: {hint(name, known)}")
    if not found:
        raise ValueError("there is no contender: name at least one")
    return [row for row in rows if row.label in found]
