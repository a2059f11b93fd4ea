"""Adapters made from files, against PEFT's own: what it loads, combines and merges."""

import numpy as np
import pytest

from lora_np.adapters import (
    Keep,
    combine_adapters,
    convert_adapter,
    extract_adapter,
    merge_adapter,
    resize_adapter,
    total_errors,
)

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
]

D, LAYERS, VOCAB, R = 16, 2, 31, 6
TARGETS = ["c_attn", "c_proj", "c_fc"]
SINGLE = 1e-5  # relative, of factors that are read into float32


@pytest.fixture
def gpt2(torch, tmp_path):
    """Makes a tiny GPT-2 in float64, the same every time; its files lie in the folder base."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=12, n_embd=D, n_layer=LAYERS, n_head=4,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip

    def make():
        torch.manual_seed(1)
        model = transformers.GPT2LMHeadModel(config).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.3)
        return model

    make().save_pretrained(tmp_path / "base")
    return make


def adapted(torch, model, seed, targets=TARGETS, **options):
    """The model with a random adapter of PEFT's."""
    import peft

    config = peft.LoraConfig(r=R, target_modules=targets, fan_in_fan_out=True, **options)
    found = peft.get_peft_model(model, config).double().eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in found.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.2)
    return found


def loaded(model, folder):
    import peft

    found = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    return found.double().eval()


def deltas(model, adapter="default"):
    """Each layer's change as (out, in), by PEFT."""
    return {
        name: module.get_delta_weight(adapter).detach().numpy().T  # theirs are (in, out)
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_A") and adapter in module.lora_A
    }


def logits(torch, model):
    tokens = torch.arange(18).reshape(2, 9) % VOCAB
    with torch.no_grad():
        return model(tokens).logits.numpy()


def norm(x):
    return float(np.linalg.norm(x))


def assert_same(found, expected, tolerance=SINGLE):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert norm(found[name] - x) < tolerance * norm(x), name


@pytest.mark.parametrize("keep", [Keep(rank=3), Keep(energy=0.8), Keep(error=0.3)], ids=str)
def test_a_resized_adapter_is_off_in_peft_by_what_resize_said(tmp_path, torch, gpt2, keep):
    old = adapted(torch, gpt2(), 2, lora_alpha=8, alpha_pattern={"c_fc": 3})
    old.save_pretrained(tmp_path / "a")
    fits = resize_adapter(tmp_path / "a", tmp_path / "b", keep)
    new = loaded(gpt2(), tmp_path / "b")
    before, after = deltas(old), deltas(new)
    for fit in fits:
        error = norm(before[fit.name] - after[fit.name])
        assert abs(error - fit.written) < SINGLE * fit.norm
        assert abs(error - fit.missed) < SINGLE * fit.norm
    assert 0 < total_errors(fits)[0] < 0.6
    with torch.no_grad():  # the logits are those of the best copies, made densely
        plain = gpt2()
        for fit in fits:
            U, sigma, Vt = np.linalg.svd(before[fit.name])
            best = (U[:, : fit.r] * sigma[: fit.r]) @ Vt[: fit.r]
            plain.get_submodule(fit.name).weight += torch.from_numpy(best.T)
    expected = logits(torch, plain)
    assert np.abs(logits(torch, new) - expected).max() < 1e-5 * np.abs(expected).max()


def compiled_outside(name):
    return f"_orig_mod.{name}"


def compiled_inside(name):
    return name.replace("base_model.model.", "base_model.model._orig_mod.")


def parallel(name):
    return f"module.{name}"


def sharded(name):
    return name.replace(".attn.", "._fsdp_wrapped_module.attn.")


@pytest.mark.parametrize("wrap", [compiled_outside, compiled_inside, parallel, sharded])
def test_what_is_made_of_a_wrapped_models_adapter_loads_in_peft(tmp_path, torch, gpt2, wrap):
    from safetensors.torch import load_file, save_file

    old = adapted(torch, gpt2(), 2, lora_alpha=8)
    old.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({wrap(name): x for name, x in load_file(path).items()}, path)
    resize_adapter(tmp_path / "a", tmp_path / "b", Keep(rank=R))
    combine_adapters([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], tmp_path / "c")
    for folder in "bc":
        assert_same(deltas(loaded(gpt2(), tmp_path / folder)), deltas(old))


PAIRS = {
    "equal": ({"lora_alpha": 8}, {"lora_alpha": 8}, (0.5, 0.5)),
    "of other scales and signs": (
        {"lora_alpha": 8, "alpha_pattern": {"c_fc": 3}},
        {"lora_alpha": 5, "use_rslora": True},
        (1.3, -0.4),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("method, rank", [("linear", None), ("cat", None), ("svd", 4)])
def test_a_combined_adapter_is_pefts_add_weighted_adapter(
    tmp_path, torch, gpt2, name, method, rank
):
    first, second, weights = PAIRS[name]
    adapted(torch, gpt2(), 2, **first).save_pretrained(tmp_path / "a")
    adapted(torch, gpt2(), 3, **second).save_pretrained(tmp_path / "b")
    theirs = loaded(gpt2(), tmp_path / "a")
    theirs.load_adapter(tmp_path / "b", "other", autocast_adapter_dtype=False)
    theirs.double().add_weighted_adapter(
        ["default", "other"], list(weights), "both", combination_type=method, svd_rank=rank
    )
    combine_adapters([tmp_path / "a", tmp_path / "b"], weights, tmp_path / "c", method, rank)
    ours = loaded(gpt2(), tmp_path / "c")
    assert_same(deltas(ours), deltas(theirs.double(), "both"))
    theirs.set_adapter("both")
    expected = logits(torch, theirs)
    assert np.abs(logits(torch, ours) - expected).max() < 1e-5 * np.abs(expected).max()


def test_an_extracted_adapter_loads_in_peft_and_gives_the_tuned_models_logits(
    tmp_path, torch, gpt2
):
    """The change is of rank 6 in each Conv1D, square and not: nothing is left out."""
    merged = adapted(torch, gpt2(), 2, lora_alpha=8).merge_and_unload()
    merged.save_pretrained(tmp_path / "tuned")
    found = extract_adapter(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", Keep(error=1e-6))
    assert {fit.r for fit in found.fits} == {R} and not found.beyond
    expected = logits(torch, merged)
    new = logits(torch, loaded(gpt2(), tmp_path / "a"))
    assert np.abs(new - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_merged_checkpoint_is_pefts_merge_and_unload(tmp_path, torch, gpt2):
    import transformers

    adapter = adapted(torch, gpt2(), 2, lora_alpha=8, rank_pattern={"c_fc": 2})
    adapter.save_pretrained(tmp_path / "a")
    merged = merge_adapter(
        tmp_path / "base", tmp_path / "a", tmp_path / "base" / "merged.safetensors"
    )
    assert len(merged) == 4 * LAYERS
    (tmp_path / "base" / "merged.safetensors").replace(tmp_path / "base" / "model.safetensors")
    ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base", dtype=torch.float64)
    theirs = loaded(gpt2(), tmp_path / "a").merge_and_unload()
    for (name, x), y in zip(ours.state_dict().items(), theirs.state_dict().values()):
        assert (x - y).abs().max() < 1e-12 * max(1, y.abs().max()), name
    expected = logits(torch, theirs)
    assert np.abs(logits(torch, ours.eval()) - expected).max() < 1e-10


def test_a_llamas_linear_layers_are_extracted_and_merged_as_they_lie(tmp_path, torch):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config).double().eval()
    base.save_pretrained(tmp_path / "base")
    before = logits(torch, base)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if name.endswith("_proj.weight"):
                p.add_(torch.randn(len(p), 1) @ torch.randn(1, p.shape[1]) * 0.1)
    base.save_pretrained(tmp_path / "tuned")
    expected = logits(torch, base)
    assert np.abs(expected - before).max() > 1e-3
    extract_adapter(tmp_path / "base", tmp_path / "tuned", tmp_path / "a", Keep(rank=1))
    fresh = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    new = logits(torch, loaded(fresh, tmp_path / "a"))
    assert np.abs(new - expected).max() < 1e-5 * np.abs(expected).max()
    merge_adapter(tmp_path / "base", tmp_path / "a", tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").replace(tmp_path / "base" / "model.safetensors")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    assert np.abs(logits(torch, again) - expected).max() < 1e-5 * np.abs(expected).max()


DORA = {"r": 4, "lora_alpha": 8, "use_dora": True, "rank_pattern": {"c_fc": 2}}
OTHERS = {  # configurations of PEFT's other methods, on GPT-2's Conv1D
    "dora": lambda peft: peft.LoraConfig(target_modules=TARGETS, fan_in_fan_out=True, **DORA),
    "dora, one module": lambda peft: peft.LoraConfig(
        target_modules=["c_attn"], fan_in_fan_out=True, r=3, use_dora=True, use_rslora=True
    ),
}


def of_another_method(torch, model, config):
    """The model with an adapter of PEFT's, away from its start."""
    import peft

    found = peft.get_peft_model(model, config(peft)).double().eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in found.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)
    return found


@pytest.mark.parametrize("config", OTHERS.values(), ids=list(OTHERS))
def test_gpt2_with_a_converted_adapter_has_the_logits_of_the_method(tmp_path, torch, gpt2, config):
    theirs = of_another_method(torch, gpt2(), config)
    theirs.save_pretrained(tmp_path / "a")
    expected = logits(torch, theirs)
    found = convert_adapter(tmp_path / "a", tmp_path / "base", tmp_path / "b", Keep(rank=D))
    assert all(fit.r == D for fit in found.fits)
    base, merged = gpt2(), theirs.merge_and_unload().state_dict()
    start, changed = logits(torch, base), {}
    for name, x in base.state_dict().items():
        if name.endswith("bias") and (x - merged[name]).norm() > 0:
            changed[name] = (x - merged[name]).norm().item()
            x.copy_(merged[name])  # LoRA does not hold it
    assert found.beyond == pytest.approx(changed, rel=1e-6)
    new = logits(torch, loaded(base, tmp_path / "b"))
    assert norm(start - expected) > 1e-2 * norm(expected)
    assert norm(new - expected) < 2e-6 * norm(expected)


@pytest.mark.parametrize("config", OTHERS.values(), ids=list(OTHERS))
def test_a_converted_adapter_is_off_in_peft_by_what_convert_said(tmp_path, torch, gpt2, config):
    theirs = of_another_method(torch, gpt2(), config)
    theirs.save_pretrained(tmp_path / "a")
    found = convert_adapter(tmp_path / "a", tmp_path / "base", tmp_path / "b", Keep(energy=0.9))
    merged, base = theirs.merge_and_unload().state_dict(), gpt2().state_dict()
    new = deltas(loaded(gpt2(), tmp_path / "b"))
    assert {fit.name for fit in found.fits} == set(new)
    for fit in found.fits:
        delta = (merged[f"{fit.name}.weight"] - base[f"{fit.name}.weight"]).numpy().T
        error = norm(new[fit.name] - delta)
        assert error == pytest.approx(fit.written, rel=1e-4) and error**2 < 0.1 * norm(delta) ** 2
        assert fit.norm == pytest.approx(norm(delta), rel=1e-6)


LINEAR = {  # on layers that our models do not have: grouped queries, a gate
    "dora": lambda peft: peft.LoraConfig(target_modules="all-linear", r=3, use_dora=True),
}


@pytest.mark.parametrize("config", LINEAR.values(), ids=list(LINEAR))
def test_an_adapter_of_a_llama_is_converted_without_a_model_of_ours(tmp_path, torch, config):
    import transformers

    llama = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(llama).double().save_pretrained(tmp_path / "base")

    def fresh():
        return transformers.LlamaForCausalLM.from_pretrained(
            tmp_path / "base", dtype=torch.float64
        ).eval()

    theirs = of_another_method(torch, fresh(), config)
    theirs.save_pretrained(tmp_path / "a")
    expected, start = logits(torch, theirs), logits(torch, fresh())
    found = convert_adapter(tmp_path / "a", tmp_path / "base", tmp_path / "b", Keep(rank=D))
    assert len(found.fits) == 14 and not found.beyond
    new = logits(torch, loaded(fresh(), tmp_path / "b"))
    assert norm(start - expected) > 1e-2 * norm(expected)
    assert norm(new - expected) < 2e-6 * norm(expected)
