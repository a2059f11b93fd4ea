"""lora_np.parameters: gradients add up, the packed vector is the model, shared arrays are safe."""

import copy
import gc
import pickle

import numpy as np
import pytest

from lora_np.backend import ShapeError
from lora_np.layers import Chain, Linear, copy_model
from lora_np.methods import LoraConfig, inject
from lora_np.models import GPT, GPTConfig
from lora_np.parameters import Grads, Parameter, freeze, gradients_of, pack
from lora_np.train import fit


def three():
    """Return Parameters of 6, 2 and 3 entries that count 0, 1, 2, ... through."""
    return {
        "W": Parameter(np.arange(6.0).reshape(2, 3)),
        "b": Parameter(np.arange(6.0, 8.0)),
        "g": Parameter(np.arange(8.0, 11.0)),
    }


def gpt(rng):
    config = GPTConfig(vocab_size=7, block_size=4, n_layer=1, n_head=1, d_model=4)
    return GPT(config, rng)


# --- Grads ---------------------------------------------------------------------------------------


def test_gradients_of_one_parameter_add_up():
    p, q = Parameter(np.zeros(2)), Parameter(np.zeros(2))
    grads, first = Grads(), np.array([1.0, 2.0])
    grads.add(p, first)
    grads.add(p, np.array([10.0, 20.0]))
    grads.add(p, np.array([100.0, 200.0]))
    np.testing.assert_array_equal(grads[p], [111, 222])
    np.testing.assert_array_equal(grads.get(p), [111, 222])
    np.testing.assert_array_equal(first, [1, 2])  # the caller's array is its own
    assert p in grads and q not in grads and grads.get(q) is None and len(grads) == 1


def test_equal_parameters_are_two_parameters():
    p, q = Parameter(np.zeros(2)), Parameter(np.zeros(2))
    grads = Grads()
    grads.add(p, np.ones(2))
    grads.add(q, np.full(2, 5.0))
    assert grads[p].tolist() == [1, 1] and grads[q].tolist() == [5, 5]


def test_gradients_of_several_parameters_are_added_in_their_order():
    p, q = Parameter(np.zeros(2)), Parameter(np.zeros(1))
    grads = Grads()
    grads.add_all((p, None, q), (np.ones(2), None, np.full(1, 5.0)))
    assert grads[p].tolist() == [1, 1] and grads[q].tolist() == [5] and len(grads) == 2


def test_a_vector_of_gradients_is_taken_apart_as_pack_lays_them():
    held = three()
    held["b"].trainable = False
    packed, grads = pack(held), Grads()
    grads.add(held["W"], 10.0 * held["W"].value)
    grads.add(held["g"], 10.0 * held["g"].value)
    found = gradients_of(held, packed.gather(grads))
    assert found.keys() == {held["W"], held["g"]}
    for p, gradient in found.items():
        np.testing.assert_array_equal(gradient, 10.0 * p.value)


def test_none_adds_nothing():
    p, frozen = Parameter(np.zeros(2)), Parameter(np.zeros(2), trainable=False)
    grads = Grads()
    grads.add(p, None)
    grads.add(frozen, None)
    assert len(grads) == 0 and p not in grads
    with pytest.raises(KeyError):
        grads[p]


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2), ()])
def test_a_gradient_of_another_shape_is_refused(shape):
    with pytest.raises(ShapeError, match=r"gradient has shape .*, expected \(2,\)"):
        Grads().add(Parameter(np.zeros(2)), np.zeros(shape))


def test_a_gradient_for_a_frozen_parameter_is_refused():
    frozen = Parameter(np.zeros(2, np.float32), trainable=False)
    with pytest.raises(ValueError, match=r"frozen Parameter\(\(2,\), float32, frozen\)"):
        Grads().add(frozen, np.zeros(2))


# --- freeze --------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_given", [dict, lambda d: d.values(), lambda d: iter(d.values())])
def test_freeze_takes_a_mapping_or_any_iterable(as_given):
    parameters = three()
    freeze(as_given({name: parameters[name] for name in ("W", "g")}))
    assert [p.trainable for p in parameters.values()] == [False, True, False]


# --- pack ----------------------------------------------------------------------------------------


def test_pack_lays_trainable_parameters_end_to_end_in_order():
    parameters = three()
    freeze([parameters["b"]])
    before = parameters["b"].value
    packed = pack(parameters)
    np.testing.assert_array_equal(packed.vector, [0, 1, 2, 3, 4, 5, 8, 9, 10])
    assert packed.slices() == {"W": slice(0, 6), "g": slice(6, 9)}
    assert list(packed.parameters) == ["W", "g"]
    assert parameters["W"].shape == (2, 3) and parameters["b"].value is before


def test_the_vector_and_the_parameters_are_one_memory():
    parameters = three()
    packed = pack(parameters)
    packed.vector += 100.0
    assert parameters["W"].value[1, 2] == 105 and parameters["g"].value[0] == 108
    parameters["b"].value[:] = -1.0
    np.testing.assert_array_equal(packed.vector[6:8], [-1, -1])


def test_pack_copies_so_the_arrays_it_was_given_stay():
    parameters = three()
    given = parameters["W"].value
    pack(parameters).vector[:] = 0.0
    np.testing.assert_array_equal(given, np.arange(6.0).reshape(2, 3))


def test_gather_lines_gradients_up_with_the_vector_and_fills_with_zeros():
    parameters = three()
    packed = pack(parameters)
    grads = Grads()
    grads.add(parameters["g"], np.array([1.0, 2.0, 3.0]))
    grads.add(parameters["W"], np.arange(10.0, 16.0).reshape(2, 3))
    gathered = packed.gather(grads)
    np.testing.assert_array_equal(gathered, [10, 11, 12, 13, 14, 15, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(packed.gather(Grads()), np.zeros(11))
    packed.vector -= gathered  # a step of gradient descent is one operation
    np.testing.assert_array_equal(parameters["W"].value, np.full((2, 3), -10.0))


def test_a_model_computes_with_what_the_vector_says(rng):
    model = gpt(rng)
    tokens = np.array([[1, 2, 3]])
    before, _ = model.forward(tokens)
    packed = pack(model.parameters())
    assert packed.vector.dtype == np.float32
    assert packed.vector.size == sum(p.size for p in model.parameters().values())
    np.testing.assert_array_equal(model.forward(tokens)[0], before)
    packed.vector[:] = 0.0
    assert not model.forward(tokens)[0].any()


def test_pack_refuses_when_nothing_is_trainable():
    parameters = three()
    freeze(parameters)
    with pytest.raises(ValueError, match="nothing is trainable"):
        pack(parameters)
    with pytest.raises(ValueError, match="nothing is trainable"):
        pack({})


def test_pack_refuses_mixed_dtypes_among_the_trainable_alone():
    parameters = three()
    parameters["b"].value = parameters["b"].value.astype(np.float32)
    with pytest.raises(ValueError, match=r"dtypes \['float32', 'float64'\], expected one"):
        pack(parameters)
    freeze([parameters["b"]])
    assert pack(parameters).vector.dtype == np.float64


# --- sharing: an adapted model borrows its base's arrays -----------------------------------------


def test_a_shared_parameter_is_a_frozen_read_only_view():
    p = Parameter(np.zeros(3))
    assert not p.shared
    view = p.share()
    assert view.shared and view.borrowed and not view.trainable
    assert p.shared and not p.borrowed and p.trainable
    assert np.shares_memory(view.value, p.value)
    with pytest.raises(ValueError, match="read-only"):
        view.value[0] = 1.0
    p.value[0] = 7.0  # the owner may still write
    assert view.value[0] == 7.0


def test_an_adapted_models_base_weights_cannot_be_trained(rng):
    base = gpt(rng)
    adapted = inject(base, LoraConfig(r=1), rng)
    assert list(pack(adapted.parameters()).parameters) == [
        "h.0.attn.q_proj.A",
        "h.0.attn.q_proj.B",
        "h.0.attn.v_proj.A",
        "h.0.attn.v_proj.B",
    ]
    adapted.wte.W.trainable = True
    with pytest.raises(ValueError, match=r"another model shares wte\.W: .* copy_model\(base\)"):
        pack(adapted.parameters())


def test_a_base_cannot_be_trained_while_an_adapted_model_lives(rng):
    base = gpt(rng)
    adapted = inject(base, LoraConfig(r=1), rng)
    n = len(base.parameters())
    with pytest.raises(ValueError, match=rf"another model shares wte\.W and {n - 1} more"):
        pack(base.parameters())
    pack(copy_model(base).parameters())  # the way out that the message names
    del adapted
    gc.collect()
    assert len(pack(base.parameters()).parameters) == n


def test_copies_of_an_adapted_model_own_their_memory(rng):
    adapted = inject(gpt(rng), LoraConfig(r=1), rng)
    borrowed = adapted.wte.W
    makers = (copy_model, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)))
    for twin in (make(adapted) for make in makers):
        p = twin.wte.W
        assert not p.shared and not p.trainable
        assert not np.shares_memory(p.value, borrowed.value)
        p.value[0, 0] = 1.0  # writable
    assert borrowed.value[0, 0] != 1.0


# --- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_or_deep_copy_keeps_ties_values_and_flags(rng, make, packed):
    first, second = Linear(3, 3, rng), Linear(3, 3, rng)
    second.W = first.W
    model = Chain(first, second, first)
    freeze([second.b])
    if packed:
        pack(model.parameters())
    twin = make(model)
    assert twin.layers[0] is twin.layers[2] and twin.layers[0] is not first
    assert twin.layers[1].W is twin.layers[0].W and twin.layers[0].W is not first.W
    assert [p.trainable for p in twin.parameters().values()] == [True, True, False]
    for name, p in model.parameters().items():
        np.testing.assert_array_equal(twin.parameters()[name].value, p.value)
        assert twin.parameters()[name].dtype == np.float32
    twin.layers[0].W.value[0, 0] += 1.0
    assert twin.layers[0].W.value[0, 0] != first.W.value[0, 0]


def test_a_parameters_copy_is_its_own():
    p = Parameter(np.arange(3.0), trainable=False)
    twin = p.copy()
    twin.value[0] = 9.0
    assert p.value[0] == 0 and not twin.trainable and not twin.shared
    assert (p.shape, p.size, p.dtype) == ((3,), 3, np.float64)
    assert repr(p) == "Parameter((3,), float64, frozen)"


# ------------------------------------------------------------------------------ pickled and copied


def through_buffers(model):
    """Pickle with the arrays' bytes beside the stream, as transports for large arrays do."""
    buffers = []
    stream = pickle.dumps(model, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(stream, buffers=[bytes(b.raw()) for b in buffers])


COPIES = {
    **{
        f"protocol {n}": lambda model, n=n: pickle.loads(pickle.dumps(model, protocol=n))
        for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
    "protocol 5 with buffers": through_buffers,
    "deepcopy": copy.deepcopy,
}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))


@every_copy
def test_a_pickled_adapted_model_has_memory_of_its_own_and_trains(copied):
    rng = np.random.default_rng(0)
    base = GPT(GPTConfig(11, 6, 1, 2, 8), rng)
    adapted = inject(base, LoraConfig(r=2), rng)
    twin, before = copied(adapted), base.wte.W.value.copy()
    for name, p in twin.parameters().items():
        assert p.value.flags.writeable and not p.shared, name
        assert not np.shares_memory(p.value, adapted.parameters()[name].value), name
        assert p.trainable == adapted.parameters()[name].trainable
        p.trainable = True
    tokens = rng.integers(0, 11, (2, 5))
    fit(twin, lambda: (tokens, tokens), steps=1, lr=0.1)
    assert not np.array_equal(twin.wte.W.value, before)
    np.testing.assert_array_equal(base.wte.W.value, before)


@every_copy
def test_what_is_used_twice_is_one_thing_in_a_copy_too(copied):
    shared = Parameter(np.ones(3))
    one, other = copied([shared, shared])
    assert one is other and one is not shared


@every_copy
def test_packed_parameters_are_views_of_their_vector_in_a_copy_too(copied):
    packed = pack({"a": Parameter(np.array([1.0, 2.0])), "b": Parameter(np.array([[3.0]]))})
    twin = copied(packed)
    twin.vector *= 10.0
    assert [p.value.ravel().tolist() for p in twin.parameters.values()] == [[10.0, 20.0], [30.0]]
    assert packed.vector.tolist() == [1.0, 2.0, 3.0]


def test_a_shallow_copy_of_a_parameter_shares_no_memory():
    p = Parameter(np.ones(3), trainable=False)
    twin = copy.copy(p)
    assert not np.shares_memory(twin.value, p.value) and not twin.trainable
