"""An engine without a model: an answer repeats its prompt's tokens; and a server around it."""

import threading
import time
from itertools import cycle

from lora_np.serve.request import Counts, Request

CRASH = 99  # a prompt that begins with this token makes a step raise


class FakeEngine:
    """Has the engine's interface. `steps` is a semaphore: each step waits for a permit."""

    def __init__(self, names=("shops", "sql", "broken"), context=160, batch=4):
        self.names, self.longest, self.batch = list(names), context, batch
        self.waiting, self.running, self.submitted = [], [], []
        self.steps = None

    def submit(self, adapter, prompt, n, *, stop=(), on_token=None, **drawing):
        if len(prompt) + n > self.longest:
            raise ValueError(f"{len(prompt)} + {n} tokens, but the context has {self.longest}")
        if not prompt:
            raise ValueError("the prompt is empty")
        request = Request(adapter, prompt, n, stop, on_token=on_token)
        vars(request).update(drawing=drawing, script=cycle(prompt))
        self.waiting.append(request)
        self.submitted.append(request)
        return request

    def step(self):
        if not self.waiting and not self.running:
            return False
        if self.steps is not None:
            assert self.steps.acquire(timeout=20)
        while self.waiting and len(self.running) < self.batch:
            self.running.append(self.waiting.pop(0))
        for request in self.running:
            self._advance(request)
        self.running = [r for r in self.running if r.state == "running"]
        return True

    def _advance(self, request):
        request.state = "running"
        if request.prompt[0] == CRASH:
            raise ArithmeticError("the engine's fault")
        if request.adapter == "broken" and len(request.tokens) == request.n // 2:
            request.state, request.error = "failed", ValueError("a tensor\nis missing")
            return
        token, request.last = next(request.script), time.monotonic()
        request.first = request.first or request.last
        request.tokens.append(token)
        request.on_token(token)
        if token in request.stop or len(request.tokens) == request.n:
            request.state = "done"
            request.finish = "stop" if token in request.stop else "length"

    def cancel(self, request):
        request.state = "cancelled"
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)

    def load(self, folder):
        if (folder / "spoilt").exists():
            raise ValueError(f"{folder.name} is spoilt")
        self.names.append(folder.name)
        return folder.name

    def unload(self, name):
        self.names.remove(name)

    def counts(self):
        return Counts(len(self.waiting), len(self.running), 64, 60, 4, 2)


class Server:
    """A real server in a thread; `stop` is what SIGTERM does."""

    def __init__(self, engine, tokenizer, folder, **options):
        import asyncio

        from lora_np.serve.http import server as http
        from lora_np.serve.names import Names

        options = {"limits": http.Limits(patience=5), "aliases": (), "rng": None} | options
        self.engine, self.listener, self.said = engine, http._listening(0), []
        self.port = self.listener.getsockname()[1]
        names = Names("tiny", engine.names, options["aliases"], options["rng"])
        self.site = http._Site(engine, self.listener, options["limits"], self.said.append)
        run = self.site.run(tokenizer, names, folder)
        self.thread = threading.Thread(target=asyncio.run, args=[run], daemon=True)
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            self.site._on_signal(15)
        self.thread.join(20)
        self.listener.close()
        assert not self.thread.is_alive()
