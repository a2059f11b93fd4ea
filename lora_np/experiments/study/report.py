"""The table of a study: every contender at its best learning rate; then the claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from lora_np.experiments.claims import WIDTH, claims_text
from lora_np.experiments.study.losses import Results, losses
from lora_np.report import Report
from lora_np.tables import Mean, Table, counted

LOSS = ".4f"  # the form of a loss
FORMS = {"trainable": ",", "lr": ".2g", "forgetting": "+.3f"}  # of the columns of `row`
FORMS |= dict.fromkeys(("train", "validation", "test"), LOSS)


def report(results: Results) -> Report:
    """Return complete results as text: the head, the table and the claims."""
    return Report([head(results), table(results), verdicts(results)])


def head(results: Results) -> str:
    """Say what was trained, for how long, on how many seeds, and what the losses are."""
    s = results["settings"]
    said = (
        f"A GPT of d = {s['d_model']}, {counted(s['n_layer'], 'layer')}, adapted in "
        f"{counted(s['steps'], 'step')} of {s['batch_size']} x {s['block_size']} bytes unless the "
        f"row differs; {counted(s['seeds'], 'seed')}. Losses are in nats a byte, the mean over "
        "seeds +- the deviation, at the best learning rate of each row; forgetting is the rise of "
        f"the loss on the pretraining text, {results['base_pretrain_loss']:.4f} before training. "
        f"Before training the validation loss is {results['base_validation_loss']:.4f} and the "
        f"test loss {results['base_test_loss']:.4f}."
    )
    return fill(said, WIDTH)


def table(results: Results, labels: Sequence[str] | None = None) -> Table:
    """Return the contenders as a table, by default all of them."""
    return Table.of_rows([row(results, label) for label in labels or results["best"]], FORMS)


def row(results: Results, label: str) -> dict[str, Any]:
    """Return the cells of a contender, by heading; ``FORMS`` are their forms."""
    lr = results["best"][label]
    shown = {"": label, "trainable": None, "lr": "diverged" if lr is None else lr}
    headings = {"train_loss": "train", "validation_loss": "validation", "test_loss": "test"}
    if lr is None:
        return {**shown, **dict.fromkeys((*headings.values(), "forgetting"))}
    runs = [t for t in results["trials"] if (t["label"], t["lr"]) == (label, lr)]
    count = next((t["trainable_parameters"] for t in runs if t["trainable_parameters"]), 0)
    shown["trainable"] = count
    for key, heading in headings.items():
        found = list(losses(results, label, lr, key).values())
        shown[heading] = spread(found, key == "test_loss")
    after = list(losses(results, label, lr, "pretrain_loss").values())
    rise = mean(after) - results["base_pretrain_loss"] if after else math.nan
    return {**shown, "forgetting": rise}


def spread(values: Sequence[float], deviation: bool = True) -> Mean | str:
    """Return a mean over seeds, with the sample deviation unless it is not wanted.

    Runs that diverged are left out, and their number is said.

    Examples
    --------
    >>> from lora_np.experiments.study.report import spread
    >>> f"{spread([2.0, 2.1]):.4f}", f"{spread([2.0, float('inf')]):.4f}"
    ('2.0500 +- 0.0707', '2.0000 (1 of 2 diverged)')
    """
    finite = [value for value in values if math.isfinite(value)]
    lost = len(values) - len(finite)
    if not finite:
        return "diverged"
    sd = stdev(finite) if len(finite) > 1 and deviation else None
    note = f" ({lost} of {len(values)} diverged)" if lost else ""
    return Mean(mean(finite), sd, ".4f", note)


def verdicts(results: Mapping[str, Any]) -> str:
    """Return the claims as text, and what decides them; empty without claims."""
    if not results.get("claims"):
        return ""
    rule = (
        "Claims, decided seed by seed: an interval is that of 95 % for the mean (Student's t); one "
        "across the border, or fewer than three seeds, decides nothing."
    )
    return f"{fill(rule, WIDTH)}\n{claims_text(results['claims'])}"
