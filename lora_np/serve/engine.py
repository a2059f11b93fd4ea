"""The engine: requests for any of many adapters, over one base, in one batch.

Each step reads one batch: the newest token of every request that is writing, and the next tokens
of prompts that are still being read. A request joins as soon as there is room and leaves when it is
done (continuous batching); which requests share a batch changes nothing in what they get.

A request starts when its adapter and prompt + n pages for its keys, rounded up to whole rooms, fit
into the pool. The first in the queue goes first. If it does not fit, later ones that fit may
overtake it, but only ``OVERTAKEN`` of them: then all wait until it has its room.

Sources: continuous batching: Yu et al. (2022), "Orca", OSDI 22, section 3; many adapters: Sheng
et al. (2023), arXiv:2311.03285; Chen et al. (2023), arXiv:2310.18547.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lora_np.backend import to_host
from lora_np.methods import is_adapted
from lora_np.models.language import LanguageModel
from lora_np.models.sampling import check_drawing, sample_token
from lora_np.serve.adapters import Adapters, Loaded
from lora_np.serve.batch import Batch, Part
from lora_np.serve.keys import KeyRoom, key_layout
from lora_np.serve.pool import Pool
from lora_np.serve.request import Counts, Request
from lora_np.serve.routed import routed

READ = 256  # tokens of prompts read in a step: requests that write wait no longer than this takes
READ_ALONE = 2048  # the same if no request is writing
ROOM = 16  # pages: every room has a multiple, so that rooms of one size can share a product
OVERTAKEN = 32  # requests that may overtake one that does not fit yet
LOOKED_AT = 64  # requests that do not fit yet, after which no later one is looked at


def whole_rooms(tokens: int) -> int:
    """Return the pages of a request for so many tokens: the next multiple of ROOM."""
    return ROOM * -(-tokens // ROOM)


@dataclass(eq=False)
class _Running:
    """A request with its adapter and its room."""

    request: Request
    held: Loaded | None
    room: KeyRoom
    of_prompt: int = 0  # tokens of the prompt that were read, before its last piece

    @property
    def number(self) -> int:
        """The number of the adapter, -1 for the base alone."""
        return -1 if self.held is None else self.held.number

    @property
    def read(self) -> int:
        """The number of tokens whose keys are in the room.

        It follows from the answer: a step that an exception ends before it has appended the token
        has not happened, and the next one reads the same tokens again, into the same room.
        """
        new = len(self.request.tokens)
        return len(self.request.prompt) + new - 1 if new else self.of_prompt

    def next_tokens(self, most: int) -> Sequence[int]:
        """Return the next tokens to read: at most so many of the prompt, or the newest one."""
        if not self.request.tokens:
            return self.request.prompt[self.of_prompt : self.of_prompt + most]
        return self.request.tokens[-1:]


class Engine:
    """Continuous batching over one base with many adapters. It belongs to one thread.

    Parameters
    ----------
    model : LanguageModel
        A plain model; its weights may be quantised.
    folders : iterable of str or Path
        Of adapters, in PEFT's format: LoRA of linear layers, of any ranks.
    pages : int
        The pool's pages. A page holds the keys and values of one token in all layers, or as many
        numbers of adapters.
    batch : int
        The most requests that run together.

    Raises
    ------
    CheckpointError
        If two folders have one name.
    ValueError
        If the model has adapters, or remembers something else than keys.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np import Llama, LlamaConfig, LoraConfig, inject, save_adapter
    >>> from lora_np.serve import Engine
    >>> rng = np.random.default_rng(0)
    >>> base = Llama(LlamaConfig(9, 8, 1, 1, 1, d_model=4, d_hidden=6), rng)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_adapter(inject(base, LoraConfig(r=2), rng), f"{folder}/sql")
    ...     engine = Engine(base, [f"{folder}/sql"], pages=40, batch=4)
    ...     requests = [engine.submit(name, [1, 2, 3], 4) for name in ("sql", None)]
    ...     engine.run()
    >>> [(request.state, request.finish, len(request.tokens)) for request in requests]
    [('done', 'length', 4), ('done', 'length', 4)]
    """

    def __init__(
        self, model: LanguageModel, folders: Iterable[str | Path], *, pages: int, batch: int
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch = {batch} requests, expected at least 1")
        if is_adapted(model):
            raise ValueError("the model is adapted: serve its base, and the adapter as a folder")
        self.model, self.batch, self.layout = model, batch, key_layout(model)
        self.pool = Pool(pages, self.layout.page, self.layout.dtype)
        self.adapters = Adapters(model, self.pool, folders)
        self._waiting: deque[Request] = deque()
        self._running: list[_Running] = []
        self._routed: tuple[Any, Any, int] = (None, model, 0)  # a batch, its model, its steps

    # -------------------------------------------------------------------------- from outside

    @property
    def names(self) -> list[str]:
        """The adapters' names."""
        return self.adapters.names

    @property
    def longest(self) -> int:
        """The most tokens of a prompt and its answer: the context, or the pool if it is smaller."""
        return min(self.model.block_size, self.pool.pages)

    def load(self, folder: str | Path) -> str:
        """Add an adapter's folder and return its name; CheckpointError if the name is taken."""
        return self.adapters.add(folder)

    def unload(self, name: str) -> None:
        """Forget an adapter; requests that run with it go on, and those that wait will fail.

        An unknown name raises ValueError.
        """
        self.adapters.remove(name)

    def counts(self) -> Counts:
        """Return how many requests and pages there are, and how they are used."""
        pool, adapters = self.pool, self.adapters
        sizes = (pool.pages, pool.free, adapters.pages, adapters.loaded)
        return Counts(len(self._waiting), len(self._running), *sizes)

    def submit(
        self,
        adapter: str | None,
        prompt: Sequence[int],
        n: int,
        *,
        stop: Sequence[int] = (),
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        on_token: Callable[[int], object] | None = None,
    ) -> Request:
        """Put a request into the queue.

        Parameters
        ----------
        adapter : str, optional
            An adapter's name; None is the base alone.
        prompt : sequence of int
        n : int
            The most new tokens.
        stop : sequence of int
            Tokens that end the answer.
        temperature, top_k, top_p
            As in :meth:`~lora_np.models.language.LanguageModel.generate`; 0 takes the
            likeliest token.
        seed : int, optional
            Of the tokens drawn; by default an unpredictable one.
        on_token : callable, optional
            Called with each new token, in the thread of the engine; at the last one the request
            is over. It may submit and cancel requests. What it raises ends the step, and the next
            step goes on.

        Returns
        -------
        Request

        Raises
        ------
        ValueError
            If the request can never run: an unknown adapter, a prompt that is empty or has tokens
            outside the vocabulary, n < 1, or prompt + n above the context or the pool.
        """
        if adapter is not None:
            self.adapters.expect(adapter)
        check_drawing(temperature, top_k, top_p)
        tokens = self._checked(prompt, n)
        rng = np.random.default_rng(seed) if temperature > 0 else None
        stops = frozenset(int(token) for token in stop)
        request = Request(adapter, tokens, n, stops, temperature, top_k, top_p, rng, on_token)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request; its pages come back. A request that is over stays as it is."""
        if request.over:
            return
        for running in self._running:
            if running.request is request:
                return self._leave(running, "cancelled")
        self._waiting.remove(request)
        request.state = "cancelled"

    def run(self) -> None:
        """Work until no request is waiting or running."""
        while self.step():
            pass

    def step(self) -> bool:
        """Start what fits and read one batch; return whether there is more to do."""
        self._start()
        if self._running:
            self._read(self._chosen())
        return bool(self._running or self._waiting)

    # --------------------------------------------------------------------------- how it works

    def _checked(self, prompt: Sequence[int], n: int) -> tuple[int, ...]:
        """Return the tokens of a prompt that can be continued by n tokens."""
        tokens = np.asarray(prompt)
        if tokens.shape == (0,):
            raise ValueError("the prompt is empty, expected at least one token")
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"the prompt has shape {tokens.shape} and type {tokens.dtype}, expected (n,), all "
                "integers"
            )
        V = self.model.vocab_size
        if tokens.min() < 0 or tokens.max() >= V:
            raise ValueError(f"the prompt has tokens outside the vocabulary, 0 to {V - 1}")
        if not isinstance(n, int | np.integer) or n < 1:
            raise ValueError(f"n = {n} new tokens, expected a whole number, at least 1")
        if len(tokens) + n > self.longest:
            what = "context" if self.longest == self.model.block_size else "pool"
            raise ValueError(
                f"the prompt's {len(tokens)} tokens and n = {n} new ones are more than the "
                f"{what}'s {self.longest}"
            )
        return tuple(tokens.tolist())

    def _start(self) -> None:
        """Start waiting requests that fit, in their order."""
        passed: list[Request] = []  # those that do not fit
        for request in list(islice(self._waiting, LOOKED_AT + self.batch)):
            if len(self._running) >= self.batch or len(passed) >= LOOKED_AT:
                break
            if any(earlier.overtaken >= OVERTAKEN for earlier in passed):
                break
            try:
                running = self._with_room(request)
            except (ValueError, OSError) as error:  # a broken adapter ends its own request alone
                self._waiting.remove(request)
                request.state, request.error = "failed", error
                continue
            if running is None:
                passed.append(request)
                continue
            self._waiting.remove(request)
            request.state = "running"
            self._running.append(running)
            for earlier in passed:
                earlier.overtaken += 1

    def _with_room(self, request: Request) -> _Running | None:
        """Return a request with its adapter and its pages, or None if they are not free yet."""
        needed = len(request.prompt) + request.n
        pages = min(whole_rooms(needed), self.pool.pages)
        if self._running and not self.adapters.room_for(request.adapter, pages):
            return None
        held = None if request.adapter is None else self.adapters.hold(request.adapter)
        if held is None and request.adapter is not None:
            return None
        if held is not None and held.lease.pages + needed > self.pool.pages:
            self.adapters.release(held)
            raise ValueError(
                f"the adapter's {held.lease.pages} pages and the request's {needed} are more than "
                f"the pool's {self.pool.pages}"
            )
        if held is not None:  # a room need not be whole if that would never fit
            pages = min(pages, self.pool.pages - held.lease.pages)
        # The adapter is held first: making room for the keys cannot drop it.
        lease = self.pool.take(pages) if self.adapters.make_room(pages) else None
        if lease is not None:
            return _Running(request, held, KeyRoom(self.pool, lease, self.layout))
        if held is not None:
            self.adapters.release(held)
        return None

    def _chosen(self) -> list[tuple[_Running, Sequence[int]]]:
        """Return the requests of this step with the tokens to read, sorted by adapter."""
        writing = any(running.request.tokens for running in self._running)
        left, chosen = READ if writing else READ_ALONE, []
        for running in self._running:
            tokens = running.next_tokens(max(left, 0))
            if not running.request.tokens:
                left -= len(tokens)
            if tokens:
                chosen.append((running, tokens))
        return sorted(chosen, key=lambda pair: pair[0].number)

    def _read(self, chosen: list[tuple[_Running, Sequence[int]]]) -> None:
        """Read one batch, and give its new token to each request whose text was read to its end."""
        tokens = np.array([[token] for _, own in chosen for token in own], np.int64)  # (N, 1)
        batch = Batch(self.pool, [Part(r.room, r.read, len(own)) for r, own in chosen])
        model = self._model_for(chosen)
        with np.errstate(over="ignore", invalid="ignore"):  # _write checks each row
            y, _ = model.read(tokens, batch.memory(self.layout))  # (N, 1, d)
            writers, ends = [], []
            for (running, own), end in zip(chosen, batch.ends.tolist()):
                if running.read + len(own) < len(running.request.prompt):
                    running.of_prompt += len(own)
                else:
                    writers.append(running)
                    ends.append(end)
            if writers:
                logits = to_host(self.model.head().product(y[ends, 0]))  # (writers, V)
                self._write(writers, logits)

    def _model_for(self, chosen: list[tuple[_Running, Sequence[int]]]) -> Any:
        """Return the model of this batch: that of the last step if no row has changed.

        At the second step of a batch the model is made again, now as one that stays.
        """
        key = (tuple((r.number, len(own)) for r, own in chosen), self.pool.moves)
        last, model, steps = self._routed
        if key != last or steps == 1:
            adapters = {r.held.number: r.held for r, _ in chosen if r.held is not None}
            places = {number: i for i, number in enumerate(adapters)}
            ids = [places.get(r.number, -1) for r, own in chosen for _ in own]
            model = routed(self.model, list(adapters.values()), ids, stays=key == last)
        self._routed = (key, model, 1 if key != last else steps + 1)
        return model

    def _write(self, writers: list[_Running], logits: np.ndarray) -> None:
        """Append a token to each request, drawn from its row of the logits (writers, V)."""
        now, likeliest = time.monotonic(), logits.argmax(axis=1).tolist()
        finite = np.isfinite(logits.max(axis=1)).tolist()
        for running, token, row, is_finite in zip(writers, likeliest, logits, finite):
            request = running.request
            if request.over:  # another one's on_token has cancelled it
                continue
            if not is_finite:
                request.error = FloatingPointError("the model's logits are not finite")
                self._leave(running, "failed")
                continue
            if request.rng is not None:
                how = (request.temperature, request.top_k, request.rng, request.top_p)
                token = int(sample_token(row[None], *how)[0])
            request.tokens.append(token)
            request.first, request.last = request.first or now, now
            if token in request.stop:
                request.finish = "stop"
            elif len(request.tokens) == request.n:
                request.finish = "length"
            if request.finish is not None:
                self._leave(running, "done")
            if request.on_token is not None:  # last: if it raises, nothing is left half done
                request.on_token(token)

    def _leave(self, running: _Running, state: str) -> None:
        """End a running request and take its room back."""
        running.request.state = state
        self._running.remove(running)
        self.pool.give_back(running.room.lease)
        if running.held is not None:
            self.adapters.release(running.held)
