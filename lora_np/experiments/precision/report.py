"""The tables of the study of precision, as text."""

from __future__ import annotations

from typing import Any

from lora_np.tables import counted, text_row


def report(results: dict[str, Any]) -> str:
    """Return all tables as text.

    Parameters
    ----------
    results : dict
        What :func:`lora_np.experiments.precision.precision_study` returns.
    """
    return "\n\n".join(table(results) for table in (_storage, _merging, _sizes, _scaling))


def _storage(results: dict[str, Any]) -> str:
    s, whole = results["settings"], results["storage"][0]["bytes"]
    widths = (12, 11, 9, 17, 13, 12)
    head = ("base", "bytes", "share", "error of logits", "loss before", "loss after")
    lines = [
        f"a base of {results['parameters']:,} parameters; LoRA, r = {s['r']}, lr {s['lr']:g}, "
        f"{counted(s['steps'], 'step')}",
        text_row(head, widths),
    ]
    for row in results["storage"]:
        share = f"{100 * row['bytes'] / whole:.1f} %"
        losses = (f"{row['before']:.4f}", f"{row['after']:.4f}")
        cells = (row["form"], f"{row['bytes']:,}", share, f"{row['error']:.1e}", *losses)
        lines.append(text_row(cells, widths))
    return "\n".join(lines)


def _merging(results: dict[str, Any]) -> str:
    widths = (12, 13, 12, 17, 15)
    head = ("merged in", "|dW| / |W0|", "unchanged", "rounding / |dW|", "not restored")
    lines = ["the trained change, merged", text_row(head, widths)]
    for row in results["merging"]:
        shares = (f"{100 * row['unchanged']:.1f} %", f"{100 * row['not_restored']:.1f} %")
        cells = (row["form"], f"{row['size']:.3f}", shares[0], f"{row['rounding']:.1e}", shares[1])
        lines.append(text_row(cells, widths))
    return "\n".join(lines)


def _sizes(results: dict[str, Any]) -> str:
    sizes = results["settings"]["sizes"]
    widths = (12, *(10 for _ in sizes))
    lines = [
        "entries that a random change leaves unchanged, by |dW| / |W0|",
        text_row(("merged in", *(f"{size:g}" for size in sizes)), widths),
    ]
    for form, shares in results["sizes"].items():
        lines.append(text_row((form, *(f"{100 * share:.1f} %" for share in shares)), widths))
    return "\n".join(lines)


def _scaling(results: dict[str, Any]) -> str:
    widths, steps = (16, 14, 11, 12), results["settings"]["scaling_steps"]
    lines = [
        f"gradients made small and passed back in float16; {counted(steps, 'step')}",
        text_row(("gradients times", "loss scale", "lost", "loss after"), widths),
    ]
    for row in results["scaling"]:
        scale = row["scale"] if isinstance(row["scale"], str | None) else f"{row['scale']:g}"
        lost = f"{100 * row['lost']:.1f} %"
        loss = "diverged" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append(text_row((f"2^{row['power']}", scale or "none", lost, loss), widths))
    return "\n".join(lines)
