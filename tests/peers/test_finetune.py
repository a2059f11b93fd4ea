"""The folder that ``lora-np finetune`` leaves, in PEFT."""

import numpy as np
import pytest

from lora_np import load_adapter, load_llm
from lora_np.finetune import Settings, finetune
from tests.finetune.tiny import write_data, write_llama

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),  # PEFT's
]


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_peft_loads_the_folder_and_computes_the_same_logits(tmp_path, method):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, data = write_llama(tmp_path / "base"), write_data(tmp_path / "mine.jsonl")
    out = tmp_path / "out"
    settings = Settings(
        model=str(base), data=str(data), method=method, top_layers=2, epochs=4, lr=0.02, jobs=1
    )
    finetune(settings, out)
    tokens = np.arange(40).reshape(2, 20) * 7 % 340
    ours = load_adapter(load_llm(str(base)).model, out).forward(tokens)[0]
    plain = load_llm(str(base)).model.forward(tokens)[0]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-4)
    assert abs(ours - plain).max() > 1e-2  # the adapter does something
