"""Many requests over HTTP at once, among them broken ones: what is answered, and what is left.

Run `python -m tests.serve.storm 10000` for a longer one.
"""

import gc
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from lora_np.serve import Engine, Request
from lora_np.serve.http.answer import Answer
from lora_np.serve.http.server import Limits
from tests.chat.test_shelf import write_adapter
from tests.chat.tiny import CONTEXT, llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer
from tests.serve.fake import Server
from tests.serve.test_http import asking, get, outcomes, post, send, wait_until

CLIENTS = 16
SOUND = [f"customer{i}" for i in range(12)]
BROKEN = ["spoilt", "empty", "gone", "foreign"]
EXPECTED = {  # what may happen to a request of each kind
    "whole": {200, 429},
    "stream": {200, 429},
    "stopped": {200, 429},
    "leaves": {None},  # nobody looks
    "breaks off": {None, 429},
    "broken": {500, 429},
    "unknown": {404, 429},
    "too long": {400, 429},
    "not JSON": {400},
    "wrong field": {400},
}


def write_adapters(root):
    """Write sound adapters and broken ones; return all folders."""
    base = llama()
    for seed, name in enumerate([*SOUND, "spoilt", "empty", "gone"]):
        write_adapter(root / name, base, seed)
    write_adapter(root / "foreign", llama(d_model=24))
    (root / "spoilt" / "adapter_model.safetensors").write_bytes(b"no tensors")
    for name in ("empty", "gone"):
        for file in (root / name).iterdir():
            file.unlink()
    (root / "gone").rmdir()
    return [root / name for name in (*SOUND, *BROKEN)]


def one(server, kind, rng):
    """Send a request of a kind; return the status, or None where the client did not wait for it."""
    name = BROKEN[rng.integers(4)] if kind == "broken" else SOUND[rng.integers(12)]
    n = int(rng.integers(1, 40))
    fields = {"model": name, "prompt": "how many shops?"[: rng.integers(1, 16)], "max_tokens": n}
    fields |= {"temperature": float(rng.integers(2)), "seed": int(rng.integers(99))}
    fields |= {
        "stream": {"stream": True},
        "stopped": {"stop": ["e", " "], "stream": bool(rng.integers(2))},
        "breaks off": {"stream": True, "max_tokens": 100},
        "leaves": {"max_tokens": 100},
        "unknown": {"model": "customer"},
        "too long": {"max_tokens": CONTEXT},
        "wrong field": {"n": 2},
    }.get(kind, {})
    if kind in ("leaves", "breaks off"):
        return leave(server, kind == "breaks off", fields)
    data = b"{" if kind == "not JSON" else json.dumps(fields).encode()
    status, headers, body = send(server, "POST", "/v1/completions", data)
    if status != 200:
        assert json.loads(body)["error"]["message"], body
    elif headers["content-type"].startswith("text/event-stream"):
        assert body.endswith(b"data: [DONE]\n\n"), body
    else:
        assert json.loads(body)["usage"]["completion_tokens"] <= n
    return status


def leave(server, later, fields):
    """Close the connection after the request or after the first piece of its answer."""
    with asking(server, **fields) as connection:
        if later:
            answer = connection.getresponse()
            if answer.status != 200:
                return answer.status
            answer.readline()
            answer.close()
    return None


def open_files():
    return len(os.listdir("/proc/self/fd"))


def alive():
    """Return how many requests and answers are in memory."""
    gc.collect()
    return sum(isinstance(thing, Request | Answer) for thing in gc.get_objects())


def storm(number, seed=0):
    """Send `number` requests from CLIENTS threads; return what was found."""
    found, lock = Counter(), threading.Lock()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(llama(), write_adapters(Path(folder)), pages=700, batch=8)
        engine.steps = None
        limits = Limits(queue=CLIENTS - 2, patience=20)
        server = Server(engine, tiny_tokenizer(), Path(folder), limits=limits)
        get(server, "/health")
        files, before = open_files(), alive()

        def client(i):
            rng = np.random.default_rng((seed, i))
            for _ in range(i, number, CLIENTS):
                kind = str(rng.choice(list(EXPECTED)))
                status = one(server, kind, rng)
                with lock:
                    found[kind, status] += 1

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, range(CLIENTS)))
        wait_until(lambda: server.site.service.live == 0)
        wait_until(lambda: len(server.site.server.server_state.connections) == 0)
        counts, ended = server.site.worker.counts, outcomes(server)
        wait_until(lambda: open_files() <= files)
        left = SimpleNamespace(files=open_files() - files, alive=alive() - before)
        pages = [(counts.waiting, counts.running, counts.pages - counts.free - counts.held)]
        for name in [*SOUND, *BROKEN]:
            assert post(server, "/v1/unload_lora_adapter", lora_name=name)[0] == 200
        counts = server.site.worker.counts
        pages.append((counts.held, counts.loaded, counts.pages - counts.free))
        server.stop()
    return SimpleNamespace(found=found, outcomes=ended, pages=pages, left=left)


if __name__ == "__main__":
    result = storm(int(sys.argv[1]))
    for (kind, status), times in sorted(result.found.items(), key=str):
        print(f"{kind:12} {status!s:5} {times:6}")
    print(result.outcomes, result.pages, result.left)
