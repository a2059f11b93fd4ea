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
from lora_np.methods import MethodConfig, make_method
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
        A key of :data:`lora_np.methods.METHODS`; None for full fine-tuning.
    options : mapping
        The method's options.
    start : float
        Where the search for a learning rate starts.
    enters : tuple of str
        What it is in the claims (claims.py): "full", "lora", "adapter", ...

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

    def contender(self) -> Contender:
        """Return the contender; raise ValueError if there is no such method or option."""
        config: MethodConfig | None = None
        if self.method is not None:
            config = make_method(self.method, **self.options)
        return Contender(self.label, config, self.start)


def _lora(r: int = RANK, **options: Any) -> dict[str, Any]:
    """Return options of LoRA on all linear layers with scale 1."""
    return {"r": r, "lora_alpha": r, "target_modules": "all-linear", **options}


ALL = {"target_modules": "all-linear"}

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
    Row("pissa", PLAIN, "lora", _lora(init_lora_weights="pissa"), 5e-3),
    Row("olora", PLAIN, "lora", _lora(init_lora_weights="olora"), 5e-3),
    Row("dora", REWEIGHTED, "dora", _lora(), 2e-2),
    Row("dora exact", REWEIGHTED, "dora", _lora(exact=True), 2e-2),
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
