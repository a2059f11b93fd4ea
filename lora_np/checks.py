"""Does your own layer or method keep the contract? One call checks all of it.

``check_layer(layer, x)`` and ``check_method(config)`` work on any class, as scikit-learn's
``check_estimator`` does. Each claim of the contract is checked by a function below. One error
lists all claims that fail.

Gradients are checked in float64 at RANDOM Parameters: where B is zero, most wrong gradients look
right.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters import load_adapter, save_adapter
from lora_np.costs import account
from lora_np.gradcheck import check_gradients
from lora_np.layers import (
    MLP,
    CausalSelfAttention,
    Chain,
    Layer,
    LayerNorm,
    Residual,
    as_pair,
    copy_model,
)
from lora_np.methods import MethodConfig, adapters, inject, merge, method_of, tensors_of
from lora_np.parameters import Grads
from lora_np.selfcheck import at_random

TOLERANCE = 1e-9  # between two computations of one array in float64, over its largest entry


class ContractError(AssertionError):
    """A layer or a method that breaks the contract; the message lists every claim that fails."""


Claim = tuple[str, Callable[[], None]]


def check_layer(layer: Layer, x: np.ndarray) -> list[str]:
    """Hold a layer to the contract of layers; return the claims that were checked.

    Parameters
    ----------
    layer : Layer
        Stays unchanged: the check runs on a copy in float64 with random Parameters; stored ones
        are decoded.
    x : ndarray
        An input, of floats or of integers, with at least one batch axis.

    Raises
    ------
    ContractError
        If a claim does not hold; the message lists all that fail.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, check_layer
    >>> layer = Linear(3, 2, np.random.default_rng(0))
    >>> len(check_layer(layer, np.ones((4, 3))))
    7
    """
    rng = np.random.default_rng(0)
    layer = copy_model(layer, dtype=np.float64, decode=True)
    at_random(layer, rng)
    x = x.astype(np.float64) if x.dtype.kind == "f" else x
    return _hold(type(layer).__name__, _layer_claims(layer, x))


def check_method(config: MethodConfig, model: Layer | None = None) -> list[str]:
    """Hold a method to the contract of methods; return the claims that were checked.

    Parameters
    ----------
    config : MethodConfig
    model : Layer, optional
        The model to adapt, copied to float64: a language model, which is given tokens, or a model
        that is given vectors as long as a row of its first Parameter. By default the parts of a
        transformer block: an attention layer, an MLP and a LayerNorm.

    Raises
    ------
    ContractError
        If a claim does not hold; the message lists all that fail.

    Examples
    --------
    >>> from lora_np import LoraConfig, check_method
    >>> len(check_method(LoraConfig(r=2)))
    15
    """
    rng = np.random.default_rng(0)
    if model is None:
        model = Chain(Residual(CausalSelfAttention(8, 2, rng)), MLP(8, 16, rng), LayerNorm(8))
        x = rng.standard_normal((2, 3, 8))
    else:
        x = _input_of(model, rng)
    base = copy_model(model, dtype=np.float64, decode=True)
    at_random(base, rng, 0.3)
    return _hold(type(config).__name__, _method_claims(config, base, x))


def _input_of(model: Layer, rng: np.random.Generator) -> np.ndarray:
    """Return tokens (2, 3) for a model that has a vocabulary, else vectors (2, 3, d)."""
    vocab_size = getattr(model, "vocab_size", None)
    if vocab_size is not None:
        return rng.integers(0, vocab_size, (2, 3))
    return rng.standard_normal((2, 3, next(iter(model.parameters().values())).shape[-1]))


def _hold(name: str, claims: Iterable[Claim]) -> list[str]:
    """Check all claims; return their names, or raise one error that lists those that fail."""
    held, failed = [], []
    for claim, check in claims:
        try:
            check()
            held.append(claim)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            failed.append(f"- {claim}: {reason[:300]}")
    if failed:
        raise ContractError("\n".join([f"{name} breaks the contract:", *failed]))
    return held


def _expect(ok: bool, reason: str) -> None:
    if not ok:
        raise ContractError(reason)


def _expect_close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    size = max(1.0, float(np.abs(expected).max(initial=0.0)))
    error = float(np.abs(found - expected).max(initial=0.0)) / size
    _expect(error <= TOLERANCE, f"{what} by {error:.1e} of the largest entry")


# ----------------------------------------------------------------------------------- a layer


def _layer_claims(layer: Layer, x: np.ndarray) -> list[Claim]:
    return [
        ("gradients agree with central differences", lambda: _gradients(layer, x, "central")),
        ("gradients agree with the complex step", lambda: _gradients(layer, x, "complex")),
        ("forward and backward change no array", lambda: _purity(layer, x)),
        ("float32 stays float32", lambda: _dtypes(layer, x)),
        ("frozen Parameters get no gradient", lambda: _frozen(layer, x)),
        ("samples do not mix", lambda: _samples(layer, x)),
        ("a pickled copy computes the same", lambda: _pickled(layer, x)),
    ]


def _gradients(layer: Layer, x: np.ndarray, method: str) -> None:
    forward, backward, inputs = as_pair(layer)
    report = check_gradients(forward, backward, inputs(x), method=method)
    wrong = [
        f"d{row.name} is off by {row.error:.1e} {row.note}"
        for row in report.rows
        if not row.error <= report.tolerance
    ]
    _expect(report.ok, "; ".join(wrong))


def _step(layer: Layer, x: np.ndarray, need_dx: bool = True) -> tuple[Any, Any, Grads]:
    """Return y, dx and the gradients for dy = 1."""
    grads = Grads()
    y, cache = layer.forward(x)
    dx = layer.backward(np.ones_like(y), cache, grads, need_dx)
    return y, dx, grads


def _purity(layer: Layer, x: np.ndarray) -> None:
    parameters = layer.parameters()
    values = {name: p.value.copy() for name, p in parameters.items()}
    before = x.copy()
    first, again = _step(layer, x), _step(layer, x)
    _expect(np.array_equal(x, before), "x was changed")
    for name, p in parameters.items():
        _expect(np.array_equal(p.value, values[name]), f"{name} was changed")
    _expect(np.array_equal(first[0], again[0]), "a second call gives another y")
    y, cache = layer.forward(x)
    dy, grads = np.ones_like(y), Grads()
    layer.forward(np.flip(x, axis=0))  # another call may come between, as threads make it
    dx = layer.backward(dy, cache, grads)
    _expect(bool((dy == 1.0).all()), "dy was changed")
    pairs = [(dx, first[1]), *((grads.get(p), first[2].get(p)) for p in parameters.values())]
    _expect(
        all(np.array_equal(found, expected) for found, expected in pairs),
        "backward reads what a later forward left in the layer: put it in the cache",
    )


def _dtypes(layer: Layer, x: np.ndarray) -> None:
    narrow = copy_model(layer, dtype=np.float32)
    y, dx, grads = _step(narrow, x.astype(np.float32) if x.dtype.kind == "f" else x)
    _expect(y.dtype == np.float32, f"y is {y.dtype}")
    _expect(dx is None or dx.dtype == np.float32, f"dx is {getattr(dx, 'dtype', None)}")
    for name, p in narrow.parameters().items():
        g = grads.get(p)
        _expect(g is None or g.dtype == np.float32, f"d{name} is {getattr(g, 'dtype', None)}")


def _frozen(layer: Layer, x: np.ndarray) -> None:
    for name in layer.parameters():
        twin = copy_model(layer)
        frozen = twin.parameters()[name]
        frozen.trainable = False
        _, _, grads = _step(twin, x)  # Grads refuses the gradient of a frozen Parameter
        _expect(frozen not in grads, f"d{name} was formed")
    _expect(_step(layer, x, need_dx=False)[1] is None, "dx is returned with need_dx=False")


def _samples(layer: Layer, x: np.ndarray) -> None:
    whole, _ = layer.forward(x)
    one_by_one = np.concatenate([layer.forward(x[i : i + 1])[0] for i in range(len(x))])
    _expect_close(one_by_one, whole, "a sample alone and the same sample in a batch differ")


def _pickled(layer: Layer, x: np.ndarray) -> None:
    twin = pickle.loads(pickle.dumps(layer))
    _expect(np.array_equal(twin.forward(x)[0], layer.forward(x)[0]), "y differs")


# ---------------------------------------------------------------------------------- a method


def _method_claims(config: MethodConfig, base: Layer, x: np.ndarray) -> list[Claim]:
    start = inject(base, config, np.random.default_rng(1))
    trained = inject(base, config, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    for p in tensors_of(trained).values():
        if p.dtype.kind == "f":  # places in a weight stay
            p.value = p.value + 0.1 * rng.standard_normal(p.shape).astype(p.dtype)
    starts = "computes what the base computes" if config.starts_at_base else "differs from the base"
    merges = "a merged model computes the same" if config.merges else "merge() is refused"
    return [
        (f"at the start the model {starts}", lambda: _start(config, start, base, x)),
        ("injecting leaves the base unchanged", lambda: _base_untouched(config, base)),
        ("every trainable Parameter gets a gradient", lambda: _trains(trained, x)),
        *_layer_claims(trained, x),  # an adapted model is a layer
        ("the Parameters have the base's dtype", lambda: _base_dtype(config, base)),
        (merges, lambda: _merges(config, trained, x)),
        ("account() counts the Parameters added", lambda: _booked(trained, base)),
        ("a saved and loaded model computes the same", lambda: _files(trained, base, x)),
        ("copies keep the configuration", lambda: _copies(trained, x)),
    ]


def _start(config: MethodConfig, adapted: Layer, base: Layer, x: np.ndarray) -> None:
    same = np.array_equal(adapted.forward(x)[0], base.forward(x)[0])
    if config.starts_at_base:
        _expect(same, "y differs from the base's: if that is meant, set starts_at_base = False")
    else:
        _expect(not same, "y equals the base's: set starts_at_base = True")


def _base_untouched(config: MethodConfig, base: Layer) -> None:
    values = {name: p.value.copy() for name, p in base.parameters().items()}
    adapted = inject(base, config, np.random.default_rng(3))
    for p in tensors_of(adapted).values():
        p.value[...] = 7.0  # raises if the array is a view of the base's
    for name, p in base.parameters().items():
        _expect(np.array_equal(p.value, values[name]), f"{name} of the base was changed")


def _trains(adapted: Layer, x: np.ndarray) -> None:
    trainable = {name: p for name, p in adapted.parameters().items() if p.trainable}
    _expect(bool(trainable), "nothing is trainable")
    _, _, grads = _step(adapted, x)
    for name, p in trainable.items():
        _expect(p in grads, f"{name} is trainable and gets no gradient")


def _base_dtype(config: MethodConfig, base: Layer) -> None:
    for dtype in (np.float32, np.float64):
        adapted = inject(copy_model(base, dtype=dtype), config, np.random.default_rng(3))
        for name, p in adapted.parameters().items():
            _expect(p.dtype == dtype, f"{name} is {p.dtype} over a base of {np.dtype(dtype)}")


def _merges(config: MethodConfig, adapted: Layer, x: np.ndarray) -> None:
    if not config.merges:
        try:
            merge(adapted)
        except ValueError:
            return
        raise ContractError("merge() works: set merges = True")
    plain = merge(adapted)
    _expect(not adapters(plain) and method_of(plain) is None, "the merged model has adapters")
    _expect_close(plain.forward(x)[0], adapted.forward(x)[0], "y differs")


def _booked(adapted: Layer, base: Layer) -> None:
    found, whole = account(adapted), account(base).base
    _expect(found.base == whole, f"base is {found.base}, the base itself has {whole}")
    added = {p for layer in adapters(adapted).values() for p in layer.own().values()}
    count = sum(p.size for p in added)
    _expect(found.adapter == count, f"adapter is {found.adapter}, the layers add {count}")


def _files(adapted: Layer, base: Layer, x: np.ndarray) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        save_adapter(adapted, Path(folder) / "adapter")
        again = load_adapter(base, Path(folder) / "adapter")
    _expect_close(again.forward(x)[0], adapted.forward(x)[0], "y differs")
    ours, theirs = ({n for n, p in m.parameters().items() if p.trainable} for m in (adapted, again))
    _expect(ours == theirs, f"{sorted(ours ^ theirs)[:3]} is trainable in only one of the two")


def _copies(adapted: Layer, x: np.ndarray) -> None:
    for twin in (copy_model(adapted), pickle.loads(pickle.dumps(adapted))):
        _expect(method_of(twin) == method_of(adapted), "the configuration is lost")
        _expect(np.array_equal(twin.forward(x)[0], adapted.forward(x)[0]), "y differs")
