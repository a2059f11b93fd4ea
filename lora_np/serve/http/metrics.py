"""What the server counts, in the text format of Prometheus.

A summary's quantiles are of the last requests only (``WINDOW``): a bounded memory, and what is
slow now is seen now. Its sum and count are of all requests since the start.

Source: Prometheus, "Text-based exposition format", version 0.0.4.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable

from lora_np.serve.request import Counts

WINDOW = 1000  # requests whose times give the quantiles
QUANTILES = (0.5, 0.9, 0.99)
OUTCOMES = ("stop", "length", "cancelled", "failed", "refused")
GAUGES = {  # by the field of the engine's counts: the name, and what it says
    "waiting": ("requests_waiting", "Requests that wait for a place in the batch."),
    "running": ("requests_running", "Requests in the batch."),
    "pages": ("pages", "Pages of the pool."),
    "free": ("pages_free", "Pages that are free."),
    "held": ("pages_of_adapters", "Pages that hold adapters."),
    "loaded": ("adapters_loaded", "Adapters in memory."),
}


class Summary:
    """Quantiles of the last values; sum and count of all.

    Examples
    --------
    >>> from lora_np.serve.http.metrics import Summary
    >>> times = Summary()
    >>> for seconds in (0.1, 0.2, 0.3):
    ...     times.add(seconds)
    >>> times.quantile(0.5), times.count
    (0.2, 3)
    """

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)
        self.sum, self.count = 0.0, 0

    def add(self, value: float) -> None:
        """Count a value."""
        self._last.append(value)
        self.sum, self.count = self.sum + value, self.count + 1

    def quantile(self, q: float) -> float:
        """Return the smallest of the last values that a share `q` of them does not exceed.

        It is nan if there are no values.
        """
        ordered = sorted(self._last)
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


class Metrics:
    """Counters of a server; :meth:`text` writes them.

    Examples
    --------
    >>> from lora_np.serve.http.metrics import Metrics
    >>> metrics = Metrics()
    >>> metrics.answered("length", prompt=5, new=3, first=0.2, last=0.6)
    >>> [line for line in metrics.text().splitlines() if line.endswith('"0.9"} 0.2')]
    ['lora_np_time_to_first_token_seconds{quantile="0.9"} 0.2',
    'lora_np_time_per_output_token_seconds{quantile="0.9"} 0.2']
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.prompt_tokens = self.new_tokens = 0
        self.to_first, self.per_token = Summary(), Summary()

    def refused(self) -> None:
        """Count a request that was refused before it reached the engine."""
        self.requests["refused"] += 1

    def answered(
        self, outcome: str, prompt: int, new: int, first: float | None, last: float | None
    ) -> None:
        """Count a request that is over.

        Parameters
        ----------
        outcome : str
            "stop", "length", "cancelled" or "failed".
        prompt, new : int
            Numbers of tokens.
        first, last : float or None
            Seconds from the request's arrival to its first and last token.
        """
        self.requests[outcome] += 1
        self.prompt_tokens += prompt
        self.new_tokens += new
        if first is not None:
            self.to_first.add(first)
            if last is not None and new > 1:
                self.per_token.add((last - first) / (new - 1))

    def text(self, counts: Counts | None = None) -> str:
        """Return all counters, and the engine's counts, as Prometheus reads them."""
        lines = [
            *_family("requests_total", "counter", "Requests by how they ended."),
            *(f'lora_np_requests_total{{outcome="{o}"}} {self.requests[o]}' for o in OUTCOMES),
            *_single("prompt_tokens_total", "counter", "Tokens read.", self.prompt_tokens),
            *_single("new_tokens_total", "counter", "Tokens generated.", self.new_tokens),
        ]
        for field, value in counts._asdict().items() if counts is not None else ():
            lines += _single(GAUGES[field][0], "gauge", GAUGES[field][1], value)
        about = f"seconds; quantiles of the last {WINDOW} requests."
        for name, title, summary in (
            ("time_to_first_token_seconds", "From arrival to the first token", self.to_first),
            ("time_per_output_token_seconds", "Per token after the first", self.per_token),
        ):
            lines += _family(name, "summary", f"{title}, {about}")
            for q in QUANTILES:
                lines.append(f'lora_np_{name}{{quantile="{q}"}} {_number(summary.quantile(q))}')
            lines.append(f"lora_np_{name}_sum {_number(summary.sum)}")
            lines.append(f"lora_np_{name}_count {summary.count}")
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, help_text: str) -> Iterable[str]:
    return f"# HELP lora_np_{name} {help_text}", f"# TYPE lora_np_{name} {kind}"


def _single(name: str, kind: str, help_text: str, value: int) -> Iterable[str]:
    return *_family(name, kind, help_text), f"lora_np_{name} {value}"


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.6g}"
