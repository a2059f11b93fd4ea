"""Every name that lora_np asks of CuPy exists in CuPy, which imports without a GPU or its driver.

The names are read from the source: what follows ``xp.``, ``get_xp(...).`` or ``cupy.``. And what
tests/fake_cupy.py pretends to have must exist too, or it would prove nothing.
"""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from lora_np import backend
from tests import fake_cupy

pytestmark = pytest.mark.peers

PACKAGE = Path(backend.__file__).parent
MODULES = {"xp", "cupy"}  # variables that hold the array module
GETTERS = {"get_xp", "get_device"}  # functions that return it


@pytest.fixture(scope="module")
def cupy():
    import cupy

    return cupy


def dotted(node):
    """Return "linalg.qr" for the expression ``xp.linalg.qr``; None if it starts elsewhere."""
    path = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Call):
        starts = getattr(node.func, "id", getattr(node.func, "attr", None)) in GETTERS
    else:
        starts = isinstance(node, ast.Name) and node.id in MODULES
    return ".".join(path) if path and starts else None


def names_used(source):
    """Return the names that a module's source asks of the array module, with keywords passed."""
    tree, used = ast.parse(source), {}
    for node in ast.walk(tree):
        if name := dotted(node):
            used.setdefault(name, set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            used[name] |= {keyword.arg for keyword in node.keywords}
    return used


def package_names():
    """Return :func:`names_used` of the whole package."""
    used = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, keywords in names_used(path.read_text(encoding="utf-8")).items():
            used.setdefault(name, set()).update(keywords)
    return used


def find(module, name):
    """Return what a dotted name means in `module`, or None."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def fake_names():
    """Return the names of the fake's functions, "linalg.qr" among them."""
    inner = {
        f"{part}.{name}"
        for part in ("add", "cuda", "linalg")
        for name in vars(getattr(fake_cupy, part))
        if not name.startswith("_")
    }
    return {*fake_cupy.__all__, *inner}


def test_the_collector_finds_each_way_of_asking():
    source = """
xp = get_xp(x)
y = xp.linalg.qr(x.T, mode="r") + get_xp(x).exp(np.log(x)) + backend.get_xp(x).float64(1)
z = cupy.cuda.is_available
"""
    assert names_used(source) == {
        "linalg": set(),
        "linalg.qr": {"mode"},
        "exp": set(),
        "float64": set(),
        "cuda": set(),
        "cuda.is_available": set(),
    }


def test_cupy_has_every_name_the_package_uses(cupy):
    used = package_names()
    assert {"exp", "tanh", "concatenate", "linalg.qr", "asnumpy", "ndarray"} <= set(used)
    assert [name for name in used if find(cupy, name) is None] == []


def test_cupy_takes_every_keyword_the_package_passes(cupy):
    for name, keywords in package_names().items():
        if keywords:
            found = find(cupy, name)
            if isinstance(found, cupy.ufunc):  # has no signature to ask; it takes these
                taken = {"out", "dtype", "casting"}
            else:
                taken = set(inspect.signature(found).parameters)
            assert keywords <= taken, name


def test_the_fake_has_every_name_the_package_uses():
    assert set(package_names()) <= fake_names()


def test_cupy_has_every_function_of_the_fake(cupy):
    assert [name for name in sorted(fake_names()) if find(cupy, name) is None] == []


def test_cupys_array_has_every_method_of_the_fakes(cupy):
    own = set(vars(fake_cupy.ndarray)) - set(vars(type("Empty", (), {}))) - {"_host", "flops"}
    assert {"reshape", "T", "__matmul__", "__isub__", "__float__"} <= own
    assert [name for name in sorted(own) if not hasattr(cupy.ndarray, name)] == []


def test_host_arrays_stay_numpys_where_cupy_is_imported(cupy):
    assert backend.get_xp(np.ones(2)) is np
    assert backend.get_xp(np.float32(1)) is np


def test_the_real_cupy_without_a_gpu_gives_the_clear_error(cupy, monkeypatch):
    if cupy.cuda.is_available():  # hide the GPU of a machine that has one
        monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    with pytest.raises(backend.DeviceError, match="needs a CUDA GPU and its driver, found none"):
        backend.to_device(np.ones(2), "cuda")
