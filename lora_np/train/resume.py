"""Save and load a model's Parameters by name; save and load the state of a training run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.backend import Array, like, to_host
from lora_np.files import CheckpointError, load_arrays, save_arrays
from lora_np.layers import Layer
from lora_np.parameters import Parameter

PLAIN = "plain values, as JSON"
KEEP_EVERY = 10.0  # seconds between two saved states
STATE = (  # what a run's state holds
    "arrays",
    "optimizer",
    "parameters",
    "position",
    "optimizer steps",
    "generators",
    "history",
)


def save_parameters(path: str | Path, model: Layer, *, trainable_only: bool = False) -> None:
    """Write a model's Parameters, by name, to an ``.npz`` file.

    A Parameter that is stored in a packed form is written in that form, as arrays with names such
    as "W.nf4.codes"; a model that stores the Parameter in the same form can load the file.

    Parameters
    ----------
    path : str or Path
    model : Layer
    trainable_only : bool
        Leave out frozen Parameters: a file with only an adapter is small.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Linear
    >>> from lora_np.files import load_arrays
    >>> from lora_np.train import save_parameters
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_parameters(f"{folder}/model.npz", Linear(3, 2, np.random.default_rng(0)))
    ...     {name: x.shape for name, x in load_arrays(f"{folder}/model.npz").items()}
    {'W': (2, 3), 'b': (2,)}
    """
    chosen = {n: p for n, p in model.parameters().items() if p.trainable or not trainable_only}
    save_arrays(path, {name: to_host(array) for name, (_, array) in _arrays_of(chosen).items()})


def _arrays_of(parameters: Mapping[str, Parameter]) -> dict[str, tuple[Parameter, Array]]:
    """Return, by its name in a file, each array in memory and the Parameter that it belongs to."""
    return {
        f"{name}{end}": (p, array)
        for name, p in parameters.items()
        for end, array in p.arrays().items()
    }


def load_parameters(path: str | Path, model: Layer) -> None:
    """Read a file of :func:`save_parameters` into the Parameters of the same names.

    Raises
    ------
    CheckpointError
        If the file cannot be read, has a name or a shape that the model does not have, lacks a
        trainable Parameter, or would change another model. The model is then unchanged.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Linear
    >>> from lora_np.train import load_parameters, save_parameters
    >>> one, other = (Linear(3, 2, np.random.default_rng(seed)) for seed in (0, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_parameters(f"{folder}/model.npz", one)
    ...     load_parameters(f"{folder}/model.npz", other)
    >>> np.array_equal(one.W.value, other.W.value)
    True
    """
    fill(model, load_arrays(path), str(path))


def fill(model: Layer, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Set a model's Parameters to `arrays`, with the errors of :func:`load_parameters`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear
    >>> from lora_np.train import fill
    >>> layer = Linear(2, 1, np.random.default_rng(0))
    >>> fill(layer, {"W": np.array([[3.0, 4.0]]), "b": np.zeros(1)}, source="my notes")
    >>> layer.forward(np.ones((1, 2), np.float32))[0].tolist()
    [[7.0]]
    """
    parameters = model.parameters()
    held = _arrays_of(parameters)
    for name, array in arrays.items():
        if name not in held:
            raise CheckpointError(f"{source} holds {name!r}, which {_why_not(parameters, name)}")
        _expect_fit(name, array, *held[name], source)
    given = {held[name][0] for name in arrays}  # a stored Parameter needs all its arrays
    for name, (parameter, _) in held.items():
        if name not in arrays and (parameter.trainable or parameter in given):
            reason = "trains" if parameter.trainable else "needs beside its other arrays"
            raise CheckpointError(f"{source} lacks {name}, which the model {reason}")
    values = {name: _cast(array, held[name][1].dtype) for name, array in arrays.items()}
    for name, value in values.items():
        if np.isinf(value).sum() > np.isinf(arrays[name]).sum():
            raise CheckpointError(f"{source} holds {name} with entries too large for {value.dtype}")
    for name, value in values.items():
        own = held[name][1]
        own[...] = like(value, own)  # in place, so that views stay views


def _expect_fit(
    name: str, array: np.ndarray, parameter: Parameter, own: Array, source: str
) -> None:
    """Raise CheckpointError unless `array` can take the place of `own`, an array of `parameter`."""
    if array.shape != own.shape:
        raise CheckpointError(
            f"{source} holds {name} with shape {array.shape}, expected {own.shape}"
        )
    floats = array.dtype.kind == own.dtype.kind == "f"
    if not floats and array.dtype != own.dtype:
        expected = "floats" if own.dtype.kind == "f" else own.dtype
        raise CheckpointError(f"{source} holds {name} as {array.dtype}, expected {expected}")
    if parameter.shared:
        raise CheckpointError(
            f"{source} holds {name}, which two models share: load into the base before "
            "inject(), and save an adapter with trainable_only=True"
        )
    if not getattr(getattr(own, "flags", None), "writeable", True):
        raise CheckpointError(
            f"{source} holds {name}, which the model maps from another file: load into "
            "copy_model(model)"
        )


def _why_not(parameters: Mapping[str, Parameter], name: str) -> str:
    """Return why a model has no array of this name."""
    if name in parameters:
        form = parameters[name].stored_as
        return f"the model stores as {form}: load into the base before it is stored"
    return "the model does not have"


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # too large entries become inf
        return array.astype(dtype)


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the state of a training run, ``trainer.state()``, to an ``.npz`` file.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.train import load_state, save_state
    >>> state = {"arrays": {"vector": np.ones(2)}, "position": 3, "history": {"loss": [0.5]}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state(f"{folder}/run.npz", state)
    ...     again = load_state(f"{folder}/run.npz")
    >>> again["position"], again["history"], again["arrays"]["vector"].tolist()
    (3, {'loss': [0.5]}, [1.0, 1.0])
    """
    plain = {name: value for name, value in state.items() if name != "arrays"}
    text = np.frombuffer(json.dumps(plain).encode("utf-8"), np.uint8)
    save_arrays(path, {**state["arrays"], PLAIN: text})


def load_state(path: str | Path) -> dict[str, Any]:
    """Read the state of a training run that :func:`save_state` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing or is not a saved training run.

    Examples
    --------
    >>> from lora_np.files import CheckpointError
    >>> from lora_np.train import load_state
    >>> try:
    ...     load_state("no_such_run.npz")
    ... except CheckpointError as error:
    ...     print(error)
    no_such_run.npz does not exist
    """
    arrays = load_arrays(path)
    try:
        plain = json.loads(arrays.pop(PLAIN).tobytes().decode("utf-8"))
        return {"arrays": arrays, **plain}
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(f"{path} is not a saved training run") from None


def continue_from(path: str | Path, trainer: Any, key: Mapping[str, Any]) -> None:
    """Continue a run from the state in a file, which is written anew every ten seconds from now on.

    Parameters
    ----------
    path : str or Path
        If the file is missing, damaged or of another run, the run begins at its first step.
    trainer : Trainer
    key : mapping
        What the run depends on, as plain values: a state with another key is of another run.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig
    >>> from lora_np.train import Trainer, continue_from, save_state
    >>> def begin():
    ...     model = GPT(GPTConfig(4, 3, 1, 1, 8), np.random.default_rng(0))
    ...     batch = np.array([[0, 1, 2]]), np.array([[1, 2, 3]])
    ...     return Trainer(model, lambda: batch, steps=5, lr=0.02)
    >>> first, second = begin(), begin()
    >>> first.run(3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state(f"{folder}/state.npz", {**first.state(), "key": {"seed": 0}})
    ...     continue_from(f"{folder}/state.npz", second, {"seed": 0})
    >>> second.position
    3
    """
    with suppress(CheckpointError):
        state = load_state(path)
        if state.get("key") == key:
            trainer.load(state)
    kept = time.monotonic()

    def keep(*step: Any) -> None:
        nonlocal kept
        if time.monotonic() - kept >= KEEP_EVERY:
            save_state(path, {**trainer.state(), "key": key})
            kept = time.monotonic()

    trainer.hooks.append(keep)


def expect_same_run(
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    arrays: Mapping[str, Any],
    generators: list[str],
    steps: int,
) -> None:
    """Raise ValueError that names the first thing in which a state is not of such a run.

    Parameters
    ----------
    state : mapping
        What ``Trainer.state()`` returned.
    identity : mapping
        The run's ``optimizer`` and ``parameters``, as a state has them.
    arrays : mapping of str to array
        The run's own, with the state's names.
    generators : list of str
        Their kinds, e.g. "PCG64".
    steps : int
        Of the whole run.

    Examples
    --------
    >>> from lora_np.train.resume import expect_same_run
    >>> try:
    ...     expect_same_run({"arrays": {}}, {}, {}, [], 3)
    ... except ValueError as error:
    ...     print(error)
    the state lacks 'optimizer': pass what Trainer.state() returned
    """
    if missing := [name for name in STATE if name not in state]:
        raise ValueError(f"the state lacks {missing[0]!r}: pass what Trainer.state() returned")
    kinds = [generator["bit_generator"] for generator in state["generators"]]
    for what, found, expected in (
        ("optimizer", state["optimizer"], identity["optimizer"]),
        *_differences("Parameter", state["parameters"], identity["parameters"]),
        *_differences("array", _forms(state["arrays"]), _forms(arrays)),
        ("generators", kinds, generators),
    ):
        if found != expected:
            raise ValueError(f"the state is from another run: {what} {found}, expected {expected}")
    if state["position"] > steps:
        raise ValueError(
            f"the state is from another run: {state['position']} steps are done, expected at most "
            f"steps = {steps}"
        )


def _forms(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{array.dtype} {tuple(array.shape)}" for name, array in arrays.items()}


def _differences(kind: str, found: Mapping, expected: Mapping) -> list[tuple[str, Any, Any]]:
    """Return what two tables say of each name, as (what, found, expected)."""
    names = [*expected, *(name for name in found if name not in expected)]
    return [
        (f"{kind} {name!r}", found.get(name, "absent"), expected.get(name, "absent"))
        for name in names
    ]
