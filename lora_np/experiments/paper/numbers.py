"""The numbers of the paper, for comparison with ours.

Source: Hu et al.: LoRA. arXiv:2106.09685, section 7: GPT-3 of 175 billion parameters, d = 12288,
validation accuracy in percent. Its spread over seeds: 0.5 on WikiSQL, 0.1 on MultiNLI.
"""

from __future__ import annotations

Q, K, V, O = "q_proj", "k_proj", "v_proj", "o_proj"
QV, QKVO = (Q, V), (Q, K, V, O)

# matrices adapted: rank, accuracy on WikiSQL and on MultiNLI, all with 18 million parameters
TABLE5 = {
    (Q,): (8, 70.4, 91.0),
    (K,): (8, 70.0, 90.8),
    (V,): (8, 73.0, 91.0),
    (O,): (8, 73.2, 91.3),
    (Q, K): (4, 71.4, 91.3),
    QV: (4, 73.7, 91.3),
    QKVO: (2, 73.7, 91.7),
}

# matrices adapted, then rank: accuracy on WikiSQL and on MultiNLI
TABLE6 = {
    (Q,): {1: (68.8, 90.7), 2: (69.6, 90.9), 4: (70.5, 91.1), 8: (70.4, 90.7), 64: (70.0, 90.7)},
    QV: {1: (73.4, 91.3), 2: (73.3, 91.4), 4: (73.7, 91.3), 8: (73.8, 91.6), 64: (73.5, 91.4)},
    QKVO: {1: (74.1, 91.2), 2: (73.7, 91.7), 4: (74.0, 91.7), 8: (74.0, 91.5), 64: (73.9, 91.4)},
}

# rank: the norms of table 7, for the query matrix of layer 48
TABLE7 = {
    4: {"in_delta": 0.32, "in_W0": 21.67, "in_random": 0.02, "norm_W0": 61.95, "norm_delta": 6.91},
    64: {"in_delta": 1.90, "in_W0": 37.71, "in_random": 0.33, "norm_W0": 61.95, "norm_delta": 3.57},
}


def short(targets: tuple[str, ...]) -> str:
    """Return the short name of some matrices: q,v for q_proj and v_proj."""
    return ",".join(name.removesuffix("_proj") for name in targets)
