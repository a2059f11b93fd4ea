"""Keys in pages: attention of ragged rows equals each row's own."""

import numpy as np
import pytest

from lora_np import GRU, Chain, PrefixConfig, PromptConfig, inject
from lora_np.models.language import LanguageModel
from lora_np.ops import gqa_forward
from lora_np.serve.keys import Batch, KeyRoom, Part, attend_one, key_layout
from lora_np.serve.pool import Pool
from tests.serve.tiny import BASES, V, llama


@pytest.mark.parametrize("heads, G, d", [(4, 2, 8), (3, 3, 4), (6, 1, 2), (1, 1, 1)])
def test_attention_of_single_queries_equals_that_of_each_alone(rng, heads, G, d):
    lengths = (1, 7, 3, 3)
    q = rng.standard_normal((4, heads, d))
    seen = [tuple(rng.standard_normal((2, G, n, d))) for n in lengths]
    y = attend_one(q, [k.swapaxes(1, 2) for k, _ in seen], [v for _, v in seen])
    for i, (k, v) in enumerate(seen):
        alone, _ = gqa_forward(q[i].reshape(G, heads // G, 1, d), k, v)
        np.testing.assert_allclose(y[i], alone.reshape(heads, d), rtol=1e-12, atol=1e-14)


def test_large_scores_do_not_overflow():
    q, k = np.full((1, 1, 4), 100.0, np.float32), np.full((1, 2, 4), 100.0, np.float32)
    y = attend_one(q, [k.swapaxes(1, 2)], [k])
    np.testing.assert_allclose(y, 100.0)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_texts_read_in_any_pieces_have_the_logits_of_each_alone(rng, base):
    model = base()
    texts = [rng.integers(0, V, n) for n in (9, 4, 7)]
    layout = key_layout(model)
    pool = Pool(30, layout.page, layout.dtype)
    rooms = [KeyRoom(pool, pool.take(len(text)), layout) for text in texts]
    known = [0, 0, 0]
    for counts in [(3, 1, 0), (1, 0, 7), (5, 3, 0)]:
        use = [i for i in range(3) if counts[i]]
        batch = Batch(pool, [Part(rooms[i], known[i], counts[i]) for i in use])
        tokens = np.concatenate([texts[i][known[i] : known[i] + counts[i]] for i in use])
        y, _ = model.read(tokens[:, None], batch.memory(layout))
        for i, end in zip(use, batch.ends):
            known[i] += counts[i]
            logits, _ = model.advance(texts[i][None, : known[i]])
            np.testing.assert_allclose(model.head().product(y[end]), logits, atol=2e-6)
    assert known == [9, 4, 7]


def test_a_page_holds_one_tokens_keys_and_values():
    layout = key_layout(llama())
    assert layout[:3] == (2, 2, 8) and layout.page == 2 * 2 * 2 * 8


def test_rows_before_the_text_are_refused(rng):
    for config in (PromptConfig(num_virtual_tokens=2), PrefixConfig(num_virtual_tokens=2)):
        with pytest.raises(ValueError, match="before the text"):
            key_layout(inject(llama(), config, rng))


def test_a_memory_other_than_keys_is_refused(rng):
    class Recurrent(type(llama())):
        def body(self):
            return Chain(*super().body().layers, GRU(32, 32, rng))

    model = llama()
    model.__class__ = Recurrent
    assert isinstance(model, LanguageModel)
    with pytest.raises(ValueError, match="StateMemory: only keys"):
        key_layout(model)
