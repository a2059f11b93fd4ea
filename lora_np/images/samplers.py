r"""Samplers: from pure noise at the noisiest time to a picture at time 0, in a number of steps.

Each sampler takes the same arguments, walks down the same :func:`~lora_np.images.schedule.grid`,
asks the model for x0 and eps at the time t, and goes on to the next time s. Unprimed alpha and
sigma belong to t, alpha' and sigma' to s::

    ddim          z' = alpha' x0 + sigma' eps
    ddpm          z' = alpha' x0 + (part of sigma') eps + (the rest of sigma') fresh noise
    dpm_solver    z' = ddim's, with x0 extrapolated to the middle of the step
    consistency   z' = alpha' x0 + sigma' fresh noise

All end in x0 itself, since alpha' = 1 and sigma' = 0 at s = 0. The derivations are
``docs/derivations/ddim.md`` and ``docs/derivations/consistency.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from lora_np.backend import Array, ShapeError
from lora_np.images.schedule import Time, alpha_sigma, eps_of, grid, half_log_snr, x0_of, z_of

NONE = (26, 3)  # the words of an empty prompt: no letter, no family


class Sampler(Protocol):
    """What every sampler is: a function from words and noise to latents."""

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


def predict(
    denoiser: Any, z: Array, t: Time, words: Array, guidance: float = 1.0
) -> tuple[Array, Array]:
    """Return the model's picture x0 and noise eps for `z`, with classifier-free guidance::

        v = v_none + guidance (v_words - v_none)

    Guidance 1 is the model itself, 0 ignores the words, and more than 1 exaggerates what the words
    change. Both of these cost one evaluation; any other guidance costs two, in one batch.

    Parameters
    ----------
    denoiser : Layer
        ``forward(z (n, k), t (n,), words (n, 2)) -> v (n, k), cache``.
    z : array, shape (n, k)
    t : float or array, shape (n,)
    words : array of int, shape (n, 2)
    guidance : float

    Returns
    -------
    x0, eps : array, shape (n, k)

    References
    ----------
    Ho and Salimans (2022), Classifier-Free Diffusion Guidance, arXiv:2207.12598, equation 6, whose
    w is our guidance - 1.
    """
    n, none = len(z), np.broadcast_to(np.array(NONE, words.dtype), words.shape)
    times = t if isinstance(t, np.ndarray) else np.full(n, t, z.dtype)
    if guidance in (0.0, 1.0):
        v, _ = denoiser.forward(z, times, words if guidance else none)
    else:
        twice = (np.concatenate(pair) for pair in ((z, z), (times, times), (words, none)))
        both, _ = denoiser.forward(*twice)  # (2 n, k)
        v_words, v_none = both[:n], both[n:]
        v = v_none + guidance * (v_words - v_none)
    return x0_of(z, v, t), eps_of(z, v, t)


def ddim(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample along the probability-flow ODE; random in its start alone::

        z' = alpha' x0 + sigma' eps

    The step is exact if eps does not change along it; the error falls like 1 / steps.

    Parameters
    ----------
    denoiser : Layer
        See :func:`~lora_np.images.samplers.predict`; it has an attribute ``k``.
    words : array of int, shape (n, 2)
        The letter 0 to 25 and the family 0 to 2 of each prompt; 26 and 3 where none is given.
    steps : int
        Evaluations of the model, from 1 to 1000.
    rng : numpy.random.Generator
    guidance : float

    Returns
    -------
    z : array, shape (n, k)
        Latents in the dtype of the denoiser.

    Raises
    ------
    ValueError
        If `words` is empty or has an entry out of range, `steps` is out of range, or `guidance` is
        not finite.

    References
    ----------
    Song, Meng and Ermon (2020), Denoising Diffusion Implicit Models, arXiv:2010.02502, equation 12.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images.schedule import alpha_sigma
    >>> from lora_np.layers import Layer
    >>> from lora_np.images.samplers import ddim
    >>> class Blank(Layer):  # knows one picture, (1, -1), and so v = (alpha z - x0) / sigma
    ...     k = 2
    ...     def forward(self, z, t, words, rng=None):
    ...         alpha, sigma = alpha_sigma(t)
    ...         return (alpha * z - np.array([1, -1], z.dtype)) / sigma, None
    >>> z = ddim(Blank(), np.array([[17, 1]]), steps=4, rng=np.random.default_rng(0))
    >>> z.round(3), z.dtype
    (array([[ 1., -1.]], dtype=float32), dtype('float32'))
    """
    z = _start(denoiser, words, rng, guidance)
    for t, s in _steps(steps):
        x0, eps = predict(denoiser, z, t, words, guidance)
        z = z_of(x0, eps, s)
    return z


def ddpm(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample with fresh noise in every step (ancestral sampling)::

        z' = alpha' x0 + kept eps + fresh noise,    kept = sigma'^2 alpha / (alpha' sigma)
        fresh^2 = sigma'^2 - kept^2

    This is z' drawn from its distribution given z and x0, which is Gaussian: as much of the noise
    in z is kept as z' and z have in common. The last step adds none.

    Parameters
    ----------
    denoiser, words, steps, rng, guidance
        As in :func:`~lora_np.images.samplers.ddim`.

    Returns
    -------
    z : array, shape (n, k)

    References
    ----------
    Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239,
    equations 6 and 7 (the posterior variance), on any grid of times.
    """
    z = _start(denoiser, words, rng, guidance)
    for t, s in _steps(steps):
        x0, eps = predict(denoiser, z, t, words, guidance)
        (alpha, sigma), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        kept = sigma_s**2 * alpha / (alpha_s * sigma)
        fresh = math.sqrt(sigma_s**2 - kept**2)
        z = alpha_s * x0 + kept * eps + fresh * _noise(rng, z)
    return z


def dpm_solver(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample along the same ODE as DDIM, in steps of second order (DPM-Solver++ 2M)::

        z' = (sigma' / sigma) z + alpha' (1 - exp(-h')) D,    h' = lambda' - lambda
        D = x0 + h' / (2 h) (x0 - the last step's x0)

    Here lambda = log(alpha / sigma), and h is the length of the last step in lambda. With D = x0
    this is DDIM's step; D is x0 extrapolated to the middle of the step. The first step and the
    last, which is infinitely long, take D = x0. The error falls like 1 / steps^2.

    Parameters
    ----------
    denoiser, words, steps, rng, guidance
        As in :func:`~lora_np.images.samplers.ddim`.

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
    for t, s in _steps(steps):
        x0, _ = predict(denoiser, z, t, words, guidance)
        (_, sigma), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        h = half_log_snr(s) - half_log_snr(t)  # infinite in the last step
        D = x0 + h / (2.0 * h_last) * (x0 - last) if s else x0
        z = sigma_s / sigma * z - alpha_s * math.expm1(-h) * D
        last, h_last = x0, h
    return z


def consistency(
    denoiser: Any, words: Array, *, steps: int, rng: np.random.Generator, guidance: float = 1.0
) -> Array:
    """Sample from a model whose x0 is already the end of the ODE's path: one step suffices::

        z' = alpha' x0 + sigma' fresh noise

    Every further step puts noise back and removes it again. A denoiser that is not distilled
    predicts the mean of all pictures that z may have come from, and one step from it is a blur.

    Parameters
    ----------
    denoiser, words, steps, rng, guidance
        As in :func:`~lora_np.images.samplers.ddim`. A distilled denoiser has its guidance inside:
        leave 1.

    Returns
    -------
    z : array, shape (n, k)

    References
    ----------
    Song, Dhariwal, Chen and Sutskever (2023), Consistency Models, arXiv:2303.01469, algorithm 1;
    Luo, Tan, Huang, Li and Zhao (2023), Latent Consistency Models: Synthesizing High-Resolution
    Images with Few-Step Inference, arXiv:2310.04378.
    """
    z = _start(denoiser, words, rng, guidance)
    for t, s in _steps(steps):
        x0, _ = predict(denoiser, z, t, words, guidance)
        z = z_of(x0, _noise(rng, z), s)
    return z


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "consistency": consistency,
}


def _steps(steps: int) -> Iterator[tuple[float, float]]:
    """Return the pairs (t, s) of neighbours on the grid, as Python floats."""
    return pairwise(grid(steps).tolist())


def _start(denoiser: Any, words: Array, rng: np.random.Generator, guidance: float) -> Array:
    """Check the arguments of a sampler; return its noise (n, k) in the dtype of the denoiser."""
    _check_words(words)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}: give a finite number, 1 for the model itself")
    dtype = next((p.dtype for p in denoiser.parameters().values()), np.float32)
    return _noise(rng, np.empty((len(words), denoiser.k), dtype))


def _noise(rng: np.random.Generator, like: Array) -> Array:
    """Return standard normal noise; float64 gets the numbers that float32 gets."""
    return rng.standard_normal(like.shape, np.float32).astype(like.dtype, copy=False)


def _check_words(words: Array) -> None:
    """Raise unless words are (n, 2) whole numbers in the range of letters and families."""
    if words.ndim != 2 or words.shape[1] != 2:
        raise ShapeError(f"words has shape {words.shape}, expected (n, 2)")
    if words.dtype.kind not in "iu":
        raise ValueError(f"words has dtype {words.dtype}: give whole numbers")
    if not len(words):
        raise ValueError(f"words is empty: give a row for each picture, {NONE} for no prompt")
    for name, column, none in zip(("letter", "family"), words.T, NONE):
        if (wrong := column[(column < 0) | (column > none)]).size:
            raise ValueError(f"{name} {wrong[0]} is out of range: give 0 to {none} ({none}: none)")
