"""The products of the fast twins: where they go, and that BLAS's are those of ``@``."""

import ast
import itertools
import operator

import numpy as np
import pytest

from lora_np import backend
from lora_np.backend import blas_matmul
from lora_np.ops.fast import activation
from tests.source import FILES, PACKAGE, nodes, tree_of

TWINS = sorted((PACKAGE / "ops/fast").glob("*.py"))
RTOL = {np.float32: 1e-5, np.float64: 1e-13}
LAYOUTS = {
    "C": lambda x: x,
    "Fortran": lambda x: np.asfortranarray(x.swapaxes(-1, -2).copy().swapaxes(-1, -2)),
    "transposed": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "every second row": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
    "every second column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "read-only": backend.read_only_view,
}
SHAPES = [  # of a and b
    ((7, 5), (5, 3)),
    ((1, 5), (5, 1)),
    ((1, 1), (1, 1)),
    ((2, 3, 4, 5), (2, 3, 5, 6)),
    ((2, 1, 4, 5), (3, 5, 6)),
    ((2, 4, 5), (5, 6)),
    ((4, 5), (2, 5, 6)),
    ((0, 5), (5, 3)),
    ((4, 0), (0, 3)),
    ((0, 4, 5), (0, 5, 2)),
    ((5,), (5, 3)),
    ((4, 5), (5,)),
    ((5,), (5,)),
]


@pytest.fixture
def calls(monkeypatch):
    """All products go to BLAS, however small; return the shapes of those that went there."""
    found, gemm = [], backend._gemm

    def counted(char):
        def product(alpha, b, a, *rest):
            found.append((b.shape, a.shape))
            return gemm(char)(alpha, b, a, *rest)

        return product if gemm(char) else None

    monkeypatch.setattr(backend, "SMALL", 1)
    monkeypatch.setattr(backend, "_gemm", counted)
    return found


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_products_of_blas_are_those_of_the_operator_in_every_layout(rng, calls, shapes, dtype):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    matrices = min(a.ndim, b.ndim) > 1
    for one, other in itertools.product(LAYOUTS.values(), repeat=2) if matrices else [(id, id)]:
        left, right = (one(a), other(b)) if matrices else (a, b)
        found = blas_matmul(left, right)
        assert found.shape == (a @ b).shape and found.dtype == dtype
        np.testing.assert_allclose(found, a @ b, rtol=RTOL[dtype], atol=RTOL[dtype])
    np.testing.assert_array_equal(left, a)  # nothing is written to
    assert bool(calls) == (matrices and (a @ b).size * a.shape[-1] > 0)


@pytest.mark.parametrize("dtype", [np.complex128, np.float16, np.int64])
def test_other_numbers_are_left_to_numpy(rng, calls, dtype):
    a = (10 * rng.standard_normal((4, 4))).astype(dtype)
    np.testing.assert_array_equal(blas_matmul(a, a), a @ a)
    np.testing.assert_array_equal(blas_matmul(a, np.eye(4)), a @ np.eye(4))
    assert not calls


def test_rows_on_leading_axes_are_one_product(rng, calls):
    blas_matmul(rng.standard_normal((2, 3, 5)), rng.standard_normal((5, 4)))
    assert calls == [((4, 5), (5, 6))]


def test_a_contiguous_matrix_is_not_copied(rng):
    x = rng.standard_normal((5, 3))
    for matrix in (x, x.T):
        seen, _ = backend._turned(matrix)
        assert seen.flags.f_contiguous and np.shares_memory(seen, x)


def test_small_products_and_those_without_scipy_are_left_to_numpy(rng, monkeypatch):
    x, asked = rng.standard_normal((40, 40)), []
    monkeypatch.setattr(backend, "_gemm", asked.append)  # returns None, as without SciPy
    assert (blas_matmul(x[:9], x) == x[:9] @ x).all() and not asked
    assert (blas_matmul(x, x) == x @ x).all() and asked == ["d"]


def test_shapes_that_do_not_fit_are_numpys_error():
    with pytest.raises(ValueError, match="matmul"):
        blas_matmul(np.ones((40, 40)), np.ones((41, 40)))


def test_here_a_product_of_the_twins_is_the_operator():
    assert backend.matmul is operator.matmul and activation.gate is activation.gate_by_tanh


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-7), (np.float64, 1e-15)])
def test_the_gate_by_exp_is_the_gate_by_tanh(dtype, tolerance):
    u = np.linspace(-44.0, 44.0, 10001, dtype=dtype)
    by_tanh, by_exp = activation.gate_by_tanh(u.copy()), activation.gate_by_exp(u.copy())
    assert by_exp.dtype == dtype and abs(by_exp - by_tanh).max() < tolerance
    assert activation.gate_by_exp(np.array(0.0)) == 0.5


def products(tree):
    """Return the lines with ``@``, ``matmul`` or ``einsum`` of NumPy."""
    found = [n for n in nodes(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult)]
    names = ("matmul", "einsum", "tensordot")
    named = [n for n in nodes(tree) if isinstance(n, ast.Attribute) and n.attr in names]
    return [node.lineno for node in found + named]


@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_a_twin_leaves_its_products_to_the_backend(path):
    assert products(tree_of(path)) == []


def test_only_the_twins_call_the_backends_product():
    def calls_it(path):
        aliases = [n for n in nodes(tree_of(path)) if isinstance(n, ast.alias)]
        return any(n.name in ("matmul", "blas_matmul") for n in aliases)

    assert {p for p in FILES if calls_it(p)} <= set(TWINS)
    assert sum(map(calls_it, TWINS)) >= 4


def test_the_check_of_products_finds_every_form():
    source = "a @ b\nnp.matmul(a, b)\nxp.einsum('ij', a)\nmatmul(a, b)\na * b"
    assert sorted(products(ast.parse(source))) == [1, 2, 3]
