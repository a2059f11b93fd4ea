"""The settings of the study of serving: sizes, goals, and what can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SMALL = "small"  # the random Llama
OF_SMALL, OF_OTHERS = ("pool", "distinct", "disk", "wide"), ("real", "long")  # by default
MEASUREMENTS = (*OF_SMALL, *OF_OTHERS)
GOALS = {"pool": 1.20, "disk": 1.40, "wide": 1.6, "real": 1.10, "long": 1.10}  # time / base alone
ALONE_GOAL = 5.0  # one adapter at a time / engine, a distinct adapter in each row


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a run.

    Parameters
    ----------
    model : str
        "small" is a random Llama (:meth:`llama`); others as for
        :func:`lora_np.pretrained.find_model`.
    only : tuple of str
        Names of `MEASUREMENTS`; by default those that suit the model.
    batch, prompt, new : int
        Rows, tokens of a prompt, and tokens that are written after it.
    r : int
    target_modules : tuple of str or str
        The adapted layers, as for LoRA; by default PEFT's for a Llama.
    rounds : int
    seconds : float
        What each side gets in a round, at least one repetition.
    pools : tuple of int
        Sizes of the warm pool.
    on_disk, cached, requests : int
        Adapters on disk, those for which the pool has room, and requests of a round.
    wide_rows, wide_adapters, wide_prompt, wide_new : int
        The wide batch. Prompts are short, and the engine starts some requests at each step: most
        steps then have all rows in the batch.
    contexts : tuple of int
        Tokens of the prompts of ``real`` and ``long``.
    real_adapters, steps : int
        Rows of these two, each with an adapter of its own; steps of a round of ``long``.
    peft : bool
        Whether PEFT is measured too.

    Examples
    --------
    >>> from lora_np.experiments.serving import BenchSettings
    >>> BenchSettings().measured(), BenchSettings("smollm2").measured()
    (('pool', 'distinct', 'disk', 'wide'), ('real', 'long'))
    """

    model: str = SMALL
    only: tuple[str, ...] = ()
    batch: int = 64
    prompt: int = 16
    new: int = 32
    r: int = 8
    target_modules: tuple[str, ...] | str = ("q_proj", "v_proj")
    rounds: int = 7
    seconds: float = 0.5
    pools: tuple[int, ...] = (1, 10, 100, 1000)
    on_disk: int = 10_000
    cached: int = 256
    requests: int = 2048
    wide_rows: int = 1024
    wide_adapters: int = 1000
    wide_prompt: int = 1
    wide_new: int = 64
    contexts: tuple[int, ...] = (64, 512, 2048)
    real_adapters: int = 8
    steps: int = 8
    peft: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "prompt", "new", "r", "rounds", "requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if unknown := [name for name in self.only if name not in MEASUREMENTS]:
            names = ", ".join(MEASUREMENTS)
            raise ValueError(f"{unknown[0]!r} is not a measurement, expected some of {names}")
        if not self.contexts or min(self.contexts) < 1:
            raise ValueError(f"contexts = {self.contexts}, expected lengths of at least 1 token")
        if self.peft and "distinct" not in self.measured():
            raise ValueError("PEFT is measured with 'distinct', which is not in this run")

    def measured(self) -> tuple[str, ...]:
        """Return the names of what is measured, in their order."""
        chosen = self.only or (OF_SMALL if self.model == SMALL else OF_OTHERS)
        return tuple(name for name in MEASUREMENTS if name in chosen)

    def counts(self) -> tuple[int, ...]:
        """Return the numbers of distinct adapters in a batch: 1, 2, 4, ..., and the batch."""
        powers = (2**i for i in range(self.batch.bit_length()))
        return tuple(sorted({*powers, self.batch}))

    def llama(self) -> dict[str, Any]:
        """Return the sizes of the random Llama."""
        sizes = {"vocab_size": 512, "d_model": 256, "n_layer": 4, "n_head": 4, "n_kv_head": 2}
        return {**sizes, "d_hidden": 704, "block_size": 8192, "tied": False}


QUICK = BenchSettings(
    batch=4, prompt=3, new=4, rounds=2, seconds=0.0, pools=(1, 6), on_disk=24, cached=6,
    requests=16, wide_rows=12, wide_adapters=10, wide_new=4, contexts=(5, 9), real_adapters=3,
    steps=2,
)  # fmt: skip
