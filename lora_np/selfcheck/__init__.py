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
from lora_np.tables import Table

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


def table(rng: np.random.Generator) -> tuple[Table, bool]:
    """Check every case; return the table of all checks and whether all cases passed."""
    rows, all_ok = [], True
    for case in cases(rng):
        for method in case.methods:
            report = case.check(method)
            all_ok = all_ok and report.ok
            rows.append(
                {
                    "pair or layer": case.name,
                    "gradients": len(report.rows),
                    "method": method,
                    "error": report.max_error,
                    "limit": report.tolerance,
                    "": None if report.ok else "WRONG",
                }
            )
    return Table.of_rows(rows, {"method": "<", "error": ".1e", "limit": ".0e"}), all_ok
