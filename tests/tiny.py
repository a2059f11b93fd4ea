"""A sweep on text that takes a second: its sizes, texts and command; how results compare."""

import json
from itertools import chain

TINY = {
    "pretrain_steps": 3,
    "steps": 3,
    "batch_size": 4,
    "block_size": 16,
    "d_model": 16,
    "n_layer": 1,
    "n_head": 2,
    "windows": 2,
}


def sweep_command(settings):
    """Return the command that runs a text sweep of these settings, in one process."""
    options = {name: getattr(settings, name) for name in (*TINY, "seeds")}
    options |= {"pretrain_text": settings.pretrain_text, "adapt_text": settings.adapt_text}
    options |= {"ranks": ",".join(map(str, settings.ranks)), "jobs": 1}
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return ["sweep", *chain.from_iterable(pairs)]


def write_texts(folder):
    """Write a text to pretrain on and one to adapt to; return their names."""
    english, code = folder / "english.txt", folder / "code.txt"
    english.write_text("".join(f"line {i} says that {i * i} is a square\n" for i in range(60)))
    code.write_text("".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(60)))
    return str(english), str(code)


def comparable(results):
    """Results without seconds; the order in which trials ended is the executor's."""
    plain = json.loads(json.dumps(results))
    for trial in (*plain["trials"], *plain.get("runs", ())):
        trial.pop("seconds")
    plain["trials"].sort(key=lambda t: (t["method"], t["rank"] or 0, t["seed"], t["lr"]))
    return plain
