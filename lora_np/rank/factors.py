r"""The SVD of a product B A, computed from its factors.

With the QR decompositions B = Q_B R_B and A^T = Q_A R_A, B A = Q_B (R_B R_A^T) Q_A^T. The core
R_B R_A^T is at most (r, r); with its SVD X S Y^T, B A = (Q_B X) S (Q_A Y)^T. This takes
O((out + in) r^2) operations and forms no (out, in) array.
"""

from __future__ import annotations

import numpy as np

from lora_np.backend import Array, to_host
from lora_np.rank.inputs import in_range, prepare_factors, require_scale


def svd_of_factors(
    B: Array, A: Array, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the thin SVD of ``scale * B @ A`` without forming the product.

    Parameters
    ----------
    B : array, shape (out, r)
    A : array, shape (r, in)
        Real numbers. The SVD is computed on the host, in float64.
    scale : float
        For LoRA, lora_alpha / r.

    Returns
    -------
    U : ndarray, shape (out, k), float64
        Orthonormal columns, k = min(out, in, r).
    sigma : ndarray, shape (k,), float64
        Descending. The rounding error is about eps ||B|| ||A||; directions with a smaller value
        are arbitrary.
    Vt : ndarray, shape (k, in), float64
        Orthonormal rows.

    Raises
    ------
    ShapeError
        If an array is not 2-D, is empty, or the inner sizes differ.
    ValueError
        If an entry or `scale` is not finite, or the singular values leave float64's range.
    TypeError
        If the entries are not real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import svd_of_factors
    >>> rng = np.random.default_rng(0)
    >>> B, A = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    >>> U, sigma, Vt = svd_of_factors(B, A, scale=0.5)
    >>> sigma.shape, np.allclose((U * sigma) @ Vt, 0.5 * B @ A)
    ((2,), True)
    """
    require_scale(scale)
    B64, A64, unit, _ = prepare_factors(to_host(B), to_host(A))
    Q_B, R_B = np.linalg.qr(B64)  # (out, min(out, r)), (min(out, r), r)
    Q_A, R_A = np.linalg.qr(A64.T)  # (in, min(in, r)), (min(in, r), r)
    X, values, Yt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)  # k = min(out, in, r)
    U = Q_B @ X  # (out, k)
    Vt = Yt @ Q_A.T  # (k, in)
    # singular values are not negative: U takes the sign of the scale
    return (-U if scale < 0 else U), in_range(values, unit, scale), Vt
