"""Counters and quantiles, as Prometheus reads them."""

import math
import re

import pytest

from lora_np.serve.http.metrics import GAUGES, WINDOW, Metrics, Summary
from lora_np.serve.request import Counts

LINE = re.compile(r'lora_np_[a-z_]+(\{[a-z]+="[a-z0-9.]+"\})? ([0-9.e+-]+|NaN)')


def values(metrics, counts=None):
    text = metrics.text(counts)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert text.endswith("\n") and all(LINE.fullmatch(line) for line in lines)
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines)}


def test_quantiles_are_of_the_window_and_the_sum_is_of_all():
    summary = Summary()
    assert math.isnan(summary.quantile(0.5))
    for i in range(WINDOW + 500):
        summary.add(float(i))
    last = range(500, WINDOW + 500)
    assert summary.quantile(0.5) == last[499] and summary.quantile(0.99) == last[989]
    assert (summary.quantile(0), summary.quantile(1)) == (last[0], last[-1])
    assert (summary.count, summary.sum) == (WINDOW + 500, sum(range(WINDOW + 500)))


def test_requests_are_counted_by_outcome_and_times_by_token():
    metrics = Metrics()
    metrics.answered("stop", prompt=5, new=5, first=0.25, last=1.25)
    metrics.answered("length", prompt=3, new=1, first=0.5, last=0.5)
    metrics.answered("cancelled", prompt=2, new=0, first=None, last=None)
    metrics.refused()
    found = values(metrics)
    outcomes = {o: found[f'lora_np_requests_total{{outcome="{o}"}}'] for o in ("stop", "failed")}
    assert outcomes == {"stop": 1, "failed": 0}
    assert found['lora_np_requests_total{outcome="refused"}'] == 1
    assert (found["lora_np_prompt_tokens_total"], found["lora_np_new_tokens_total"]) == (10, 6)
    assert found["lora_np_time_to_first_token_seconds_count"] == 2
    assert found["lora_np_time_to_first_token_seconds_sum"] == 0.75
    assert found["lora_np_time_per_output_token_seconds_count"] == 1  # one token has no next
    assert found['lora_np_time_per_output_token_seconds{quantile="0.99"}'] == 0.25


@pytest.mark.parametrize("place, field", [*enumerate(Counts._fields)])
def test_every_count_of_the_engine_is_a_gauge(place, field):
    counts, (name, _) = Counts(*range(10, 16)), GAUGES[field]
    assert values(Metrics(), counts)[f"lora_np_{name}"] == 10 + place
    assert f"# TYPE lora_np_{name} gauge\nlora_np_{name} " in Metrics().text(counts)


def test_before_the_first_request_quantiles_are_not_numbers():
    assert math.isnan(values(Metrics())['lora_np_time_to_first_token_seconds{quantile="0.5"}'])
