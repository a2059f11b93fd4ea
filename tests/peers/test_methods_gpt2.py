"""Methods on Hugging Face's GPT-2 through PEFT: stacked matrices, LayerNorms, files both ways."""

import numpy as np
import pytest

from lora_np import load_adapter, load_gpt2, save_adapter
from lora_np.methods import IA3Config, LNTuningConfig, inject, tensors_of
from tests.peers.test_files import VOCAB, assert_same, logits, theirs  # noqa: F401

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*LayerNorm:UserWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Unexpected keyword arguments .'fan_in_fan_out':UserWarning"),
]

METHODS = {
    "ia3": IA3Config(),
    "ia3, all": IA3Config(target_modules="all-linear"),
    "layernorms": LNTuningConfig(),
    "some layernorms": LNTuningConfig(target_modules=("ln_2", "ln_f")),
}


@pytest.fixture
def ours(tmp_path, theirs):  # noqa: F811
    theirs.save_pretrained(tmp_path / "base")
    return load_gpt2(tmp_path / "base", np.float64)


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCAB, (2, 9))


@pytest.mark.parametrize("name", METHODS)
def test_files_give_the_same_logits_in_both_directions(
    tmp_path,
    rng,
    torch,
    theirs,  # noqa: F811
    ours,
    tokens,
    name,
):
    import peft

    adapted = inject(ours, METHODS[name], rng)
    for p in tensors_of(adapted).values():
        p.value = p.value + 0.3 * rng.standard_normal(p.shape)
    save_adapter(adapted, tmp_path / "ours", peft_only=True)
    peers = peft.PeftModel.from_pretrained(
        theirs, tmp_path / "ours", is_trainable=True, autocast_adapter_dtype=False
    )
    peers.double().eval()
    assert_same(adapted, tokens, logits(peers, tokens), 1e-5)  # PEFT loads into float32
    with torch.no_grad():
        for p in peers.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    peers.save_pretrained(tmp_path / "theirs")
    again = load_adapter(ours, tmp_path / "theirs")
    assert_same(again, tokens, logits(peers, tokens), 1e-12)
    assert type(again.method) is type(METHODS[name])
