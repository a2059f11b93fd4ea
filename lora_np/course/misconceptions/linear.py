"""The catalogue of linear maps: a layer's gradients, LoRA's two halves, a numeric gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lora_np import ops
from lora_np.course.task import Draw, Misconception, Task, count, samples

LEADING = ((5,), (4,), (2, 3), (3, 3), (1,))  # the batch's axes, one entry a draw

# ------------------------------------------------------------------------------- y = x W^T + b


def _linear_backward(dy: Any, x: Any, W: Any) -> Any:
    """Return (dx, dW, db)."""
    _, cache = ops.linear_forward(x, W, np.zeros(W.shape[0]))
    return ops.linear_backward(dy, cache)


def _linear_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs: W wide, square (a transpose fits), tall, as large as the batch, and a row."""
    n, sides = rng.standard_normal, ((4, 3), (4, 4), (2, 5), (3, 3), (1, 3))
    return [
        {"dy": n((*batch, out)), "x": n((*batch, in_)), "W": n((out, in_))}
        for batch, (out, in_) in zip(LEADING, sides)
    ]


def _sizes(dy: Any) -> dict[str, Any]:
    return {"N": count(dy), "first": dy.shape[0]}


LINEAR = Task("linear_backward", ("dx", "dW", "db"), _linear_backward, _linear_draws, _sizes)
LINEAR.usual_mistakes(but=("db transposed",))


@LINEAR.mistake("dx")
def _dx_by_W_transposed(dy: Any, W: Any) -> Any:
    """Your dx is dy W^T: W is (out, in) already, so dx = dy W."""
    return dy @ W.T


@LINEAR.mistake("dx")
def _dx_without_dy(dy: Any, W: Any) -> Any:
    """Your dx leaves dy out: it is the gradient of sum(y); multiply by dy, dx = dy W."""
    return np.ones_like(dy) @ W


@LINEAR.mistake("dx")
def _dx_over_N(dx: Any, N: Any) -> Any:
    """Your dx equals the right one times 1/N: dy holds the loss's 1/N already, if it has one."""
    return dx / N


@LINEAR.mistake("dW")
def _dW_mean(dW: Any, N: Any) -> Any:
    """Your dW equals the right one times 1/N: samples are summed, not averaged."""
    return dW / N


@LINEAR.mistake("dW")
def _dW_over_the_first_axis(dW: Any, first: Any) -> Any:
    """Your dW equals the right one over the length of the first axis: samples are summed."""
    return dW / first


@LINEAR.mistake("dW")
def _dW_not_summed(dy: Any, x: Any) -> Any:
    """Your dW has one matrix a sample: the sum over the samples is missing."""
    return dy[..., :, None] * x[..., None, :]


@LINEAR.mistake("dW")
def _dW_of_the_last_sample(dy: Any, x: Any) -> Any:
    """Your dW is that of the last sample alone: add up with += over the samples."""
    return np.outer(samples(dy)[-1], samples(x)[-1])


@LINEAR.mistake("dW")
def _dW_of_the_first_sample(dy: Any, x: Any) -> Any:
    """Your dW is that of the first sample alone: sum over all samples."""
    return np.outer(samples(dy)[0], samples(x)[0])


@LINEAR.mistake("dW")
def _dW_of_sums(dy: Any, x: Any) -> Any:
    """Your dW is the product of the sums: multiply sample by sample first, then sum."""
    return np.outer(samples(dy).sum(0), samples(x).sum(0))


@LINEAR.mistake("dW")
def _dW_without_dy(dy: Any, x: Any) -> Any:
    """Your dW leaves dy out: it is the gradient of sum(y); dW = dy^T x."""
    return np.ones_like(samples(dy)).T @ samples(x)


@LINEAR.mistake("dW")
def _dW_keeps_the_batch_axis(dy: Any, x: Any) -> Any:
    """Your dW still has the batch's first axis: x may have several batch axes; sum over all."""
    return np.swapaxes(dy, -1, -2) @ x


@LINEAR.mistake("dW")
def _dW_by_dy_T(dy: Any, x: Any) -> Any:
    """Your dW is dy.T @ x, right for one batch axis: .T turns all; reshape to (N, ...) first."""
    return dy.T @ x


@LINEAR.mistake("db")
def _db_not_summed(dy: Any) -> Any:
    """Your db is dy itself: the bias reaches every sample, so sum over the samples."""
    return dy


@LINEAR.mistake("db")
def _db_mean(db: Any, N: Any) -> Any:
    """Your db equals the right one times 1/N: samples are summed, not averaged."""
    return db / N


@LINEAR.mistake("db")
def _db_keeps_the_batch_axis(dy: Any) -> Any:
    """Your db sums over the first axis alone: x may have several batch axes; sum over all."""
    return dy.sum(axis=0)


@LINEAR.mistake("db")
def _db_over_the_wrong_axis(dy: Any) -> Any:
    """Your db sums over the outputs and keeps the samples: sum over the samples."""
    return samples(dy).sum(axis=1)


@LINEAR.mistake()
def _db_forgotten(dx: Any, dW: Any) -> Any:
    """Your dx and dW are right, but db is missing: return (dx, dW, db)."""
    return dx, dW


# --------------------------------------------------------------- y = x W0^T + s ((x * m) A^T) B^T


def _lora_forward(x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any) -> Any:
    """Return y."""
    return ops.lora_linear_forward(x, W0, A, B, scale=alpha / len(A), mask=mask)[0]


def _lora_backward(dy: Any, x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any) -> Any:
    """Return (dx, dA, dB): W0 is frozen."""
    _, cache = ops.lora_linear_forward(x, W0, A, B, scale=alpha / len(A), mask=mask)
    dx, _, dA, dB, _ = ops.lora_linear_backward(dy, cache, (True, False, True, True, False))
    return dx, dA, dB


def _lora_draws(rng: np.random.Generator) -> list[Draw]:
    """Return inputs; the fourth are square throughout, so that A and B may change places."""
    n, sizes = (
        rng.standard_normal,
        ((4, 3, 2, 5.0), (4, 4, 3, 7.0), (2, 5, 1, 3.0), (3, 3, 3, 1.25), (1, 3, 2, 6.0)),
    )
    draws = []
    for batch, (out, in_, r, alpha) in zip(LEADING, sizes):
        mask = (rng.random((*batch, in_)) < 0.6) / 0.6
        mask.flat[0] = 0.0  # never all of one kind
        mask.flat[1] = 1.0 / 0.6
        draw = {"x": n((*batch, in_)), "W0": n((out, in_)), "A": n((r, in_)), "B": n((out, r))}
        draws.append({**draw, "alpha": alpha, "mask": mask})
    return draws


def _lora_backward_draws(rng: np.random.Generator) -> list[Draw]:
    draws = _lora_draws(rng)
    return [{"dy": rng.standard_normal((*d["x"].shape[:-1], len(d["W0"]))), **d} for d in draws]


def _lora_quantities(x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any) -> dict[str, Any]:
    """Return r, the scale, N, the masked input, and the two parts of y."""
    r = len(A)
    seen, scale = x * mask, alpha / r
    parts = {"base": x @ W0.T, "adapter": scale * (seen @ A.T @ B.T)}
    return {"r": r, "scale": scale, "N": count(x), "seen": seen, **parts}


def _lora_backward_quantities(
    dy: Any, x: Any, W0: Any, A: Any, B: Any, alpha: Any, mask: Any
) -> dict[str, Any]:
    """Return the same, the two parts being those of dx, and du without its scale."""
    more = _lora_quantities(x, W0, A, B, alpha, mask)
    du = dy @ B
    more.update(base=dy @ W0, adapter=more["scale"] * (du @ A) * mask)
    return {**more, "du": du}


WRONG_SCALES: dict[str, tuple[str, Callable[..., Any]]] = {  # name: what it is, its value
    "alpha over root r": ("alpha / sqrt(r): that is rsLoRA; here", lambda a, r, m, n: a / r**0.5),
    "alpha floor r": ("alpha // r, without the fraction:", lambda a, r, m, n: a // r),
    "alpha over in": ("alpha / in: r is A.shape[0], so", lambda a, r, m, n: a / n),
    "alpha over out": ("alpha / out: r is B.shape[1], so", lambda a, r, m, n: a / m),
    "r over alpha": ("r / alpha:", lambda a, r, m, n: r / a),
    "one over r": ("1 / r:", lambda a, r, m, n: 1 / r),
    "r for the scale": ("r:", lambda a, r, m, n: r),
}


def _with_scale(value: Callable[..., Any], out: str) -> Callable[..., Any]:
    """Return an answer that is right but for its scale: y, or all three gradients."""

    def y(base: Any, adapter: Any, alpha: Any, r: Any, scale: Any, W0: Any) -> Any:
        return base + adapter * (value(alpha, r, *W0.shape) / scale)

    def gradients(
        base: Any, adapter: Any, alpha: Any, r: Any, scale: Any, W0: Any, dA: Any, dB: Any
    ) -> Any:
        c = value(alpha, r, *W0.shape) / scale
        return base + adapter * c, dA * c, dB * c

    return y if out == "y" else gradients


def _wrong_scales(task: Task, output: str | None) -> None:
    """Add an entry for every wrong scale: of y, or of all gradients at once."""
    scales = dict(WRONG_SCALES)
    if output is None:  # y has entries of its own for these
        scales["alpha throughout"] = ("alpha:", lambda a, r, m, n: a)
        scales["scale missing throughout"] = ("1, or missing:", lambda a, r, m, n: 1.0)
    for name, (what, value) in scales.items():
        sentence = f"Your scale is {what} it should be alpha / r"
        entry = Misconception(name, output, sentence, _with_scale(value, output or ""))
        task.misconceptions.append(entry)


FORWARD = Task(
    "lora_linear_forward",
    ("y",),
    _lora_forward,
    _lora_draws,
    _lora_quantities,
    parts={"y": ("base", "adapter")},
)
FORWARD.usual_mistakes()
_wrong_scales(FORWARD, "y")


@FORWARD.mistake("y")
def _scale_missing(base: Any, adapter: Any, scale: Any) -> Any:
    """Your y has no scale: the adapter's part is multiplied by alpha / r."""
    return base + adapter / scale


@FORWARD.mistake("y")
def _alpha_not_over_r(base: Any, adapter: Any, r: Any) -> Any:
    """Your y scales the adapter by alpha: the scale is alpha / r."""
    return base + adapter * r


@FORWARD.mistake("y")
def _scale_squared(base: Any, adapter: Any, scale: Any) -> Any:
    """Your y has the scale squared: it belongs to A or to B, not to both."""
    return base + adapter * scale


@FORWARD.mistake("y")
def _scale_on_all(base: Any, adapter: Any, scale: Any) -> Any:
    """Your y scales the frozen path too: the scale belongs to the adapter's part alone."""
    return scale * base + adapter


@FORWARD.mistake("y")
def _adapter_missing(base: Any) -> Any:
    """Your y is x W0^T alone: the adapter's path is missing."""
    return base


@FORWARD.mistake("y")
def _W0_missing(adapter: Any) -> Any:
    """Your y is the adapter's part alone: add x W0^T."""
    return adapter


@FORWARD.mistake("y")
def _adapter_subtracted(base: Any, adapter: Any) -> Any:
    """Your y subtracts the adapter's part: the two paths add."""
    return base - adapter


@FORWARD.mistake("y")
def _mask_forgotten(x: Any, base: Any, A: Any, B: Any, scale: Any) -> Any:
    """Your y forgets the mask: the adapter sees x * mask."""
    return base + scale * (x @ A.T @ B.T)


@FORWARD.mistake("y")
def _mask_and_scale_forgotten(x: Any, base: Any, A: Any, B: Any) -> Any:
    """Your y forgets the mask and the scale: the adapter sees x * mask, times alpha / r."""
    return base + x @ A.T @ B.T


@FORWARD.mistake("y")
def _mask_on_both_paths(seen: Any, W0: Any, adapter: Any) -> Any:
    """Your y masks the frozen path too: dropout is on the adapter's input alone."""
    return seen @ W0.T + adapter


@FORWARD.mistake("y")
def _mask_on_the_change_of_W(x: Any, base: Any, A: Any, B: Any, scale: Any, mask: Any) -> Any:
    """Your y masks Delta W, with the first sample's mask: every sample of x has its own."""
    return base + scale * (x @ ((B @ A) * samples(mask)[0]).T)


@FORWARD.mistake("y")
def _mask_of_ones(x: Any, base: Any, A: Any, B: Any, scale: Any, mask: Any) -> Any:
    """Your y drops entries and does not rescale the rest: the mask's entries are 0 or 1/(1 - p)."""
    return base + scale * ((x * (mask > 0)) @ A.T @ B.T)


@FORWARD.mistake("y")
def _A_and_B_swapped(seen: Any, base: Any, A: Any, B: Any, scale: Any) -> Any:
    """Your y has A and B swapped: x goes through A first, (r, in), and then through B, (out, r)."""
    return base + scale * (seen @ B.T @ A.T)


@FORWARD.mistake("y")
def _change_of_W_transposed(seen: Any, base: Any, A: Any, B: Any, scale: Any) -> Any:
    """Your y has Delta W = B A transposed: y = x (B A)^T, as W0 is (out, in)."""
    return base + scale * (seen @ B @ A)


@FORWARD.mistake("y")
def _W0_transposed(x: Any, W0: Any, adapter: Any) -> Any:
    """Your y has x W0: W0 is (out, in), so y = x W0^T + ..."""
    return x @ W0 + adapter


BACKWARD = Task(
    "lora_linear_backward",
    ("dx", "dA", "dB"),
    _lora_backward,
    _lora_backward_draws,
    _lora_backward_quantities,
    parts={"dx": ("base", "adapter")},
)
BACKWARD.usual_mistakes()
_wrong_scales(BACKWARD, None)


@BACKWARD.mistake("dx")
def _dx_without_the_adapter(base: Any) -> Any:
    """Your dx lacks the adapter's path: x reaches y through A and B too, so add (du A) * mask."""
    return base


@BACKWARD.mistake("dx")
def _dx_without_W0(adapter: Any) -> Any:
    """Your dx lacks the frozen path: W0 gets no gradient, but x gets one through it, dy W0."""
    return adapter


@BACKWARD.mistake("dx")
def _dx_without_scale(base: Any, adapter: Any, scale: Any) -> Any:
    """Your dx has no scale on the adapter's path: du = scale dy B."""
    return base + adapter / scale


@BACKWARD.mistake("dx")
def _dx_with_scale_squared(base: Any, adapter: Any, scale: Any) -> Any:
    """Your dx has the scale squared on the adapter's path: du holds it already."""
    return base + adapter * scale


@BACKWARD.mistake("dx")
def _dx_with_alpha(base: Any, adapter: Any, r: Any) -> Any:
    """Your dx scales the adapter's path by alpha: the scale is alpha / r."""
    return base + adapter * r


@BACKWARD.mistake("dx")
def _dx_scaled_throughout(base: Any, adapter: Any, scale: Any) -> Any:
    """Your dx scales the frozen path too: only the adapter's path has the scale."""
    return scale * base + adapter


@BACKWARD.mistake("dx")
def _dx_forgets_the_mask(base: Any, du: Any, A: Any, scale: Any) -> Any:
    """Your dx forgets the mask: what was dropped on the way in gets no gradient back."""
    return base + scale * (du @ A)


@BACKWARD.mistake("dx")
def _dx_masked_throughout(base: Any, adapter: Any, mask: Any) -> Any:
    """Your dx masks the frozen path too: dropout is on the adapter's path alone."""
    return base * mask + adapter


@BACKWARD.mistake("dx")
def _dx_by_W0_transposed(dy: Any, W0: Any, adapter: Any) -> Any:
    """Your dx has dy W0^T: W0 is (out, in) already, so it is dy W0."""
    return dy @ W0.T + adapter


@BACKWARD.mistake("dA")
def _dA_over_scale(dA: Any, scale: Any) -> Any:
    """Your dA equals the right one times 1/scale: the scale is missing; du = scale dy B has it."""
    return dA / scale


@BACKWARD.mistake("dA")
def _dA_times_scale(dA: Any, scale: Any) -> Any:
    """Your dA equals the right one times scale: du or dA has it once too often."""
    return dA * scale


@BACKWARD.mistake("dA")
def _dA_times_r(dA: Any, r: Any) -> Any:
    """Your dA equals the right one times r: the scale is alpha / r, not alpha."""
    return dA * r


@BACKWARD.mistake("dA")
def _dA_over_N(dA: Any, N: Any) -> Any:
    """Your dA equals the right one times 1/N: samples are summed, not averaged."""
    return dA / N


@BACKWARD.mistake("dA")
def _dA_forgets_the_mask(du: Any, x: Any, scale: Any) -> Any:
    """Your dA forgets the mask: A saw x * mask, so dA = du^T (x * mask)."""
    return scale * (samples(du).T @ samples(x))


@BACKWARD.mistake("dA")
def _dA_of_the_last_sample(du: Any, seen: Any, scale: Any) -> Any:
    """Your dA is that of the last sample alone: add up with += over the samples."""
    return scale * np.outer(samples(du)[-1], samples(seen)[-1])


@BACKWARD.mistake("dA")
def _dA_not_summed(du: Any, seen: Any, scale: Any) -> Any:
    """Your dA has one matrix a sample: the sum over the samples is missing."""
    return scale * (du[..., :, None] * seen[..., None, :])


@BACKWARD.mistake("dA")
def _dA_by_du_T(du: Any, seen: Any, scale: Any) -> Any:
    """Your dA is du.T @ xd, right for one batch axis: .T turns all; reshape to (N, ...) first."""
    return scale * (du.T @ seen)


@BACKWARD.mistake("dA")
def _dA_by_B_transposed(dy: Any, seen: Any, B: Any, scale: Any) -> Any:
    """Your dA has dy B^T: B is (out, r), so du = scale dy B."""
    return scale * (samples(dy @ B.T).T @ samples(seen))


@BACKWARD.mistake("dA")
def _dA_as_if_A_were_W(dy: Any, seen: Any, scale: Any) -> Any:
    """Your dA is the gradient of Delta W: go on through B, dA = B^T dDelta."""
    return scale * (samples(dy).T @ samples(seen))


@BACKWARD.mistake("dB")
def _dB_over_scale(dB: Any, scale: Any) -> Any:
    """Your dB equals the right one times 1/scale: the scale is missing; dB = scale dy^T u."""
    return dB / scale


@BACKWARD.mistake("dB")
def _dB_times_scale(dB: Any, scale: Any) -> Any:
    """Your dB equals the right one times scale: u or dB has it once too often."""
    return dB * scale


@BACKWARD.mistake("dB")
def _dB_times_r(dB: Any, r: Any) -> Any:
    """Your dB equals the right one times r: the scale is alpha / r, not alpha."""
    return dB * r


@BACKWARD.mistake("dB")
def _dB_over_N(dB: Any, N: Any) -> Any:
    """Your dB equals the right one times 1/N: samples are summed, not averaged."""
    return dB / N


@BACKWARD.mistake("dB")
def _dB_forgets_the_mask(dy: Any, x: Any, A: Any, scale: Any) -> Any:
    """Your dB forgets the mask: u = (x * mask) A^T."""
    return scale * (samples(dy).T @ samples(x @ A.T))


@BACKWARD.mistake("dB")
def _dB_of_the_last_sample(dy: Any, seen: Any, A: Any, scale: Any) -> Any:
    """Your dB is that of the last sample alone: add up with += over the samples."""
    return scale * np.outer(samples(dy)[-1], samples(seen @ A.T)[-1])


@BACKWARD.mistake("dB")
def _dB_by_dy_T(dy: Any, seen: Any, A: Any, scale: Any) -> Any:
    """Your dB is dy.T @ u, right for one batch axis: .T turns all; reshape to (N, ...) first."""
    return scale * (dy.T @ (seen @ A.T))


@BACKWARD.mistake("dB")
def _dB_by_A_transposed(dy: Any, seen: Any, A: Any, scale: Any) -> Any:
    """Your dB has x A: A is (r, in), so u = (x * mask) A^T."""
    return scale * (samples(dy).T @ samples(seen @ A))


@BACKWARD.mistake()
def _mask_and_scale_forgotten_throughout(
    dy: Any, x: Any, A: Any, B: Any, base: Any, du: Any
) -> Any:
    """Your gradients forget the mask and the scale: A sees x * mask, times alpha / r."""
    return base + du @ A, samples(du).T @ samples(x), samples(dy).T @ samples(x @ A.T)


@BACKWARD.mistake()
def _dW0_computed(dy: Any, x: Any, dx: Any, dA: Any, dB: Any) -> Any:
    """Your answer has dW0: W0 is frozen, so do not compute it; return (dx, dA, dB)."""
    return dx, samples(dy).T @ samples(x), dA, dB


@BACKWARD.mistake()
def _dx_forgotten(dA: Any, dB: Any) -> Any:
    """Your dA and dB are right, but dx is missing: the layers below need it."""
    return dA, dB


# ----------------------------------------------------------------------------- central differences


def _entrywise(slope: Callable, x: Any) -> Any:
    """Return slope(x, step) for the step of length 1 along every entry of x."""
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1.0
        g[i] = slope(x, step)
    return g


def _numeric_gradient(f: Callable, x: Any, h: Any) -> Any:
    """Return (f(x + h e_i) - f(x - h e_i)) / 2h for every entry i of x."""
    return _entrywise(lambda x, e: (f(x + h * e) - f(x - h * e)) / (2.0 * h), x)


def _numeric_draws(rng: np.random.Generator) -> list[Draw]:
    """Return coefficients of cubics; h is large, so that every other formula shows."""
    n = rng.standard_normal
    return [
        {"f": n(shape), "x": n(shape), "h": h}
        for shape, h in (((4,), 0.1), ((2, 3), 0.02), ((3, 3), 0.3))
    ]


NUMERIC = Task("numeric_gradient", ("g",), _numeric_gradient, _numeric_draws, keeps_dtype=False)
NUMERIC.usual_mistakes(but=("doubled",))


@NUMERIC.mistake("g")
def _forward_difference(f: Callable, x: Any, h: Any) -> Any:
    """Your g is the forward difference, with an error of order h: step to both sides."""
    return _entrywise(lambda x, e: (f(x + h * e) - f(x)) / h, x)


@NUMERIC.mistake("g")
def _backward_difference(f: Callable, x: Any, h: Any) -> Any:
    """Your g is the backward difference, with an error of order h: step to both sides."""
    return _entrywise(lambda x, e: (f(x) - f(x - h * e)) / h, x)


@NUMERIC.mistake("g")
def _half_the_step(f: Callable, x: Any, h: Any) -> Any:
    """Your g steps by h/2 to both sides: here the step to each side is h, and 2h lie between."""
    return _numeric_gradient(f, x, h / 2)


@NUMERIC.mistake("g")
def _entries_left_moved(f: Callable, x: Any, h: Any) -> Any:
    """Your g leaves entries moved: put each one back before you move the next."""
    z, g = x.copy(), np.zeros_like(x)
    for i in np.ndindex(x.shape):
        z[i] += h
        up = f(z)
        z[i] -= 2 * h
        g[i] = (up - f(z)) / (2 * h)
    return g


@NUMERIC.mistake("g")
def _not_over_h(g: Any, h: Any) -> Any:
    """Your g is the difference f(x + h) - f(x - h): divide it by 2h."""
    return g * 2 * h


@NUMERIC.mistake("g")
def _over_two_only(g: Any, h: Any) -> Any:
    """Your g is divided by 2 and not by h: divide by 2h."""
    return g * h


@NUMERIC.mistake("g")
def _times_h_over_two(g: Any, h: Any) -> Any:
    """Your g is divided by 2 and then multiplied by h: write / (2 * h), with the brackets."""
    return g * h * h


@NUMERIC.mistake("g")
def _all_entries_at_once(f: Callable, x: Any, h: Any) -> Any:
    """Your g moves all entries at once: move one entry at a time, to see its own slope."""
    return np.full_like(x, (f(x + h) - f(x - h)) / (2 * h))


@NUMERIC.mistake("g")
def _half_the_forward_difference(f: Callable, x: Any, h: Any) -> Any:
    """Your g is half the forward difference: from x + h a step of -2h leads to x - h, not of -h."""
    return _forward_difference(f, x, h) / 2


@NUMERIC.mistake("g")
def _not_over_two(g: Any) -> Any:
    """Your g equals the right one times 2: the two points are 2h apart, so divide by 2h."""
    return 2 * g


@NUMERIC.mistake("g")
def _own_step(f: Callable, x: Any, h: Any) -> Any:
    """Your g hardly depends on h: use the h that is given, and two values of f an entry."""
    return (4 * _numeric_gradient(f, x, h / 2) - _numeric_gradient(f, x, h)) / 3  # a cubic's slope


@NUMERIC.mistake("g")
def _one_number(f: Callable, x: Any, h: Any) -> Any:
    """Your g is one number: the gradient has the shape of x, one slope an entry."""
    return np.array((f(x + h) - f(x - h)) / (2 * h))
