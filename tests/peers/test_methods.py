"""Every method that PEFT has, against PEFT: y, dx, every gradient, the merge, files both ways."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lora_np import load_adapter, load_gpt2, merge, save_adapter
from lora_np.adapters import Keep, convert_adapter
from lora_np.files import save_tensors
from lora_np.layers import MLP, Linear, copy_model
from lora_np.methods import (
    AdaLoraConfig,
    DoraConfig,
    DyLoraConfig,
    HiraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    ShiraConfig,
    VeraConfig,
    adapters,
    at_rank,
    inject,
    tensors_of,
)
from lora_np.parameters import Grads

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings(
        "ignore:Unexpected keyword arguments .'lora_np_options':UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are:UserWarning"),  # PyTorch's own
]

D = 6  # the base is an MLP 6 -> 24 -> 6, whose layers PEFT calls up_proj and down_proj too
TOLERANCE = 1e-12  # float64, relative
EVERYWHERE = {"target_modules": "all-linear"}
METHODS = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"),
    "lora, rslora": LoraConfig(r=3, lora_alpha=5, target_modules=("up_proj",), use_rslora=True),
    "lora, pissa": LoraConfig(r=2, target_modules="all-linear", init_lora_weights="pissa"),
    "lora, olora": LoraConfig(r=2, target_modules="all-linear", init_lora_weights="olora"),
    "lora, fa": LoraConfig(r=2, target_modules="all-linear", train_A=False),
    "dora": DoraConfig(r=3, lora_alpha=5, target_modules="all-linear"),
    "dora, one layer": DoraConfig(r=2, target_modules=("down_proj",), use_rslora=True),
    "ia3": IA3Config(target_modules=("up_proj", "down_proj")),
    "ia3, behind": IA3Config(target_modules=("up_proj", "down_proj"), feedforward_modules=()),
    "adalora": AdaLoraConfig(init_r=3, total_step=9, target_r=2, target_modules="all-linear"),
    "vera": VeraConfig(r=3, target_modules="all-linear"),
    "vera, one layer": VeraConfig(r=40, d_initial=0.5, target_modules=("down_proj",)),
    "loha": LoHaConfig(r=3, alpha=5, target_modules="all-linear"),
    "lokr": LoKrConfig(r=3, alpha=5, target_modules="all-linear"),
    "lokr, factors": LoKrConfig(r=1, alpha=2, decompose_both=True, target_modules="all-linear"),
    "lokr, sides": LoKrConfig(r=2, decompose_factor=3, target_modules="all-linear"),
    "oft": OFTConfig(oft_block_size=3, target_modules="all-linear"),
    "oft, 3 terms": OFTConfig(r=2, oft_block_size=0, num_cayley_neumann_terms=3, **EVERYWHERE),
    "oft, 7 terms": OFTConfig(r=2, oft_block_size=0, num_cayley_neumann_terms=7, **EVERYWHERE),
    "oft, exact": OFTConfig(r=2, oft_block_size=0, use_cayley_neumann=False, **EVERYWHERE),
    "oft, one rotation": OFTConfig(oft_block_size=2, block_share=True, target_modules="all-linear"),
    "hira": HiraConfig(r=3, target_modules="all-linear"),
    "miss": MissConfig(r=3, target_modules="all-linear"),
    "miss, cut": MissConfig(r=5, target_modules="all-linear"),
    "miss, mini": MissConfig(r=4, init_weights="mini", mini_r=2, target_modules="all-linear"),
    "shira": ShiraConfig(r=2, target_modules="all-linear"),
}
MERGE = {name: config for name, config in METHODS.items() if config.merges}
every_method = pytest.mark.parametrize("config", METHODS.values(), ids=list(METHODS))


@pytest.fixture
def doubles(torch):
    """PEFT makes its own Parameters in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def base(rng):
    model = MLP(D, 4 * D, rng, dtype=np.float64)
    for p in model.parameters().values():
        p.value = rng.standard_normal(p.shape) * 0.3
    return model


def torch_twin(base):
    """The same MLP in torch."""
    from tests.peers import torch_gpt

    twin = torch_gpt.MLP(D).double()
    leaf = {"W": "weight", "b": "bias"}
    names = {n: n.rpartition(".") for n in base.parameters()}
    state = {f"{names[n][0]}.{leaf[names[n][2]]}": p.value for n, p in base.parameters().items()}
    twin.load_state_dict({name: torch_gpt.tensor(x) for name, x in state.items()})
    return twin


def at_random(adapted, rng):
    """Move every Parameter of the method away from its start."""
    for p in tensors_of(adapted).values():
        if p.dtype.kind == "f":  # and not places
            p.value = p.value + 0.3 * rng.standard_normal(p.shape)
    return adapted


def in_peft(base, folder):
    """PEFT's model with the adapter in `folder`."""
    import peft

    return peft.PeftModel.from_pretrained(
        torch_twin(base), folder, is_trainable=True, autocast_adapter_dtype=False
    )


def their_names(adapter):
    """PEFT's Parameters by the names that its files have."""
    return {name.replace(".default", ""): p for name, p in adapter.named_parameters()}


def error(ours, theirs):
    from tests.peers import torch_gpt

    return torch_gpt.relative_error(ours, theirs)


@every_method
def test_outputs_gradients_and_merge_are_pefts(tmp_path, rng, doubles, base, config):
    ours = at_random(inject(base, config, rng), rng)
    save_adapter(ours, tmp_path, peft_only=True)
    theirs = in_peft(base, tmp_path)
    x, dy = rng.standard_normal((2, 5, D)), rng.standard_normal((2, 5, D))
    grads, their_x = Grads(), doubles.from_numpy(x.copy()).requires_grad_()
    y, cache = ours.forward(x)
    dx = ours.backward(dy, cache, grads)
    their_y = theirs(their_x)
    (their_y * doubles.from_numpy(dy)).sum().backward()
    assert error(y, their_y) < TOLERANCE
    assert error(dx, their_x.grad) < TOLERANCE
    assert error(merge(ours).forward(x)[0], their_y) < TOLERANCE
    named, compared = their_names(theirs), 0
    for path, adapter in adapters(ours).items():
        for tensor, p in adapter.tensors().items():
            theirs_p = named.get(f"base_model.model.{path}.{tensor}")
            if theirs_p is None or theirs_p.shape != p.shape or not p.trainable:
                continue  # held in another form in the file
            assert error(grads[p], theirs_p.grad) < TOLERANCE, (path, tensor)
            compared += 1
    derived = getattr(config, "init_lora_weights", True) in ("pissa", "olora")
    assert compared > 0 or derived


@every_method
def test_a_file_of_pefts_is_read_with_its_outputs(tmp_path, rng, doubles, base, config):
    ours = at_random(inject(base, config, rng), rng)
    save_adapter(ours, tmp_path / "ours", peft_only=True)
    theirs = in_peft(base, tmp_path / "ours")
    with doubles.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.1 * doubles.randn_like(p))
    theirs.save_pretrained(tmp_path / "theirs")
    x = rng.standard_normal((3, D))
    expected = theirs(doubles.from_numpy(x))
    again = load_adapter(base, tmp_path / "theirs")
    assert error(again.forward(x)[0], expected) < TOLERANCE
    narrow = load_adapter(copy_model(base, dtype=np.float32), tmp_path / "theirs")
    assert error(narrow.forward(x.astype(np.float32))[0], expected) < 2e-6


@every_method
def test_a_file_in_float32_is_read_by_peft(tmp_path, rng, doubles, base, config):
    ours = at_random(inject(base, config, rng), rng)
    save_adapter(ours, tmp_path, dtype=np.float32, peft_only=True)
    x = rng.standard_normal((3, D))
    assert error(ours.forward(x)[0], in_peft(base, tmp_path)(doubles.from_numpy(x))) < 2e-6


@pytest.mark.parametrize("config", MERGE.values(), ids=list(MERGE))
def test_a_converted_adapter_computes_in_peft_what_the_method_does(
    tmp_path, rng, doubles, base, config
):
    ours = at_random(inject(base, config, rng), rng)
    save_adapter(ours, tmp_path / "a", peft_only=True)
    leaf, parts = {"W": "weight", "b": "bias"}, [n.rpartition(".") for n in base.parameters()]
    weights = {f"{path}.{leaf[n]}": base.parameters()[f"{path}.{n}"].value for path, _, n in parts}
    save_tensors(tmp_path / "base.safetensors", weights)
    convert_adapter(tmp_path / "a", tmp_path / "base.safetensors", tmp_path / "lora", Keep(rank=D))
    plain = merge(ours)
    for path, layer in base.modules().items():
        if isinstance(layer, Linear):  # LoRA does not hold a change of the bias
            layer.b.value = plain.modules()[path].b.value
    x = rng.standard_normal((3, D))
    theirs = in_peft(base, tmp_path / "lora")(doubles.from_numpy(x))
    assert error(base.forward(x)[0], plain.forward(x)[0]) > 1e-3
    assert error(plain.forward(x)[0], theirs) < 2e-6


def test_peft_refuses_a_method_that_it_does_not_have(tmp_path, rng, base):
    import peft

    from tests.methods.own_gains import GainConfig

    save_adapter(inject(base, GainConfig(r=2), rng), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_np_method"]
    with pytest.raises((TypeError, ValueError, KeyError)):
        peft.PeftModel.from_pretrained(torch_twin(base), tmp_path)


@pytest.mark.parametrize("rank", [1, 3])
def test_peft_computes_what_a_cut_of_dylora_does(tmp_path, rng, doubles, base, rank):
    config = DyLoraConfig(r=4, lora_alpha=5, target_modules="all-linear")
    ours = at_rank(at_random(inject(base, config, rng), rng), rank)
    save_adapter(ours, tmp_path, peft_only=True)
    x = rng.standard_normal((3, D))
    assert error(ours.forward(x)[0], in_peft(base, tmp_path)(doubles.from_numpy(x))) < TOLERANCE


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")  # PEFT's
@every_method
def test_on_gpt2s_transposed_layers_a_file_is_pefts_only_where_peft_adapts_them(
    tmp_path, rng, doubles, config
):
    """HF's GPT-2 holds its weights (in, out); several methods of PEFT know only (out, in)."""
    import peft
    import transformers

    options = {"n_positions": 6, "n_embd": D, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=9, **options, **tokens)
    ).eval()
    theirs.save_pretrained(tmp_path / "base")
    base = load_gpt2(tmp_path / "base", np.float64)
    ours = inject(base, replace(config, target_modules=("o_proj", "down_proj")), rng)
    save_adapter(at_random(ours, rng), tmp_path / "adapter")
    text, fields = rng.integers(0, 9, (2, 5)), tmp_path / "adapter" / "adapter_config.json"
    expected = ours.forward(text)[0]
    assert error(load_adapter(base, tmp_path / "adapter").forward(text)[0], expected) < TOLERANCE
    if config.peft_transposes:
        adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
        assert error(expected, adapted(doubles.from_numpy(text)).logits) < 2e-6
        return
    assert "peft_type" not in json.loads(fields.read_text())
    theirs_alike = peft.get_peft_config(
        {"peft_type": config.peft_type, "target_modules": ["c_proj"]}
    )
    with pytest.raises(TypeError, match="Conv1D"):
        peft.get_peft_model(theirs, theirs_alike)
