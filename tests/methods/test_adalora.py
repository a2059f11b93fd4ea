"""AdaLoRA: the pair, the penalty, the scores and the budget, cuts that last, runs that resume."""

import json

import numpy as np
import pytest

from lora_np import (
    GPT,
    GPTConfig,
    Linear,
    account,
    check_gradients,
    copy_model,
    inject,
    load_adapter,
    merge,
    save_adapter,
)
from lora_np.data import Batches
from lora_np.files import CheckpointError
from lora_np.files.tensors import TensorFile
from lora_np.layers import MLP, as_pair
from lora_np.methods import AdaLoraConfig, adapters
from lora_np.methods.adalora import orthogonality, triplet_backward, triplet_forward
from lora_np.methods.adalora_ranks import (
    allocate,
    budget_at,
    kept_triplets,
    scores_of,
)
from lora_np.parameters import Grads, gradients_of, pack
from lora_np.train import Trainer, load_state, save_state

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13
OPTIONS = AdaLoraConfig(init_r=3, target_r=1, total_step=10, tinit=1, tfinal=2, deltaT=3)


@pytest.fixture
def base(rng):
    return GPT(CONFIG, rng, np.float64)


def small(rng, **options):
    """An MLP with AdaLoRA at random A, E and B."""
    chosen = {"init_r": 3, "target_r": 2, "total_step": 10, "target_modules": "all-linear"}
    base = MLP(6, 24, rng, dtype=np.float64)
    adapted = inject(base, AdaLoraConfig(**{**chosen, **options}), rng)
    for layer in adapters(adapted).values():
        for p in layer.triplets():
            p.value[...] = rng.standard_normal(p.shape)
    return base, adapted


def kept(model):
    return np.concatenate([layer.kept.value[:, 0] for layer in adapters(model).values()])


# ------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("method", ["central", "complex"])
def test_gradients_agree_at_random_triplets(rng, method):
    inputs = rng.standard_normal((3, 5)), rng.standard_normal((3, 1))
    report = check_gradients(triplet_forward, triplet_backward, inputs, method=method)
    assert report.max_error < (1e-7 if method == "central" else 1e-12)
    _, adapted = small(rng)
    forward, backward, named = as_pair(adapted.up_proj)
    report = check_gradients(forward, backward, named(rng.standard_normal((4, 6))), method=method)
    assert {row.name for row in report.rows} >= {"A", "E", "B"}
    assert not {row.name for row in report.rows} & {"kept", "ema"}  # no output depends on them
    assert report.max_error < (1e-7 if method == "central" else 1e-12)


def test_a_derivation_that_leaves_E_out_of_dA_is_caught(rng):
    def wrong(dEA, cache, need=None):
        return dEA, triplet_backward(dEA, cache)[1]

    inputs = rng.standard_normal((3, 5)), rng.standard_normal((3, 1))
    assert not check_gradients(triplet_forward, wrong, inputs).ok


@pytest.mark.parametrize("squared", [True, False])
def test_the_gradient_of_the_penalty_is_that_of_its_value(rng, squared):
    A = rng.standard_normal((3, 5))

    def forward(A):
        return np.array(orthogonality(A, squared)[0]), A

    def backward(dy, A, need=None):
        return (dy * orthogonality(A, squared)[1],)

    assert check_gradients(forward, backward, (A,)).max_error < 1e-7
    assert orthogonality(A, squared)[0] == pytest.approx(
        np.linalg.norm(A @ A.T - np.eye(3)) ** (2 if squared else 1)
    )


def test_the_norm_of_orthogonal_rows_has_no_gradient():
    value, gradient = orthogonality(np.eye(2, 5), squared=False)
    assert value == 0.0 and not gradient.any()


@pytest.mark.parametrize("orth_reg", ["squared", "norm"])
def test_a_step_adds_the_penalty_of_all_A_and_B(rng, orth_reg):
    _, adapted = small(rng, orth_reg=orth_reg, orth_reg_weight=0.3)
    grads, factors = Grads(), []
    for layer in adapters(adapted).values():
        factors += [layer.A.value, layer.B.value.T]
    norms = [np.linalg.norm(F @ F.T - np.eye(3)) for F in factors]
    expected = np.mean(norms) if orth_reg == "norm" else np.sum(np.square(norms))
    assert adapted.method.penalty(adapted, grads) == pytest.approx(0.3 * expected)
    scale = 0.3 / (len(factors) if orth_reg == "norm" else 1)
    dA = orthogonality(adapted.up_proj.A.value, orth_reg == "squared")[1]
    np.testing.assert_allclose(grads[adapted.up_proj.A], scale * dA)


# --------------------------------------------------------------------------- scores and budget


def test_the_budget_falls_with_the_cube_of_the_time_that_is_left():
    found = [budget_at(t, 120, 20, tinit=3, last=13) for t in range(1, 16)]
    exact = [20 + 100 * ((13 - t) / 10) ** 3 for t in range(4, 14)]
    assert found == [120] * 3 + [int(x + 1e-9) for x in exact] + [20] * 2


def test_equal_scores_are_cut_by_index_and_not_by_rounding(rng):
    scores = np.array([2.0, 1.0, 1.0, 1.0, 3.0])
    expected = [True, True, False, False, True]
    for _ in range(20):
        noise = 1.0 + 1e-9 * rng.standard_normal(5)
        assert kept_triplets(scores * noise, 3).tolist() == expected
    assert kept_triplets(np.zeros(4), 3).tolist() == [True, True, True, False]
    assert kept_triplets(scores, 5).all()


def test_scores_are_those_of_the_definition(rng):
    _, adapted = small(rng, beta1=0.8, beta2=0.6, tinit=5)  # no cut moves E
    layer, packed, I, U = adapted.down_proj, pack(adapted.parameters()), {}, {}
    for t in range(1, 4):
        gradient = rng.standard_normal(packed.vector.shape)
        found = gradients_of(adapted.parameters(), gradient)
        allocate(adapted.method, list(adapters(adapted).values()), t, found)
        for name in "AEB":
            p = getattr(layer, name)
            now = np.abs(p.value * found[p])
            I[name] = 0.8 * I.get(name, 0.0) + 0.2 * now
            U[name] = 0.6 * U.get(name, 0.0) + 0.4 * np.abs(now - I[name])
    s = {name: I[name] * U[name] for name in "AEB"}
    expected = s["E"][:, 0] + s["A"].mean(axis=1) + s["B"].mean(axis=0)
    np.testing.assert_allclose(scores_of(layer), expected, rtol=1e-12)


# ------------------------------------------------------------------------------- in a training


def begin(base, config, **options):
    adapted = inject(base, config, np.random.default_rng(1))
    batches = Batches(np.arange(90) % 13, 2, 6, np.random.default_rng(2))
    return Trainer(adapted, batches, steps=10, lr=0.02, optimizer="adamw", **options)


def test_the_number_of_kept_triplets_follows_the_budget_and_E_of_the_others_stays_zero(base):
    trainer, counts = begin(base, OPTIONS), []
    layers = list(adapters(trainer.model).values())
    for _ in range(10):
        trainer.run(1)
        flags = kept(trainer.model) == 1.0
        E = np.concatenate([layer.E.value[:, 0] for layer in layers])
        assert not E[~flags].any() and E[flags].all()
        counts.append(int(flags.sum()))
    at = {t: budget_at(t, 12, 4, tinit=1, last=8) for t in (3, 6, 8)}
    assert counts == [12, 12, at[3], at[3], at[3], at[6], at[6], 4, 4, 4]


def test_cuts_differ_between_layers(base):
    trainer = begin(base, OPTIONS)
    trainer.run()
    ranks = [int(layer.kept.value.sum()) for layer in adapters(trainer.model).values()]
    assert sum(ranks) == 4 and ranks != [1, 1, 1, 1]


@pytest.mark.parametrize("stop", [2, 5, 9])
def test_a_run_that_was_saved_and_loaded_is_bit_equal(tmp_path, base, stop):
    whole, first, second = (begin(base, OPTIONS) for _ in range(3))
    whole.run()
    first.run(stop)
    save_state(tmp_path / "run.npz", first.state())
    second.load(load_state(tmp_path / "run.npz"))
    second.run()
    assert second.history.loss == whole.history.loss
    ours, theirs = (t.model.parameters() for t in (second, whole))
    for name, p in ours.items():
        np.testing.assert_array_equal(p.value, theirs[name].value, err_msg=name)


def test_parts_threads_and_processes_cut_alike(base):
    plain = begin(base, OPTIONS)
    plain.run()
    for options in ({"accumulate": 2}, {"threads": 2}, {"processes": 2}):
        other = begin(base, OPTIONS, **options)
        other.run()
        np.testing.assert_array_equal(kept(other.model), kept(plain.model))
        assert other.history.loss == pytest.approx(plain.history.loss, rel=1e-9)


def test_only_A_E_and_B_are_trained_and_the_state_is_counted(rng):
    base, adapted = small(rng)
    n = sum(3 * (6 + 24) + 3 for _ in range(2))
    found = account(adapted)
    assert (found.trainable, found.adapter) == (n, n + 2 * n + 2 * 3)
    assert found.base == account(base).base
    assert len(adapted.moving()) == 4 and base.moving() == []
    assert len(copy_model(adapted).moving()) == 4


# --------------------------------------------------------------------------------------- files


def test_a_file_holds_the_kept_triplets_alone_and_reads_back(tmp_path, rng):
    base, adapted = small(rng, orth_reg="norm")
    for layer, cut in ((adapted.up_proj, [1]), (adapted.down_proj, [0, 2])):
        layer.kept.value[cut] = layer.E.value[cut] = 0.0
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    with TensorFile(tmp_path / "one" / "adapter_model.safetensors") as file:
        shapes = {n.removeprefix("base_model.model."): file.shape(n) for n in file.names}
    assert shapes == {
        "up_proj.lora_A": (2, 6), "up_proj.lora_E": (2, 1), "up_proj.lora_B": (24, 2),
        "down_proj.lora_A": (1, 24), "down_proj.lora_E": (1, 1), "down_proj.lora_B": (6, 1),
    }  # fmt: skip
    fields = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert fields["rank_pattern"] == {
        "up_proj.lora_E": [True, False, True],
        "down_proj.lora_E": [False, True, False],
    }
    again, x = load_adapter(base, tmp_path / "one"), rng.standard_normal((4, 6))
    np.testing.assert_array_equal(again.forward(x)[0], adapted.forward(x)[0])
    np.testing.assert_array_equal(kept(again), kept(adapted))
    assert again.method.orth_reg == "norm"


def test_a_layer_that_is_cut_whole_is_written_and_read(tmp_path, rng):
    base, adapted = small(rng)
    adapted.up_proj.kept.value[...] = adapted.up_proj.E.value[...] = 0.0
    save_adapter(adapted, tmp_path / "one", peft_only=True)
    again, x = load_adapter(base, tmp_path / "one"), rng.standard_normal((4, 6))
    np.testing.assert_array_equal(again.forward(x)[0], adapted.forward(x)[0])


def test_our_own_form_keeps_the_cuts(tmp_path, base):
    adapted = begin(base, OPTIONS)
    adapted.run()
    save_adapter(adapted.model, tmp_path / "one")
    again = load_adapter(base, tmp_path / "one")
    np.testing.assert_array_equal(kept(again), kept(adapted.model))
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.model.forward(TOKENS)[0])


def test_a_pattern_of_another_file_is_refused(tmp_path, rng):
    base, adapted = small(rng)
    save_adapter(adapted, tmp_path / "one")
    path = tmp_path / "one" / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields["rank_pattern"] = {"up_proj.lora_E": [True, False, False]}
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"has 3 triplets, but rank_pattern keeps 1 of 3"):
        load_adapter(base, tmp_path / "one")


# --------------------------------------------------------------------------------- bad options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_r": 13}, "target_r = 13 and init_r = 12, expected 1 <= target_r <= init_r"),
        ({"target_r": 0}, "target_r = 0 and init_r = 12"),
        ({"total_step": None}, "total_step = None, expected the number of steps of the whole run"),
        (
            {"tinit": 50, "tfinal": 50},
            r"total_step = 100, expected more than tinit \+ tfinal = 100",
        ),
        ({"tinit": -1}, "tinit = -1, expected at least 0"),
        ({"deltaT": 0}, "deltaT = 0, expected at least 1"),
        ({"beta2": 1.0}, r"beta2 = 1\.0, expected a number between 0 and 1"),
        ({"orth_reg_weight": -0.1}, r"orth_reg_weight = -0\.1, expected at least 0"),
        ({"lora_alpha": 0}, "lora_alpha = 0, expected a number above 0"),
        ({"orth_reg": "cubed"}, "orth_reg = 'cubed', expected 'squared' or 'norm'"),
        ({"lora_dropout": 1.0}, r"dropout = 1\.0, expected 0 <= p < 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaLoraConfig(**{"total_step": 100, **options})


def test_a_rank_above_the_matrixs_is_refused(rng):
    with pytest.raises(ValueError, match="rank 12 for the layer is above the limit 5 of its 5 x 6"):
        inject(Linear(6, 5, rng), AdaLoraConfig(total_step=9, target_modules="all-linear"), rng)


def test_of_rank_keeps_the_ratio_and_scale_one():
    config = AdaLoraConfig(total_step=9).of_rank(3)
    assert (config.target_r, config.init_r, config.lora_alpha) == (3, 5, 5)


def test_the_change_is_the_product_of_its_factors(rng):
    _, adapted = small(rng)
    layer = adapted.up_proj
    B, A, scale = layer.factors()
    expected = 8 / (3 + 1e-5) * layer.B.value @ np.diag(layer.E.value[:, 0]) @ layer.A.value
    np.testing.assert_allclose(scale * B @ A, expected, atol=1e-12)
    np.testing.assert_allclose(layer.delta(), expected, atol=1e-12)


def test_merging_is_the_forward_pass(rng):
    _, adapted = small(rng)
    x = rng.standard_normal((4, 6))
    np.testing.assert_allclose(merge(adapted).forward(x)[0], adapted.forward(x)[0], atol=1e-12)
