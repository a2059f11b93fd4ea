"""The engine: everybody gets what they would get alone, and every page comes back."""

import math
import shutil

import numpy as np
import pytest

from lora_np import LoraConfig, StoredParameter, inject, save_adapter, store_model
from lora_np.files import CheckpointError, TensorFile
from lora_np.forms import Bfloat16
from lora_np.serve import Engine
from lora_np.serve.engine import OVERTAKEN, READ, whole_rooms
from tests.serve.tiny import BASES, CONTEXT, V, adapter, adapters, greedy, llama


def folders(tmp_path):
    return sorted(path for path in tmp_path.iterdir() if path.is_dir())


def is_clean(engine):
    counts = engine.counts()
    return (counts.waiting, counts.running) == (0, 0) and counts.free + counts.held == counts.pages


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_ragged_requests_under_eviction_get_the_tokens_of_each_adapter_alone(
    base, batch, tmp_path, rng
):
    base = base()
    models = adapters(base, tmp_path, rng)
    engine = Engine(base, folders(tmp_path), pages=120, batch=batch)
    names = list(models)
    requests = [
        engine.submit(
            names[rng.integers(len(names))], rng.integers(0, V, rng.integers(1, 20)), int(n)
        )
        for n in rng.integers(1, 20, 40)
    ]
    engine.run()
    for request in requests:
        assert request.tokens == greedy(models[request.adapter], request.prompt, request.n)
        assert (request.state, request.finish) == ("done", "length")
    assert is_clean(engine) and (engine.pool.moves > 0 or batch == 1)


def test_quantised_weights_are_served(tmp_path, rng):
    base = store_model(llama(), Bfloat16.encode)
    models = adapters(base, tmp_path, rng)
    assert any(isinstance(p, StoredParameter) for p in base.parameters().values())
    engine = Engine(base, folders(tmp_path), pages=300, batch=4)
    requests = [engine.submit(name, [3, 1, 4, 1, 5], 8) for name in models]
    engine.run()
    for request in requests:
        assert request.tokens == greedy(models[request.adapter], request.prompt, 8)


def test_a_request_joins_while_others_write(tmp_path, rng):
    base = llama()
    models = adapters(base, tmp_path, rng)
    engine = Engine(base, folders(tmp_path), pages=300, batch=4)
    first = engine.submit("four", [1, 2, 3], 9)
    for _ in range(4):
        engine.step()
    second = engine.submit("eight", [7, 8], 3)
    engine.step()
    assert len(first.tokens) == 5 and len(second.tokens) == 1
    engine.run()
    assert first.tokens == greedy(models["four"], [1, 2, 3], 9)
    assert second.tokens == greedy(models["eight"], [7, 8], 3)


def test_a_long_prompt_is_read_in_pieces_and_holds_no_writer_up(rng):
    config = llama().config
    base = llama().__class__(
        config.__class__(V, 4 * READ, 1, 2, 1, d_model=8, d_hidden=8), np.random.default_rng(0)
    )
    engine = Engine(base, [], pages=5 * READ, batch=2)
    writer = engine.submit(None, [1], 8)
    engine.step()
    prompt = rng.integers(0, V, 2 * READ + 3)
    reader = engine.submit(None, prompt, 2)
    for turn in range(3):
        assert len(reader.tokens) == 0 and len(writer.tokens) == turn + 1
        engine.step()
    assert len(reader.tokens) == 1 and len(writer.tokens) == 4
    engine.run()
    assert reader.tokens == greedy(base, prompt, 2)


def test_a_stop_token_ends_an_answer_and_is_returned(rng):
    base = llama()
    expected = greedy(base, [5, 6], 9)
    engine = Engine(base, [], pages=64, batch=2)
    request = engine.submit(None, [5, 6], 9, stop=[expected[3]])
    engine.run()
    at = expected.index(expected[3])
    assert request.tokens == expected[: at + 1] and request.finish == "stop"


def test_a_seed_means_the_same_tokens_whoever_shares_the_batch(rng):
    base = llama()

    def drawn(others):
        engine = Engine(base, [], pages=640, batch=8)
        asked = [engine.submit(None, [9], 5, temperature=1.0, seed=i) for i in range(others)]
        mine = engine.submit(None, [5, 6], 12, temperature=0.8, top_p=0.9, seed=7)
        engine.run()
        assert all(request.state == "done" for request in asked)
        return mine.tokens

    assert drawn(0) == drawn(5)
    alone = base.generate(
        np.array([5, 6]), 12, temperature=0.8, top_p=0.9, rng=np.random.default_rng(7)
    )
    assert drawn(0) == alone[2:].tolist()


def test_tokens_are_handed_over_as_they_come():
    engine, seen = Engine(llama(), [], pages=64, batch=2), []
    request = engine.submit(None, [1, 2], 4, on_token=seen.append)
    engine.step()
    assert seen == request.tokens and len(seen) == 1
    engine.run()
    assert seen == request.tokens and request.submitted <= request.first <= request.last


def test_cancelled_requests_give_their_pages_back(tmp_path, rng):
    base = llama()
    adapters(base, tmp_path, rng)
    engine = Engine(base, folders(tmp_path), pages=300, batch=1)
    running, waiting = engine.submit("four", [1], 9), engine.submit("one", [1], 9)
    engine.step()
    engine.cancel(waiting)
    engine.cancel(running)
    engine.cancel(running)
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    assert is_clean(engine) and not engine.step() and len(running.tokens) == 1


def test_a_callback_may_cancel_its_own_request():
    engine = Engine(llama(), [], pages=64, batch=2)
    request = engine.submit(None, [1], 3, on_token=lambda _: engine.cancel(request))
    other = engine.submit(None, [2], 3)
    engine.run()
    assert request.state == "cancelled" and len(request.tokens) == 1
    assert other.state == "done" and is_clean(engine)


def test_a_callback_may_cancel_others_that_write_in_the_same_step():
    base, asked = llama(), []
    engine = Engine(base, [], pages=64, batch=4)

    def cancel_the_rest(_):
        for other in asked[1:]:
            engine.cancel(other)

    seen = []
    asked.append(engine.submit(None, [1], 3, on_token=cancel_the_rest))
    asked += [engine.submit(None, [2], n, on_token=seen.append) for n in (1, 3)]
    engine.run()
    assert [(r.state, r.finish) for r in asked[1:]] == [("cancelled", None)] * 2
    assert seen == [] and asked[1].tokens == asked[2].tokens == []
    assert asked[0].tokens == greedy(base, [1], 3) and is_clean(engine)


@pytest.mark.parametrize("at", [0, 1, 4], ids=["first token", "in the middle", "last token"])
def test_a_callback_that_raises_costs_nobody_a_token(at):
    base, seen = llama(), []
    engine = Engine(base, [], pages=64, batch=4)

    def interrupt(token):
        seen.append(token)
        if len(seen) == at + 1:
            raise KeyboardInterrupt

    asked = [engine.submit(None, [i, 7], 5, on_token=[interrupt, None][i]) for i in (0, 1)]
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    engine.run()
    for i, request in enumerate(asked):
        assert request.tokens == greedy(base, [i, 7], 5) and request.state == "done"
    assert seen == asked[0].tokens and is_clean(engine)


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_a_step_without_memory_has_not_happened(at, monkeypatch, rng):
    config = llama().config
    base = llama().__class__(
        config.__class__(V, 3 * READ, 1, 2, 1, d_model=8, d_hidden=8), np.random.default_rng(0)
    )
    engine, steps = Engine(base, [], pages=4 * READ, batch=4), iter(range(99))
    prompts = [rng.integers(0, V, n) for n in (2, 2 * READ + 3)]
    asked = [engine.submit(None, prompt, 5) for prompt in prompts]
    head = base.head

    def short_of_memory():  # when keys are written already
        if next(steps) == at:
            raise MemoryError
        return head()

    monkeypatch.setattr(base, "head", short_of_memory)
    with pytest.raises(MemoryError):
        engine.run()
    engine.run()
    monkeypatch.undo()
    assert [request.tokens for request in asked] == [greedy(base, p, 5) for p in prompts]
    assert is_clean(engine)


def test_a_broken_adapter_fails_its_own_requests_alone(tmp_path, rng):
    base = llama()
    models = adapters(base, tmp_path, rng)
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(b"nothing")
    engine = Engine(base, folders(tmp_path), pages=300, batch=4)
    requests = [engine.submit(name, [1, 2], 4) for name in ("four", "one", None, "one")]
    engine.run()
    assert [request.state for request in requests] == ["done", "failed", "done", "failed"]
    assert isinstance(requests[1].error, CheckpointError) and requests[1].tokens == []
    assert requests[0].tokens == greedy(models["four"], [1, 2], 4) and is_clean(engine)


def test_an_adapter_beyond_the_memory_fails_its_own_requests_alone(tmp_path, rng, monkeypatch):
    base = llama()
    adapters(base, tmp_path, rng)
    read = TensorFile.read

    def short_of_memory(file, *arguments):
        if file.path.parent.name == "one":
            raise MemoryError
        return read(file, *arguments)

    monkeypatch.setattr(TensorFile, "read", short_of_memory)
    engine = Engine(base, folders(tmp_path), pages=300, batch=4)
    one, four = engine.submit("one", [1, 2], 4), engine.submit("four", [1, 2], 4)
    engine.run()
    assert (one.state, four.state) == ("failed", "done") and is_clean(engine)
    assert "do not fit in memory" in str(one.error)


def test_an_adapter_of_numbers_beyond_reason_fails_its_own_requests_alone(tmp_path, rng):
    base = llama()
    adapted = adapter(base, tmp_path / "mad", rng, r=2, target_modules=["q_proj", "down_proj"])
    for p in adapted.parameters().values():
        if p.trainable:
            p.value = np.full_like(p.value, 1e30)
    shutil.rmtree(tmp_path / "mad")
    save_adapter(adapted, tmp_path / "mad")
    engine = Engine(base, [tmp_path / "mad"], pages=300, batch=4)
    mad, sane = engine.submit("mad", [1, 2], 4), engine.submit(None, [1, 2], 4)
    engine.run()
    assert mad.state == "failed" and "not finite" in str(mad.error)
    assert sane.tokens == greedy(base, [1, 2], 4) and is_clean(engine)


def test_a_large_request_is_not_starved_by_small_ones():
    engine = Engine(llama(), [], pages=112, batch=8)

    def step():
        """One small request comes with every step: 7 run, in rooms of 16 pages."""
        engine.submit(None, [1], 7)
        engine.step()

    for _ in range(7):
        step()
    large, steps = engine.submit(None, [1] * 20, 30), 0  # a room of 64 pages
    while large.state == "waiting":
        step()
        steps += 1
        assert steps < 2 * OVERTAKEN
    assert large.overtaken == OVERTAKEN
    engine.run()
    assert large.state == "done" and len(large.tokens) == 30


def test_small_requests_go_on_while_a_large_one_waits():
    engine = Engine(llama(), [], pages=64, batch=8)
    engine.submit(None, [1], 30)
    engine.step()
    large, small = engine.submit(None, [1] * 20, 30), engine.submit(None, [1], 2)
    engine.step()
    assert (large.state, small.state) == ("waiting", "running")


def test_an_adapter_and_keys_that_never_fit_together_are_an_error(tmp_path, rng):
    base = llama()
    adapter(base, tmp_path / "a", rng, r=8, target_modules=["q_proj", "v_proj"])
    engine = Engine(base, [tmp_path / "a"], pages=60, batch=4)
    fits, not_ = engine.submit("a", [1], 20), engine.submit("a", [1], 38)
    base_alone = engine.submit(None, [1], 38)
    engine.run()
    assert (fits.state, not_.state, base_alone.state) == ("done", "failed", "done")
    assert "more than the pool's 60" in str(not_.error) and is_clean(engine)


def test_who_never_fits_beside_an_adapter_fails_without_waiting_for_those_who_run(tmp_path, rng):
    base = llama()
    for name in ("a", "b"):
        adapter(base, tmp_path / name, rng, r=4, target_modules=["q_proj", "v_proj"])
    engine = Engine(base, [tmp_path / "a", tmp_path / "b"], pages=60, batch=4)
    engine.submit("b", [1], 1)
    engine.run()  # b stays in the pool, unused
    runs = engine.submit("a", [1], 9)
    engine.step()
    never = [engine.submit("a", [1], 59) for _ in range(2)]
    engine.step()
    assert [request.state for request in never] == ["failed", "failed"]
    assert runs.state == "running" and engine.counts().loaded == 2
    engine.run()
    assert runs.state == "done" and is_clean(engine)


def test_who_waits_for_room_holds_no_adapter_and_drops_none(tmp_path, rng):
    base = llama()
    for name in ("a", "b", "new"):
        adapter(base, tmp_path / name, rng, r=4, target_modules=["q_proj", "v_proj"])  # 14 pages
    engine = Engine(base, folders(tmp_path), pages=68, batch=4)
    for name in ("a", "b"):
        engine.submit(name, [1], 1)
        engine.run()
    engine.submit(None, [1], 39)  # a room of 48, in the place of a: 6 pages are free, and 14 of b
    engine.step()
    known = engine.submit("a", [1], 9)
    for _ in range(3):
        engine.step()
        assert known.state == "waiting" and engine.adapters.reads == 2
        assert engine.counts().held == 14
    unknown = engine.submit("new", [1], 9)  # fits, for all that is known before it is read
    for _ in range(3):
        engine.step()
        assert unknown.state == "waiting" and engine.counts().running == 1
    engine.run()
    assert (known.state, unknown.state) == ("done", "done")
    for name in engine.names:
        engine.unload(name)
    assert engine.counts().free == 68


def test_a_move_is_seen_in_a_batch_whose_rows_stay(tmp_path, rng):
    config = llama().config
    base = llama().__class__(
        config.__class__(V, 4 * READ, 1, 2, 1, d_model=8, d_hidden=8), np.random.default_rng(0)
    )
    adapted = adapter(base, tmp_path / "a", rng, r=2, size=2.0, target_modules="all-linear")
    of_adapter = sum(p.size for p in adapted.parameters().values() if p.trainable)
    prompt = rng.integers(0, V, 3 * READ)
    pages = 32 + 32 + whole_rooms(3 * READ + 2) + 16 + math.ceil(of_adapter / 8)
    engine = Engine(base, [tmp_path / "a"], pages=pages, batch=4)
    engine.submit(None, [1], 30)  # it writes, so the long prompt is read in pieces
    engine.step()
    engine.submit(None, [1] * 20, 1)  # a room of 32 pages before that of the long one
    long = engine.submit("a", prompt, 2)
    engine.step()
    engine.step()
    last = engine.submit(None, [1] * 20, 20)  # 32 and 16 pages are free, but no run of 48
    engine.step()
    assert engine.pool.moves == 1 and last.state == "running" and not long.tokens
    engine.run()
    assert long.tokens == greedy(adapted, prompt, 2)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("fuor", [1], 1), "no adapter is called 'fuor': did you mean four"),
        ((None, [], 1), "the prompt is empty"),
        ((None, [1.0], 1), "all integers"),
        ((None, [[1]], 1), r"shape \(1, 1\)"),
        ((None, [V], 1), "outside the vocabulary, 0 to 49"),
        ((None, [-1], 1), "outside the vocabulary"),
        ((None, [1], 0), "n = 0 new tokens"),
        ((None, [1], 2.5), "n = 2.5 new tokens, expected a whole number"),
        ((None, [1] * 60, 5), f"more than the context's {CONTEXT}"),
    ],
)
def test_what_can_never_run_is_refused_at_submit(tmp_path, rng, arguments, said):
    base = llama()
    adapters(base, tmp_path, rng)
    engine = Engine(base, folders(tmp_path), pages=300, batch=4)
    with pytest.raises(ValueError, match=said):
        engine.submit(*arguments)
    assert engine.counts().waiting == 0


@pytest.mark.parametrize("n", [2.5, "2", None])
def test_a_number_of_tokens_that_is_no_integer_is_refused_at_submit(n):
    engine = Engine(llama(), [], pages=64, batch=4)
    with pytest.raises(ValueError, match="expected a whole number"):
        engine.submit(None, [1], n)
    assert engine.counts().waiting == 0 and engine.submit(None, [1], np.int64(2)).n == 2


@pytest.mark.parametrize(
    "how", [{"top_k": 2.5}, {"top_k": "2"}, {"temperature": "1"}, {"seed": 0.5}]
)
def test_a_draw_that_would_end_a_step_is_refused_at_submit(how):
    engine = Engine(llama(), [], pages=64, batch=4)
    with pytest.raises(TypeError):
        engine.submit(None, [1], 2, **{"temperature": 1.0} | how)
    engine.submit(None, [1], 2, temperature=1.0, top_k=np.int64(3), seed=1)
    engine.run()
    assert is_clean(engine)


def test_more_than_the_whole_pool_is_refused_at_submit():
    with pytest.raises(ValueError, match="more than the pool's 10"):
        Engine(llama(), [], pages=10, batch=4).submit(None, [1] * 6, 5)


def test_an_unloaded_adapter_fails_who_waits_and_leaves_who_runs(tmp_path, rng):
    base = llama()
    models = adapters(base, tmp_path, rng)
    engine = Engine(base, folders(tmp_path), pages=300, batch=1)
    running, waiting = engine.submit("four", [1, 2], 4), engine.submit("four", [1], 4)
    engine.step()
    engine.unload("four")
    engine.run()
    assert running.tokens == greedy(models["four"], [1, 2], 4)
    assert waiting.state == "failed" and "no adapter is called" in str(waiting.error)
    assert engine.counts().free == 300
    assert engine.load(tmp_path / "four") == "four" and "four" in engine.names


def test_an_adapted_model_is_not_a_base(rng):
    with pytest.raises(ValueError, match="serve its base"):
        Engine(inject(llama(), LoraConfig(r=2), rng), [], pages=10, batch=1)
    with pytest.raises(ValueError, match="batch = 0"):
        Engine(llama(), [], pages=10, batch=0)


def test_the_base_is_not_changed(tmp_path, rng):
    base = llama()
    adapters(base, tmp_path, rng)
    before = {name: p.value.copy() for name, p in base.parameters().items()}
    engine = Engine(base, folders(tmp_path), pages=300, batch=4)
    for name in (*engine.names, None):
        engine.submit(name, [1, 2, 3], 5)
    engine.run()
    for name, p in base.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])
    assert math.isfinite(sum(float(x.sum()) for x in before.values()))
