"""A real model: requests of unequal lengths, whose adapters push one another out of the pool."""

import numpy as np
import pytest

from lora_np import load_adapter
from lora_np.pretrained import load_llm
from lora_np.serve import Engine
from tests.serve.oracle import answers, verdict
from tests.serve.tiny import adapter
from tests.smollm2 import smollm2_file

pytestmark = pytest.mark.llm

TEXTS = ("The capital of France is", "One, two, three, four,", "Once upon a time,", "2 + 2 =")
NAMES = ("one", "four", "eight", None)  # the adapters' ranks


def write_adapters(base, root):
    """Write adapters that change the answers, without making noise of them."""
    rng = np.random.default_rng(0)
    for r, name in zip((1, 4, 8), NAMES):
        how = {"r": r, "target_modules": ["q_proj", "v_proj"]}
        adapter(base, root / name, rng, size=0.05, **how)
    return {name: root / name for name in NAMES[:3]}


def test_ragged_requests_under_eviction_get_the_tokens_of_each_adapter_alone(tmp_path):
    llm = load_llm(smollm2_file())
    folders = write_adapters(llm.model, tmp_path)
    prompts = [llm.tokenizer.encode(text) for text in TEXTS]
    asked = [
        (name, prompts[(i + j) % 4] * (1 + j), 4 + 2 * i + j, ())
        for j in range(3)
        for i, name in enumerate(NAMES)
    ]
    engine = Engine(llm.model, folders.values(), pages=80, batch=3)
    requests = [engine.submit(name, prompt, n) for name, prompt, n, _ in asked]
    engine.run()
    alone = answers(llm.model, folders, asked)
    of_base = answers(llm.model, {}, [(None, *rest) for _, *rest in asked])
    assert sum(a != b for a, b in zip(alone, of_base)) > 6  # of 9: the adapters matter
    models = {None: llm.model} | {n: load_adapter(llm.model, f) for n, f in folders.items()}
    for request, expected in zip(requests, alone, strict=True):
        given = (request.prompt, request.tokens, expected)
        assert verdict(models[request.adapter], *given) in ("equal", "tie"), given
    counts = engine.counts()
    assert engine.adapters.reads > len(folders)  # some were let go, and read again
    assert counts.free + counts.held == counts.pages
