"""Results of the study of serving with planted times."""

import json
from dataclasses import asdict

from lora_np.experiments.serving import MEASUREMENTS, BenchSettings


def planted(ours=1.1, model="small"):
    """The base alone takes 2 seconds in each round, and the engine `ours` times as long.

    One adapter at a time takes 7 times as long as the engine, PEFT 20 times.
    """
    base, mine = [2.0, 2.0, 2.0], [2 * ours] * 3
    sides = {
        "ours": mine,
        "base": base,
        "alone": [7 * x for x in mine],
        "peft": [20 * x for x in mine],
    }
    seconds = {name: {"cpu": cpu, "wall": [2 * x for x in cpu]} for name, cpu in sides.items()}

    def row(distinct, names=("ours", "base"), **more):
        batch = {"rows": 64, "distinct": distinct, "most": distinct}
        times = {name: seconds[name] for name in names}
        return {"case": "a case", "pool": 100, **batch, "tokens": 2000, "seconds": times, **more}

    equal = {"equal": {"alone": 64, "peft": 63}, "asked": 64}
    measured = {name: [row(50)] for name in MEASUREMENTS}
    measured["distinct"] = [row(n, sides, **equal) for n in (1, 8, 64)]
    measured["disk"] = [row(41, reads=0.25, requests=2048)]
    settings = json.loads(json.dumps(asdict(BenchSettings(model, only=MEASUREMENTS))))
    head = {"settings": settings, "parameters": 3_080_000, "adapter_numbers": 28_672}
    return {**head, "versions": {"numpy": "2"}, "complete": True, "measured": measured}
