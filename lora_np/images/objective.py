"""What a denoiser is trained for: v-prediction, and consistency along the paths of a teacher.

Each objective is a model for ``fit``: ``loss(*batch)``, ``backward`` and ``parameters``.

v-prediction. A latent x0 is mixed with noise, z = alpha x0 + sigma eps, and the denoiser predicts
v = alpha eps - sigma x0 by least squares::

    loss = mean over n and k of (v(z, t, words) - v)^2

Consistency distillation. The function f(z, t) = alpha z - sigma v(z, t) is trained to be the same
along a path of the teacher's flow; at t = 0 it is z, whatever v is. From z at time t, one DDIM step
of the teacher leads to z' at the next time t'. With f' for the function of a moving average of the
student, the loss is the mean over n and k of::

    sqrt((f(z, t) - f'(z', t'))^2 + c^2) - c

f' receives no gradient. The teacher's step is guided with weight w::

    v = v_none + w (v_words - v_none)

See ``docs/derivations/consistency.md``.

Sources: Salimans and Ho (2022), arXiv:2202.00512; Song et al. (2023), arXiv:2303.01469, algorithm
2; Luo et al. (2023), arXiv:2310.04378, section 4.2 (the w of this paper is our w - 1); Song and
Dhariwal (2023), arXiv:2310.14189, section 3.3 (pseudo-Huber, there with one root for each image).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lora_np.backend import Array
from lora_np.images.denoiser import Denoiser
from lora_np.images.samplers import guided
from lora_np.images.schedule import alpha_sigma, eps_of, v_of, x0_of, z_of
from lora_np.layers import Layer, Rng, rebuild
from lora_np.parameters import Grads, Parameter
from lora_np.train import MovingAverage


class Objective(Layer):
    """A denoiser with a loss, which a subclass adds.

    Parameters
    ----------
    denoiser : Denoiser
        What is trained, adapted or not.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def number(self, batch: tuple[Array, ...]) -> int:
        """Return over how many numbers the loss averages: those of the latents."""
        return batch[0].size


class VPrediction(Objective):
    """The mean squared error of v.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.images import VPrediction, mlp_denoiser
    >>> rng = np.random.default_rng(0)
    >>> model = VPrediction(mlp_denoiser(rng, k=8, d=16, d_hidden=32, n_block=1, d_c=4))
    >>> x0, eps = np.ones((2, 5, 8), np.float32)
    >>> t, words = np.full(5, 0.5, np.float32), np.zeros((5, 2), int)
    >>> round(model.loss(x0, eps, t, words)[0], 6)  # v = 0: alpha eps = sigma x0 at t = 1 / 2
    0.0
    """

    def loss(
        self, x0: Array, eps: Array, t: Array, words: Array, *, rng: Rng = None, count: Any = None
    ) -> tuple[float, Any]:
        """Return the loss and the cache; the sum over latents is divided by `count`."""
        v, cache = self.denoiser.forward(z_of(x0, eps, t), t, words, rng)  # (n, k)
        error = v - v_of(x0, eps, t)
        count = error.size if count is None else count
        return float((error * error).sum()) / count, (error, count, cache)

    def backward(self, dy: Any, cache: Any, grads: Grads, need_dx: bool = True) -> None:
        """Add the gradients of the denoiser."""
        error, count, inner = cache
        self.denoiser.backward(error * (2.0 * dy / count), inner, grads, need_dx=False)


class ConsistencyCache(NamedTuple):
    """The slope of the loss at every entry of f, the derivative of f by v, the denoiser's cache."""

    slope: Array  # (n, k)
    by_v: Array  # (n, 1)
    inner: Any


class Consistency(Objective):
    """Consistency distillation of a teacher into a student, along the teacher's guided flow.

    Parameters
    ----------
    denoiser : Denoiser
        The student: a copy of the teacher, or the teacher with an adapter.
    teacher : Denoiser
        Frozen here.
    average : MovingAverage
        Of the student. Its ``update`` must be called after every step of the training.
    huber : float
        The c of the loss, where it turns from a square into an absolute value.
    """

    def __init__(
        self, denoiser: Denoiser, teacher: Denoiser, average: MovingAverage, huber: float = 0.03
    ) -> None:
        super().__init__(denoiser)
        self.teacher = rebuild(teacher, Parameter.share)
        self.average, self.huber = average, huber

    def moving(self) -> list[Parameter]:
        """Return the average's Parameters, so that worker processes see them change."""
        return self.average.parameters()

    def loss(
        self,
        x0: Array,
        eps: Array,
        t: Array,
        words: Array,
        later: Array,
        guidance: Array,
        *,
        rng: Rng = None,
        count: Any = None,
    ) -> tuple[float, ConsistencyCache]:
        """Return the loss and the cache.

        Parameters
        ----------
        x0, eps : arrays, shape (n, k)
        t, later : arrays, shape (n,)
            A time of the grid, and the next one, which is smaller.
        words : array, shape (n, 2)
        guidance : array, shape (n, 1)
            The weight w of the teacher's step for each latent.
        rng, count
            As for every model.
        """
        z = z_of(x0, eps, t)
        v, inner = self.denoiser.forward(z, t, words, rng)
        f = x0_of(z, v, t)
        target = self.target(z, t, words, later, guidance)
        root = ((f - target) ** 2 + self.huber**2) ** 0.5  # (n, k)
        count = f.size if count is None else count
        loss = float((root - self.huber).sum()) / count
        return loss, ConsistencyCache((f - target) / (root * count), -alpha_sigma(t)[1], inner)

    def target(self, z: Array, t: Array, words: Array, later: Array, guidance: Array) -> Array:
        """Return f'(z', t'): the average's answer after one step of the teacher, (n, k)."""
        v = guided(self.teacher, z, t, words, guidance)
        z = z_of(x0_of(z, v, t), eps_of(z, v, t), later)  # a DDIM step
        v, _ = self.average.model.forward(z, later, words)
        return x0_of(z, v, later)

    def backward(self, dy: Any, cache: Any, grads: Grads, need_dx: bool = True) -> None:
        """Add the gradients of the student alone."""
        dv = cache.slope * cache.by_v * dy  # (n, k)
        self.denoiser.backward(dv, cache.inner, grads, need_dx=False)
