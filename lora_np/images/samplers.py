r"""Samplers: from pure noise at the noisiest time to latents at time 0, in a number of steps.

Every sampler takes the same arguments and walks down the same
:func:`~lora_np.images.schedule.grid`. At each time t the model's v gives x0 and eps, from which the
sampler makes z' at the next time t'; alpha' and sigma' belong to t'::

    ddim          z' = alpha' x0 + sigma' eps
    ddpm          z' = alpha' x0 + kept eps + fresh noise,      kept^2 + fresh^2 = sigma'^2
    dpm_solver    z' is ddim's, with x0 extrapolated to the middle of the step
    consistency   z' = alpha' x0 + sigma' noise

The last step of each ends in x0 itself, since alpha' = 1 and sigma' = 0 at t' = 0. For the
derivations, see ``docs/derivations/ddim.md`` and ``docs/derivations/consistency.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from lora_np.backend import Array, ShapeError, get_xp, like
from lora_np.images.glyphs import NO_FAMILY, NO_LETTER
from lora_np.images.schedule import alpha_sigma, eps_of, grid, half_log_snr, x0_of, z_of

NONE = (NO_LETTER, NO_FAMILY)  # an empty prompt


class Sampler(Protocol):
    """What every sampler is: a function from words to latents."""

    def __call__(
        self,
        denoiser: Any,
        words: Array,
        *,
        steps: int,
        rng: np.random.Generator,
        guidance: float = 1.0,
    ) -> Array:
        """Return latents (n, k) for words (n, 2)."""
        ...


def guided(denoiser: Any, z: Array, t: Array, words: Array, guidance: float | Array = 1.0) -> Array:
    """Return the model's v for `z`, with classifier-free guidance::

        v = v_none + guidance (v_words - v_none)

    Guidance 1 is the model itself, 0 ignores the words, and more than 1 exaggerates what the words
    change. The first two cost one evaluation each; any other guidance costs two, in one batch. x0
    and eps are linear in z and v, so the same formula holds for them.

    Parameters
    ----------
    denoiser : Layer
        ``forward(z (n, k), t (n,), words (n, 2))`` returns v (n, k) and a cache.
    z : array, shape (n, k)
    t : array, shape (n,)
        In the dtype of `z`.
    words : array of int, shape (n, 2)
    guidance : float or array, shape (n, 1)
        One number for all rows, or one for each row, in the dtype of `z`.

    Returns
    -------
    v : array, shape (n, k)

    References
    ----------
    Ho and Salimans (2022), Classifier-Free Diffusion Guidance, arXiv:2207.12598, equation 6, whose
    w is our guidance - 1.
    """
    xp, n = get_xp(z), len(z)
    none = like(np.tile(np.array(NONE, words.dtype), (n, 1)), words)
    if getattr(guidance, "ndim", 0) == 0:
        guidance = float(guidance)  # a float64 of NumPy would turn z into float64
    if isinstance(guidance, float) and guidance in (0.0, 1.0):
        return denoiser.forward(z, t, words if guidance else none)[0]
    twice = (xp.concatenate(pair) for pair in ((z, z), (t, t), (words, none)))
    v, _ = denoiser.forward(*twice)  # (2 n, k)
    return v[n:] + guidance * (v[:n] - v[n:])


def ddim(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample along the paths of the probability-flow ODE; only the start is random::

        z' = alpha' x0 + sigma' eps

    The error falls like 1 / steps.

    Parameters
    ----------
    denoiser : Layer
        As for :func:`~lora_np.images.samplers.guided`; its attribute ``k`` is the length of z.
    words : array of int, shape (n, 2)
        The letter, 0 to 25, and the family, 0 to 2, of each prompt; 26 and 3 if it names none.
    steps : int
        Evaluations of the model, from 1 to 1000.
    rng : numpy.random.Generator
    guidance : float

    Returns
    -------
    z : array, shape (n, k)
        In the dtype of the denoiser's Parameters.

    Raises
    ------
    ValueError
        If `words` is empty or an entry is out of range, if `steps` is out of range, or if
        `guidance` is not finite.

    References
    ----------
    Song, Meng and Ermon (2020), Denoising Diffusion Implicit Models, arXiv:2010.02502, equation 12.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.samplers import ddim
    >>> from lora_np.images.schedule import alpha_sigma
    >>> from lora_np.layers import Layer
    >>> class Single(Layer):  # knows one picture, (1, -1), and so v = (alpha z - x0) / sigma
    ...     k = 2
    ...     def forward(self, z, t, words, rng=None):
    ...         alpha, sigma = alpha_sigma(t)
    ...         return (alpha * z - np.array([1, -1], z.dtype)) / sigma, None
    >>> z = ddim(Single(), np.array([[17, 1]]), steps=4, rng=np.random.default_rng(0))
    >>> z.round(3), z.dtype
    (array([[ 1., -1.]], dtype=float32), dtype('float32'))
    """
    z = _start(denoiser, words, rng, guidance)
    for t, later in _steps(steps):
        x0, eps = _predict(denoiser, z, t, words, guidance)
        z = z_of(x0, eps, later)
    return z


def ddpm(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample with fresh noise in every step (ancestral sampling)::

        z' = alpha' x0 + kept eps + fresh noise
        kept = sigma'^2 alpha / (alpha' sigma),    fresh^2 = sigma'^2 - kept^2

    This draws z' from its Gaussian distribution given z and x0. The last step adds no noise.

    Parameters
    ----------
    denoiser, words, steps, rng, guidance
        As for :func:`~lora_np.images.samplers.ddim`.

    Returns
    -------
    z : array, shape (n, k)

    References
    ----------
    Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239,
    equations 6 and 7, between any two times.
    """
    z = _start(denoiser, words, rng, guidance)
    for t, later in _steps(steps):
        x0, eps = _predict(denoiser, z, t, words, guidance)
        (alpha, sigma), (alpha_later, sigma_later) = alpha_sigma(t), alpha_sigma(later)
        kept = sigma_later**2 * alpha / (alpha_later * sigma)
        fresh = math.sqrt(sigma_later**2 - kept**2)
        z = alpha_later * x0 + kept * eps + fresh * _noise(rng, z.shape, z)
    return z


def dpm_solver(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample along the paths that DDIM follows, in steps of second order (DPM-Solver++ 2M)::

        z' = (sigma' / sigma) z + alpha' (1 - exp(-h')) D
        D = x0 + h' / (2 h) (x0 - the last step's x0)

    Here h' and h are the lengths of this step and of the one before, in lambda = log(alpha /
    sigma). D is x0 extrapolated to the middle of the step; with D = x0 the step is DDIM's. The
    first step has nothing to extrapolate from, and the final one is infinitely long: both take
    D = x0. The error falls like 1 / steps^2.

    Parameters
    ----------
    denoiser, words, steps, rng, guidance
        As for :func:`~lora_np.images.samplers.ddim`.

    Returns
    -------
    z : array, shape (n, k)

    References
    ----------
    Lu, Zhou, Bao, Chen, Li and Zhu (2022), DPM-Solver++: Fast Solver for Guided Sampling of
    Diffusion Probabilistic Models, arXiv:2211.01095, algorithm 2.
    """
    z = _start(denoiser, words, rng, guidance)
    last, h_last = z, math.inf  # nothing to extrapolate from
    for t, later in _steps(steps):
        x0, _ = _predict(denoiser, z, t, words, guidance)
        (_, sigma), (alpha_later, sigma_later) = alpha_sigma(t), alpha_sigma(later)
        h = half_log_snr(later) - half_log_snr(t)  # infinite in the last step
        D = x0 + h / (2.0 * h_last) * (x0 - last) if later else x0
        z = sigma_later / sigma * z - alpha_later * math.expm1(-h) * D
        last, h_last = x0, h
    return z


def consistency(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample from a model whose x0 is the end of the ODE's path, so that one step suffices::

        z' = alpha' x0 + sigma' noise

    Every further step adds noise again and removes it. For a model that is not distilled, x0 is the
    mean of all pictures that z can have come from, and one step gives a blur.

    Parameters
    ----------
    denoiser, words, steps, rng, guidance
        As for :func:`~lora_np.images.samplers.ddim`. Distillation builds guidance into the model:
        leave `guidance` at 1 for a distilled one.

    Returns
    -------
    z : array, shape (n, k)

    References
    ----------
    Song, Dhariwal, Chen and Sutskever (2023), Consistency Models, arXiv:2303.01469, algorithm 1.
    Luo, Tan, Huang, Li and Zhao (2023), Latent Consistency Models: Synthesizing High-Resolution
    Images with Few-Step Inference, arXiv:2310.04378.
    """
    z = _start(denoiser, words, rng, guidance)
    for t, later in _steps(steps):
        x0, _ = _predict(denoiser, z, t, words, guidance)
        z = z_of(x0, _noise(rng, z.shape, z), later)
    return z


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "consistency": consistency,
}


def _steps(steps: int) -> Iterator[tuple[float, float]]:
    """Return the pairs (t, t') of neighbours on the grid, as Python floats."""
    return pairwise(grid(steps).tolist())


def _start(denoiser: Any, words: Array, rng: np.random.Generator, guidance: float) -> Array:
    """Check a sampler's arguments; return noise (n, k) of the dtype of the denoiser."""
    _check_words(words)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}: give a finite number, 1 for the model itself")
    own = next((p.value for p in denoiser.parameters().values()), np.empty(0, np.float32))
    return _noise(rng, (len(words), denoiser.k), own)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], other: Array) -> Array:
    """Return standard normal noise in the dtype and on the device of `other`.

    It is drawn in float32, so that float64 gets the same numbers.
    """
    return like(rng.standard_normal(shape, np.float32).astype(other.dtype, copy=False), other)


def _predict(
    denoiser: Any, z: Array, t: float, words: Array, guidance: float
) -> tuple[Array, Array]:
    """Return the model's x0 and eps for `z` at one time `t`."""
    v = guided(denoiser, z, like(np.full(len(z), t, z.dtype), z), words, guidance)
    return x0_of(z, v, t), eps_of(z, v, t)


def _check_words(words: Array) -> None:
    """Raise unless words are (n, 2) whole numbers in the range of letters and families."""
    if words.ndim != 2 or words.shape[1] != 2:
        raise ShapeError(f"words has shape {words.shape}, expected (n, 2)")
    if words.dtype.kind not in "iu":
        raise ValueError(f"words has dtype {words.dtype}: give whole numbers")
    if not len(words):
        raise ValueError(f"words is empty: give a row for each picture, {NONE} for no prompt")
    for name, given, none in zip(("letter", "family"), words.T, NONE):
        if (wrong := given[(given < 0) | (given > none)]).size:
            raise ValueError(f"{name} {wrong[0]} is out of range: give 0 to {none} ({none}: none)")
