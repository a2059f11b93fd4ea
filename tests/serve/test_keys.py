"""Keys in pages: attention of ragged rows equals each row's own."""

import numpy as np
import pytest

from lora_np import GRU, Chain, PrefixConfig, PromptConfig, inject
from lora_np.models.language import LanguageModel
from lora_np.ops import gqa_forward
from lora_np.serve.batch import Batch, Part, attend_one, side_by_side_rooms
from lora_np.serve.keys import KeyRoom, key_layout
from lora_np.serve.pool import Pool
from tests.serve.tiny import BASES, V, llama


@pytest.mark.parametrize("heads, G, d", [(4, 2, 8), (3, 3, 4), (6, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize("rooms", [[4], [1, 3], [1, 1, 1, 1]])
def test_attention_of_single_queries_equals_that_of_each_alone(rng, heads, G, d, rooms):
    lengths = np.array([1, 7, 3, 3])
    q = rng.standard_normal((4, heads, d))
    k, v = rng.standard_normal((2, 4, G, 7, d))
    ends = np.cumsum(rooms)
    grids = []
    for start, end in zip(ends - rooms, ends):
        n = lengths[start:end].max()
        grids.append((k[start:end, :, :n].swapaxes(2, 3), v[start:end, :, :n]))
    unseen = (np.arange(7) >= lengths[:, None])[:, None, None]
    y = attend_one(q, grids, unseen)
    for i, n in enumerate(lengths):
        alone, _ = gqa_forward(q[i].reshape(G, heads // G, 1, d), k[i, :, :n], v[i, :, :n])
        np.testing.assert_allclose(y[i], alone.reshape(heads, d), rtol=1e-12, atol=1e-14)


def test_large_scores_do_not_overflow():
    q, k = np.full((1, 1, 4), 100.0, np.float32), np.full((1, 1, 2, 4), 100.0, np.float32)
    np.testing.assert_allclose(attend_one(q, [(k.swapaxes(2, 3), k)], None), 100.0)


def test_rooms_that_adjoin_and_are_of_one_size_attend_together():
    layout = key_layout(llama())
    pool = Pool(40, layout.page, layout.dtype)
    leases = [pool.take(n) for n in (4, 4, 4, 6, 6, 4)]
    parts = [Part(KeyRoom(pool, lease, layout), 1, 1) for lease in leases]
    runs = side_by_side_rooms([part for i, part in enumerate(parts) if i != 1])
    assert [[parts.index(part) for part in run] for run in runs] == [[0], [2], [3, 4], [5]]
    (keys, values), *_ = Batch(pool, parts).grids
    assert keys.shape == (2, 3, 2, 8, 2) and values.shape == (2, 3, 2, 2, 8)
    assert np.shares_memory(keys, pool.memory) and np.shares_memory(values, pool.memory)


def test_numbers_left_in_the_pool_reach_nobody(rng):
    model = llama()
    layout = key_layout(model)
    pool = Pool(8, layout.page, layout.dtype)
    pool.memory[:] = np.nan
    rooms = [KeyRoom(pool, pool.take(4), layout) for _ in range(2)]
    for known in ([0, 0], [1, 1], [2, 1]):  # the second reads its second token again
        batch = Batch(pool, [Part(room, n, 1) for room, n in zip(rooms, known)])
        y, _ = model.read(np.array([[3], [4]]), batch.memory(layout))
    assert np.isfinite(y).all()


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
