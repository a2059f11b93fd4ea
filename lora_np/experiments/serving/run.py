"""The measurements: what each side does, and the rows of results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.adapters import load_adapter
from lora_np.costs import account
from lora_np.crew import one_blas_thread
from lora_np.experiments.serving.measure import (
    Asked,
    InBatch,
    expect_done,
    serve,
    take_turns,
    watched,
)
from lora_np.experiments.serving.plan import SMALL, BenchSettings
from lora_np.experiments.serving.shelf import Shelf
from lora_np.models import Llama, LlamaConfig
from lora_np.pretrained import load_llm
from lora_np.serve import Engine
from lora_np.serve.engine import READ, whole_rooms
from lora_np.serve.keys import key_layout

Results = dict[str, Any]
Row = dict[str, Any]
Listen = Callable[[str], None]
OURS, BASE, ALONE, PEFT = "ours", "base", "alone", "peft"


def serving_study(
    settings: BenchSettings,
    listen: Listen = lambda what: None,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Measure what the settings ask for.

    Parameters
    ----------
    settings : BenchSettings
    listen : callable, optional
        ``listen(what)`` is called before each row.
    keep : callable, optional
        ``keep(results)`` is called after each measurement.

    Returns
    -------
    dict
        Plain values: the settings, and under ``measured`` the rows of each measurement.
    """
    if settings.peft:
        from lora_np.experiments.serving.peft_side import expect_peft

        expect_peft()
    model = model_of(settings)
    results: Results = {"settings": asdict(settings), "parameters": account(model).base}
    results |= {"versions": {"numpy": np.__version__}, "complete": False, "measured": {}}
    with one_blas_thread(), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(settings, model, Path(folder), listen)
        results["adapter_numbers"] = bench.shelf.numbers
        for name in settings.measured():
            results["measured"][name] = list(MEASURE[name](bench))
            results["complete"] = len(results["measured"]) == len(settings.measured())
            keep(results)
    return results


def model_of(settings: BenchSettings) -> Any:
    """Return the base."""
    if settings.model == SMALL:
        return Llama(LlamaConfig(**settings.llama()), np.random.default_rng(0))
    return load_llm(settings.model).model


class Bench:
    """What all measurements share.

    Parameters
    ----------
    settings : BenchSettings
    model : LanguageModel
    folder : Path
        For the adapters; an empty one.
    listen : callable
    """

    def __init__(self, settings: BenchSettings, model: Any, folder: Path, listen: Listen) -> None:
        self.settings, self.model, self.listen = settings, model, listen
        self.shelf = Shelf(model, folder, settings.r, settings.target_modules)
        self.rng = np.random.default_rng(1)

    def prompts(self, rows: int, T: int) -> np.ndarray:
        """Return random prompts (rows, T)."""
        return self.rng.integers(0, self.model.vocab_size, (rows, T))

    def engine(self, adapters: int, room: int, rows: int, tokens: int) -> Engine:
        """Return an engine for so many adapters, of which the pool has room for `room`.

        The pool also has room for the keys of `rows` requests of so many tokens.
        """
        of_adapter = -(-self.shelf.numbers // key_layout(self.model).page)
        pages = room * of_adapter + rows * whole_rooms(tokens)
        return Engine(self.model, self.shelf.folders(adapters), pages=pages, batch=rows)

    def base(self, prompts: np.ndarray, n: int) -> None:
        """Let the base alone write n tokens after each prompt, by our fastest generation."""
        self.model.generate(prompts, n, temperature=0.0)

    def turns(self, sides: dict[str, Callable[[], object]]) -> dict[str, Any]:
        """Return the seconds of sides that take turns."""
        return take_turns(sides, self.settings.rounds, self.settings.seconds)


def row_of(case: str, pool: int, batch: InBatch, tokens: int, seconds: Any, **more: Any) -> Row:
    """Return a row of the results: `pool` adapters to choose from, `tokens` written by a side."""
    counted = batch._asdict()
    return {"case": case, "pool": pool, **counted, "tokens": tokens, "seconds": seconds, **more}


def asked_for(names: list[str], chosen: Any, prompts: np.ndarray) -> list[Asked]:
    """Return a request for each prompt, with the adapters of these numbers."""
    return [Asked(names[i], prompt) for i, prompt in zip(np.asarray(chosen).tolist(), prompts)]


def warm(engine: Engine) -> None:
    """Let the engine read every adapter."""
    serve(engine, [Asked(name, [0]) for name in engine.names], 1)


def pool_rows(bench: Bench) -> Iterator[Row]:
    """Yield a row for each size of a warm pool; each row of a batch draws its adapter."""
    s = bench.settings
    prompts = bench.prompts(s.batch, s.prompt)
    for size in s.pools:
        bench.listen(f"pool of {size:,}")
        engine = bench.engine(size, size, s.batch, s.prompt + s.new)
        warm(engine)

        def drawn(engine: Engine = engine, size: int = size) -> list[Asked]:
            return asked_for(engine.names, bench.rng.integers(0, size, s.batch), prompts)

        def ours(engine: Engine = engine, drawn: Any = drawn) -> None:
            serve(engine, drawn(), s.new)

        _, batch = watched(engine, drawn(), s.new)
        seconds = bench.turns({OURS: ours, BASE: partial(bench.base, prompts, s.new)})
        yield row_of(f"pool of {size:,}", size, batch, s.batch * s.new, seconds)


def distinct_rows(bench: Bench) -> Iterator[Row]:
    """Yield a row for each number of distinct adapters in the batch, with all sides."""
    s = bench.settings
    prompts = bench.prompts(s.batch, s.prompt)
    folders = bench.shelf.folders(s.batch)
    models = [load_adapter(bench.model, folder) for folder in folders]
    peft: Any = None
    if s.peft:
        from lora_np.experiments.serving.peft_side import PeftSide

        peft = PeftSide(bench.model, folders)
    for count in s.counts():
        bench.listen(f"{count} distinct")
        chosen = np.arange(s.batch) % count
        engine = bench.engine(s.batch, s.batch, s.batch, s.prompt + s.new)
        asked = asked_for(engine.names, chosen, prompts)

        def alone(chosen: np.ndarray = chosen, count: int = count) -> np.ndarray:
            written = np.empty((s.batch, s.new), np.int64)
            for model, i in zip(models, range(count)):
                texts = model.generate(prompts[chosen == i], s.new, temperature=0.0)
                written[chosen == i] = texts[:, s.prompt :]
            return written

        requests, batch = watched(engine, asked, s.new)
        written = np.array([request.tokens for request in requests])
        sides: dict[str, Any] = {
            OURS: partial(serve, engine, asked, s.new),
            BASE: partial(bench.base, prompts, s.new),
            ALONE: alone,
        }
        if peft is not None:
            sides[PEFT] = partial(peft.generate, chosen, prompts, s.new)
        others = {side: sides[side]() for side in sides if side not in (OURS, BASE)}
        equal = {side: int((texts == written).all(axis=1).sum()) for side, texts in others.items()}
        seconds = bench.turns(sides)
        case = f"{count} distinct"
        more = {"equal": equal, "asked": s.batch}
        yield row_of(case, s.batch, batch, s.batch * s.new, seconds, **more)


def disk_rows(bench: Bench) -> Iterator[Row]:
    """Yield the row of many adapters on disk, of which the pool holds a few."""
    s = bench.settings
    bench.listen(f"{s.on_disk:,} adapters on disk")
    engine = bench.engine(s.on_disk, s.cached, s.batch, s.prompt + s.new)
    batches = -(-s.requests // s.batch)
    prompts = bench.prompts(batches * s.batch, s.prompt)
    chances = 1.0 / np.arange(1, s.on_disk + 1)  # Zipf(1)
    chances /= chances.sum()

    def drawn() -> list[Asked]:
        chosen = bench.rng.choice(s.on_disk, len(prompts), p=chances)
        return asked_for(engine.names, chosen, prompts)

    def base() -> None:
        for own in prompts.reshape(batches, s.batch, -1):
            bench.base(own, s.new)

    _, batch = watched(engine, drawn(), s.new)  # fills the pool
    rounds, reads = s.rounds + 1, engine.adapters.reads  # one more, which take_turns leaves out
    names = iter([drawn() for _ in range(rounds)])
    seconds = take_turns({OURS: lambda: serve(engine, next(names), s.new), BASE: base}, s.rounds)
    reads = (engine.adapters.reads - reads) / (rounds * len(prompts))
    case = f"{s.on_disk:,} on disk, Zipf(1), room for {s.cached}"
    tokens = len(prompts) * s.new
    yield row_of(case, s.on_disk, batch, tokens, seconds, reads=reads, requests=len(prompts))


def wide_rows(bench: Bench) -> Iterator[Row]:
    """Yield the row of a batch with about as many adapters as rows."""
    s = bench.settings
    bench.listen(f"{s.wide_adapters:,} distinct in {s.wide_rows:,} rows")
    prompts = bench.prompts(s.wide_rows, s.wide_prompt)
    tokens = s.wide_prompt + s.wide_new
    engine = bench.engine(s.wide_adapters, s.wide_adapters, s.wide_rows, tokens)
    asked = asked_for(engine.names, np.arange(s.wide_rows) % s.wide_adapters, prompts)
    _, batch = watched(engine, asked, s.wide_new)
    sides = {
        OURS: partial(serve, engine, asked, s.wide_new),
        BASE: partial(bench.base, prompts, s.wide_new),
    }
    case = f"{s.wide_rows:,} rows"
    seconds = bench.turns(sides)
    yield row_of(case, s.wide_adapters, batch, s.wide_rows * s.wide_new, seconds)


def real_rows(bench: Bench) -> Iterator[Row]:
    """Yield a row for each length of prompts: whole answers."""
    s, rows = bench.settings, bench.settings.real_adapters
    for context in s.contexts:
        bench.listen(f"answers to prompts of {context:,} tokens")
        prompts = bench.prompts(rows, context)
        engine = bench.engine(rows, rows, rows, context + s.new)
        asked = asked_for(engine.names, np.arange(rows), prompts)
        _, batch = watched(engine, asked, s.new)
        sides = {
            OURS: partial(serve, engine, asked, s.new),
            BASE: partial(bench.base, prompts, s.new),
        }
        case = f"prompts of {context:,} tokens, answers"
        yield row_of(case, rows, batch, rows * s.new, take_turns(sides, s.rounds))


def long_rows(bench: Bench) -> Iterator[Row]:
    """Yield a row for each length of contexts: steps that write a token to each request."""
    s, rows = bench.settings, bench.settings.real_adapters
    for context in s.contexts:
        bench.listen(f"writing after {context:,} tokens")
        prompts = bench.prompts(rows, context)
        reading = -(-rows * context // READ)  # steps, at most
        n = reading + 1 + (s.rounds + 1) * s.steps + 1
        engine = bench.engine(rows, rows, rows, context + n)
        requests = [
            engine.submit(one.adapter, one.prompt, n)
            for one in asked_for(engine.names, np.arange(rows), prompts)
        ]
        while not all(request.tokens or request.over for request in requests):
            engine.step()
        before = sum(len(request.tokens) for request in requests)
        logits, memory = bench.model.advance(prompts)
        state = {"tokens": logits.argmax(axis=1)[:, None], "memory": memory}

        def base(state: dict[str, Any] = state) -> None:
            for _ in range(s.steps):
                logits, state["memory"] = bench.model.advance(state["tokens"], state["memory"])
                state["tokens"] = logits.argmax(axis=1)[:, None]

        def ours(engine: Engine = engine) -> None:
            for _ in range(s.steps):
                engine.step()

        seconds = take_turns({OURS: ours, BASE: base}, s.rounds)
        written = sum(len(request.tokens) for request in requests) - before
        engine.run()
        expect_done(requests)
        if written != (s.rounds + 1) * s.steps * rows:
            raise ValueError("not every request wrote in every step")
        batch = InBatch(rows, rows, rows)
        case = f"contexts of {context:,} tokens, writing"
        yield row_of(case, rows, batch, rows * s.steps, seconds)


MEASURE: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "pool": pool_rows,
    "distinct": distinct_rows,
    "disk": disk_rows,
    "wide": wide_rows,
    "real": real_rows,
    "long": long_rows,
}
