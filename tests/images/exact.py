"""Denoisers that are known in closed form, where the data are Gaussian or a mixture."""

import numpy as np

from lora_np.images.samplers import NONE
from lora_np.images.schedule import alpha_sigma
from lora_np.layers import Layer
from lora_np.parameters import Parameter


class Gaussian(Layer):
    """The best v for data N(m, s^2) in each coordinate: z is N(alpha m, s_t^2) at time t.

    The words shift m by (letter, family) unless no words are given. Calls are counted, and the
    dtypes that arrive are kept.
    """

    def __init__(self, m, s, dtype=np.float64):
        self.m, self.s = Parameter(np.array(m, dtype)), Parameter(np.array(s, dtype))
        self.k, self.rows, self.dtypes = len(m), [], set()

    def mean(self, words):
        given = (words != np.array(NONE)).any(axis=1)[:, None]
        shift = np.resize(np.eye(2), (2, self.k)).astype(self.m.dtype)
        return self.m.value + given * (words.astype(self.m.dtype) @ shift)

    def forward(self, z, t, words, rng=None):
        self.rows.append(len(z))
        self.dtypes |= {z.dtype.name, t.dtype.name}
        (alpha, sigma), m, s = alpha_sigma(t), self.mean(words), self.s.value
        return alpha * sigma * (1 - s**2) * (z - alpha * m) / self.variance(t) - sigma * m, None

    def variance(self, t):
        alpha, sigma = alpha_sigma(t)
        return alpha**2 * self.s.value**2 + sigma**2  # s_t^2

    def flow(self, z, t, words):
        """The end at time 0 of the path of the probability-flow ODE through z at t."""
        alpha, m = alpha_sigma(t)[0], self.mean(words)
        return m + self.s.value * (z - alpha * m) / np.sqrt(self.variance(t))


class GaussianFlow(Gaussian):
    """The consistency model of the same data: its x0 is the end of the path."""

    def forward(self, z, t, words, rng=None):
        alpha, sigma = alpha_sigma(t)
        return (alpha * z - self.flow(z, t, words)) / sigma, None


class Mixture(Layer):
    """The best v for numbers from N(m_i, s^2) with chance p_i."""

    k = 1

    def __init__(self, m, p, s, dtype=np.float64):
        self.m, self.p, self.s = Parameter(np.array(m, dtype)), np.array(p, dtype), s

    def forward(self, z, t, words, rng=None):
        alpha, sigma = alpha_sigma(t)
        variance = alpha**2 * self.s**2 + sigma**2
        m = self.m.value  # (2,); z is (n, 1)
        fits = np.log(self.p) - (z - alpha * m) ** 2 / (2 * variance)
        chance = np.exp(fits - fits.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)  # (n, 2), of either Gaussian given z
        v = alpha * sigma * (1 - self.s**2) * (z - alpha * m) / variance - sigma * m
        return (chance * v).sum(axis=1, keepdims=True), None

    def distribution(self, z, t):
        """The chance of a number below z at time t."""
        from scipy.special import ndtr

        alpha, sigma = alpha_sigma(t)
        s_t = np.sqrt(alpha**2 * self.s**2 + sigma**2)
        return (self.p * ndtr((z - alpha * self.m.value) / s_t)).sum(axis=-1)

    def flow(self, z, t):
        """The end of the path: in one dimension paths keep their order, and so their quantile."""
        low, high = np.full(len(z), -9.0), np.full(len(z), 9.0)
        for _ in range(60):  # bisection
            middle = (low + high) / 2
            below = self.distribution(middle[:, None], 0.0) < self.distribution(z, t)
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return low[:, None]
