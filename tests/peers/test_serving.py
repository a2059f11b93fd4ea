"""PEFT's mixed batch, as serve-bench measures it, writes what the engine writes."""

import numpy as np
import pytest

from lora_np.experiments.serving.measure import Asked, serve
from lora_np.experiments.serving.peft_side import PeftSide
from lora_np.experiments.serving.plan import QUICK
from lora_np.experiments.serving.run import Bench
from tests.serve.tiny import llama

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are:UserWarning"),  # PyTorch's own
]


def test_pefts_mixed_batch_writes_the_tokens_of_the_engine(tmp_path):
    bench = Bench(QUICK, llama(), tmp_path, lambda what: None)
    prompts, chosen = bench.prompts(5, 4), [2, 0, 1, 0, 2]
    engine = bench.engine(adapters=3, room=3, rows=5, tokens=10)
    requests = serve(engine, [Asked(engine.names[i], p) for i, p in zip(chosen, prompts)], 6)
    theirs = PeftSide(bench.model, bench.shelf.folders(3)).generate(chosen, prompts, 6)
    np.testing.assert_array_equal([request.tokens for request in requests], theirs)
    others = PeftSide(bench.model, bench.shelf.folders(3)).generate([0] * 5, prompts, 6)
    assert (others != theirs).any()
