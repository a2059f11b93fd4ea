"""The table of every pair, fast twin, layer and model, each ready for a gradient check.

``lora-np gradcheck`` checks and prints the table; the tests use it too. Every B is random: at
B = 0, where training starts, most wrong gradients look right.
"""

from __future__ import annotations

import numpy as np

from lora_np.gradcheck import Case
from lora_np.selfcheck import images, layers, models, pairs
from lora_np.selfcheck.layers import at_random
from lora_np.selfcheck.pairs import flat_pair
from lora_np.tables import text_row

__all__ = ["Case", "at_random", "cases", "flat_pair", "table"]


def cases(rng: np.random.Generator) -> list[Case]:
    """Return the whole table: pairs, layers, models, parts of image models.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.selfcheck import cases
    >>> first = cases(np.random.default_rng(0))[0]
    >>> first.name, first.check("complex").ok
    ('linear', True)
    """
    return [
        *pairs.of_ops(rng),
        *pairs.of_methods(rng),
        *layers.plain(rng),
        *layers.of_a_llama(rng),
        *layers.patches_and_time(rng),
        *layers.conditioned(rng),
        *models.of_models(rng),
        *images.of_images(rng),
        *layers.with_methods(rng),
    ]


def table(rng: np.random.Generator) -> tuple[str, bool]:
    """Check every case; return the printed table and whether all cases passed."""
    lines = [_row("pair or layer", "gradients", "method", "error", "limit")]
    all_ok = True
    for case in cases(rng):
        for method in case.methods:
            report = case.check(method)
            all_ok = all_ok and report.ok
            error, limit = f"{report.max_error:.1e}", f"{report.tolerance:.0e}"
            line = _row(case.name, len(report.rows), method, error, limit)
            lines.append(line if report.ok else f"{line}  WRONG")
    return "\n".join(lines), all_ok


def _row(name: str, gradients: int | str, method: str, error: str, limit: str) -> str:
    return text_row((name, gradients, f"  {method:<12}", error, limit), (36, 10, 14, 9, 9))
