"""lora_np.pretrained.gguf_names: one map of names, and one order of rows, in both directions."""

import numpy as np
import pytest

from lora_np.pretrained.gguf_names import (
    INSIDE,
    OUTSIDE,
    gguf_name,
    is_permuted,
    path_of,
    permuted,
    permuted_rows,
    unpermuted,
    unpermuted_rows,
)


def test_every_module_has_one_name_in_each():
    paths = [*OUTSIDE, *(f"model.layers.{i}.{name}" for i in (0, 7, 123) for name in INSIDE)]
    names = [gguf_name(path) for path in paths]
    assert len(set(names)) == len(paths) == 30
    assert [path_of(name) for name in names] == paths
    assert [name for name in names if is_permuted(name)] == [
        f"blk.{i}.attn_{x}" for i in (0, 7, 123) for x in "qk"
    ]


NO_PATHS = ["", "model", "model.layers.0", "model.layers.01.mlp.up_proj", "h.0.mlp.up_proj"]


@pytest.mark.parametrize("name", [*NO_PATHS, "model.layers.0.mlp", "blk.0.attn_q"])
def test_an_unknown_path_is_named(name):
    with pytest.raises(ValueError, match=f"{name!r} has no name in the GGUF file of a Llama"):
        gguf_name(name)


@pytest.mark.parametrize("name", ["", "blk.0", "blk.0.attn", "blk.-1.attn_q", "model.norm"])
def test_an_unknown_name_is_named(name):
    with pytest.raises(ValueError, match=f"{name!r} is not a module of a Llama model"):
        path_of(name)


@pytest.mark.parametrize("n_head, d_head", [(1, 2), (3, 4), (2, 10), (9, 64)])
def test_rows_are_permuted_as_llama_cpp_does_and_back(n_head, d_head):
    W = np.random.default_rng(0).standard_normal((n_head * d_head, 5))
    theirs = (  # permute() of llama.cpp's converter
        W.reshape(n_head, 2, W.shape[0] // n_head // 2, *W.shape[1:])
        .swapaxes(1, 2)
        .reshape(W.shape)
    )
    np.testing.assert_array_equal(permuted(W, n_head), theirs)
    np.testing.assert_array_equal(unpermuted(theirs, n_head), W)
    np.testing.assert_array_equal(W[permuted_rows(n_head, d_head)], theirs)
    np.testing.assert_array_equal(theirs[unpermuted_rows(n_head, d_head)], W)
    assert d_head == 2 or not np.array_equal(theirs, W)


def test_rotating_pairs_of_neighbours_is_rotating_halves_of_the_rows_in_our_order():
    rng, d = np.random.default_rng(0), 6
    W, x, angles = rng.standard_normal((d, 4)), rng.standard_normal(4), rng.uniform(0, 3, d // 2)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = np.split(W @ x, 2)
    halves = np.concatenate([a * cos - b * sin, b * cos + a * sin])  # Hugging Face's
    q = permuted(W, 1) @ x
    neighbours = np.empty(d)  # llama.cpp's
    neighbours[0::2] = q[0::2] * cos - q[1::2] * sin
    neighbours[1::2] = q[1::2] * cos + q[0::2] * sin
    np.testing.assert_allclose(unpermuted(neighbours, 1), halves, rtol=1e-14)
