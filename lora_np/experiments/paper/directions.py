"""Figures 3 and 4 and table 7: the directions that trained adapters share, and W0 in them.

phi(i, j) and its level by chance are defined in lora_np/rank/subspaces.py. As in the paper, phi
compares right singular vectors of A: the directions of its input that an adapter reads.

Adapters are only compared across seeds. Equal seeds draw A from the same stream, so a low rank
would start from rows of the high rank, and they would share the draw rather than the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_np.experiments.paper.numbers import TABLE7
from lora_np.rank import amplification, dense_svd, random_similarity, subspace_similarity

Adapter = tuple[np.ndarray, np.ndarray]  # B (out, r), A (r, in)
Adapters = Mapping[int, Mapping[int, Mapping[str, Adapter]]]  # by rank, seed, path
DIGITS = 4  # of the written similarities


def similarity(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """Return phi averaged over all pairs of an A from each list, at different places.

    Parameters
    ----------
    first, second : list of array, shapes (r1, in) and (r2, in)
        One A for each seed.

    Returns
    -------
    ndarray, shape (r1, r2)

    Raises
    ------
    ValueError
        If there is no such pair.
    """
    V1, V2 = ([dense_svd(A)[2].T for A in As] for As in (first, second))  # each (in, r)
    grids = [
        subspace_similarity(one, other)
        for a, one in enumerate(V1)
        for b, other in enumerate(V2)
        if a != b
    ]
    if not grids:
        raise ValueError("no two adapters of different seeds: there is nothing to compare")
    return np.mean(grids, axis=0)


def figure(adapters: Adapters, ranks: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    """Return the similarities of two ranks in every adapted matrix, and of random matrices.

    Parameters
    ----------
    adapters : mapping
        Trained (B, A) by rank, seed and path.
    ranks : (int, int)
        Equal ranks compare seeds.
    rng : numpy.random.Generator
        Draws the random matrices, as many as there are seeds.

    Returns
    -------
    dict
        ``ranks``, ``d`` (the size of the input), ``seeds``, ``panels`` (grids by path), and
        ``control`` (the random matrices' grid).

    Raises
    ------
    ValueError
        If there are fewer than two common seeds, or the adapters hold no matrix.
    """
    low, high = (adapters[r] for r in ranks)
    seeds = sorted(set(low) & set(high))
    if len(seeds) < 2:
        raise ValueError(f"ranks {ranks} have fewer than two common seeds that did not diverge")
    if not low[seeds[0]]:
        raise ValueError(
            f"the adapters of rank {ranks[0]} hold no matrix: there is nothing to draw"
        )
    As = {
        path: [[part[seed][path][1] for seed in seeds] for part in (low, high)]
        for path in low[seeds[0]]
    }
    d = next(iter(As.values()))[0][0].shape[1]
    drawn = [[rng.standard_normal((r, d)) for _ in seeds] for r in ranks]
    return {
        "ranks": list(ranks),
        "d": d,
        "seeds": len(seeds),
        "panels": {path: _written(similarity(*pair)) for path, pair in As.items()},
        "control": _written(similarity(*drawn)),
    }


def _written(grid: np.ndarray) -> list[list[float]]:
    return np.round(grid, DIGITS).tolist()


def excess(phi: float, chance: float) -> float:
    """Return how far phi lies above chance, on the way to 1: 0 at chance, 1 at equality."""
    return (phi - chance) / (1.0 - chance)


def below_the_top(grid: list[list[float]], d: int) -> tuple[float, float]:
    """Return the similarity of directions 2, ..., i without the first, and its level by chance.

    Parameters
    ----------
    grid : list of list of float
        phi(i, j), with i at most j; i is the number of rows.
    d : int
        Dimensions of the whole space.
    """
    i = len(grid)
    # phi min(i, j) sums squared cosines over a corner: take its first row and column away
    corner, row, column = i * grid[i - 1][i - 1], grid[0][i - 1], grid[i - 1][0]
    return (corner - row - column + grid[0][0]) / (i - 1), (i - 1) / d


def mean_excess(grid: list[list[float]], d: int) -> float:
    """Return the excess of phi(i, i) over chance, averaged over i.

    Parameters
    ----------
    grid : list of list of float
        phi(i, j).
    d : int
        Dimensions of the whole space. At i = d any two spaces are equal, so i = d is left out.
    """
    diagonal = np.diag(np.array(grid))[: d - 1]
    if diagonal.size == 0:
        raise ValueError(f"d is {d}: in one dimension any two directions are equal")
    found = [excess(phi, random_similarity(d, i, i)) for i, phi in enumerate(diagonal, start=1)]
    return float(np.mean(found))


def table7(
    adapters: Adapters, base: Mapping[str, np.ndarray], ranks: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Return table 7's rows: for each rank and matrix, the norms, averaged over seeds.

    Parameters
    ----------
    adapters : mapping
        Trained (B, A) by rank, seed and path; their scale is 1.
    base : mapping of str to array
        The pretrained parameters.
    ranks : tuple of int
    """
    rows = []
    for r in ranks:
        for path in next(iter(adapters[r].values())):
            found = [
                amplification(base[f"{path}.W"], parts[path], r) for parts in adapters[r].values()
            ]
            names = (*TABLE7[4], "factor")
            means = {n: float(np.mean([getattr(one, n) for one in found])) for n in names}
            rows.append({"rank": r, "path": path, "seeds": len(found), **means})
    return rows
