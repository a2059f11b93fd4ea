"""AdaLoRA against PEFT: scores, budget and cuts on the same gradients; the penalty; cut files."""

import numpy as np
import pytest

from lora_np import inject, load_adapter, save_adapter
from lora_np.methods import AdaLoraConfig, adapters
from lora_np.methods.adalora_ranks import allocate, scores_of
from lora_np.parameters import Grads, gradients_of, pack
from tests.peers.test_methods import (  # noqa: F401
    base,
    doubles,
    error,
    in_peft,
    their_names,
    torch_twin,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),  # its own
]

CONFIG = AdaLoraConfig(
    init_r=5, target_r=2, total_step=12, tinit=2, tfinal=3, target_modules="all-linear",
    orth_reg="norm", orth_reg_weight=0.3,
)  # fmt: skip


@pytest.fixture
def pair(tmp_path, rng, doubles, base):  # noqa: F811
    """Ours and PEFT's with the same random triplets."""
    ours = inject(base, CONFIG, rng)
    for layer in adapters(ours).values():
        for p in layer.triplets():
            p.value[...] = rng.standard_normal(p.shape)
    save_adapter(ours, tmp_path / "start", peft_only=True)
    return ours, in_peft(base, tmp_path / "start")


def both(ours, theirs):
    """Our Parameters of A, E and B beside theirs."""
    named = their_names(theirs)
    for path, layer in adapters(ours).items():
        for tensor, p in list(layer.tensors().items())[:3]:
            yield p, named[f"base_model.model.{path}.{tensor}"]


def test_the_same_triplets_are_kept_after_every_step(rng, doubles, pair):  # noqa: F811
    ours, theirs = pair
    layers, packed = list(adapters(ours).values()), pack(ours.parameters())
    allocator, counts = theirs.base_model.rankallocator, []
    for t in range(1, 13):
        found = gradients_of(ours.parameters(), rng.standard_normal(packed.vector.shape))
        for p, their_p in both(ours, theirs):
            p.value[...] += 0.1 * rng.standard_normal(p.shape)  # a step, which revives what was cut
            their_p.data.copy_(doubles.from_numpy(p.value.copy()))
            their_p.grad = doubles.from_numpy(found[p].reshape(p.shape).copy())
        allocate(CONFIG, layers, t, found)
        theirs.base_model.update_and_allocate(t)
        for p, their_p in both(ours, theirs):
            np.testing.assert_array_equal(p.value, their_p.detach().numpy())
        for name, layer in zip(("up_proj", "down_proj"), layers):
            if allocator.exp_avg_ipt:
                s = [allocator._element_score(f"{name}.lora_{x}.default").numpy() for x in "AEB"]
                expected = s[0].mean(axis=1) + s[1][:, 0] + s[2].mean(axis=0)
                np.testing.assert_allclose(scores_of(layer), expected, rtol=1e-12)
        counts.append(int(sum(layer.kept.value.sum() for layer in layers)))
    assert counts == [10, 10, 7, 6, 5, 4, 4, 4, 4, 4, 4, 4]


def test_the_penalty_is_pefts_with_its_gradients(doubles, pair):  # noqa: F811
    ours, theirs = pair

    class Output:
        loss = doubles.zeros(())

    theirs.base_model.model.forward = lambda: Output
    loss, grads = theirs.base_model.forward().loss, Grads()
    loss.backward()
    assert CONFIG.penalty(ours, grads) == pytest.approx(loss.item(), rel=1e-12)
    for p, their_p in both(ours, theirs):
        if p in grads:
            assert error(grads[p], their_p.grad) < 1e-12
    assert len(grads) == 4


def test_a_file_with_cut_triplets_gives_the_same_outputs_both_ways(
    tmp_path,
    rng,
    doubles,  # noqa: F811
    base,  # noqa: F811
    pair,
):
    ours, _ = pair
    for layer, cut in zip(adapters(ours).values(), ([1, 3], [0])):
        layer.kept.value[cut] = layer.E.value[cut] = 0.0
    save_adapter(ours, tmp_path / "ours", peft_only=True)
    theirs = in_peft(base, tmp_path / "ours")
    x = rng.standard_normal((3, 6))
    expected = theirs(doubles.from_numpy(x))
    assert error(ours.forward(x)[0], expected) < 1e-12
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_adapter(base, tmp_path / "theirs")
    assert error(again.forward(x)[0], expected) < 1e-12
    np.testing.assert_array_equal(again.up_proj.kept.value[:, 0], [1, 0, 1, 0, 1])
