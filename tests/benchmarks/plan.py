"""What is measured: sizes, goals, and how long to measure.

The goals are what a prototype of a few hundred lines reached; they are printed, never asserted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lora_np.models import GPTConfig

THREADS = 2  # on either side


@dataclass(frozen=True)
class Size:
    """A GPT and its batch.

    Parameters
    ----------
    name : str
    d_model, n_layer, n_head, vocab_size : int
    T, batch_size : int
        Tokens in a sequence, sequences in a batch.
    """

    name: str
    d_model: int
    n_layer: int
    n_head: int
    T: int
    batch_size: int
    vocab_size: int

    def gpt(self) -> GPTConfig:
        """Return the GPT's configuration."""
        return GPTConfig(self.vocab_size, self.T, self.n_layer, self.n_head, self.d_model)


TINY = Size("tiny", d_model=64, n_layer=2, n_head=4, T=64, batch_size=16, vocab_size=128)
SMALL = Size("small", d_model=128, n_layer=4, n_head=4, T=128, batch_size=16, vocab_size=512)
MEDIUM = Size("medium", d_model=256, n_layer=6, n_head=8, T=256, batch_size=8, vocab_size=1000)

RANK = 8
METHODS = {"full": None, "LoRA": RANK}  # the rank that each trains with
STRONGER = ("fused AdamW", "compiled, fused AdamW")  # PyTorch's settings beside eager

# by size: tiny, small, medium
STEP_GOALS = {
    "full": {"tiny": 0.74, "small": 0.81, "medium": 0.89},
    "LoRA": {"tiny": 0.55, "small": 0.65, "medium": 0.74},
}
SHARE_GOALS = {"full": {"tiny": 0.40, "small": 0.60, "medium": 0.75}, "LoRA": {}}
ADAPTER_RANK, ADAPTER_SMALLER = 16, 8  # of a file, and what it is resized to
SPECTRUM_RANK, SPECTRUM_GOALS = 16, {4096: 1000.0}  # by the side of the square product
LORA_GOALS = {"tiny": 0.80, "small": 0.75, "medium": 0.70}
UNMERGED_GOALS = {"tiny": 1.08, "small": 1.05, "medium": 1.05}
MERGED_GOAL, GENERATION_GOAL, FIRST_STEP_GOAL, SWEEP_GOAL = 1.0, 2.0, 15.0, 1.6


@dataclass(frozen=True)
class AdapterSize:
    """An adapter's file, with four square modules a layer.

    Parameters
    ----------
    layers, side : int
    resized : int
        How many of its modules take the dense route too, half a minute each at 4096.
    """

    layers: int = 32
    side: int = 4096
    resized: int = 2


@dataclass(frozen=True)
class LlamaPlan:
    """What is measured on a Llama.

    Parameters
    ----------
    model : str
        "smollm2", or a name of ``tests.benchmarks.llama_models.RANDOM``.
    cases : tuple of (int, int)
        Texts of a batch, and tokens of a text.
    memory : (int, int)
        The batch of the comparisons of memory.
    prompt, new : int
        Tokens of a prompt, and tokens to generate.
    prompts : tuple of int
        How many are continued at once.
    """

    model: str = "smollm2"
    cases: tuple[tuple[int, int], ...] = ((1, 64), (4, 64), (4, 128))
    memory: tuple[int, int] = (4, 64)
    prompt: int = 64
    new: int = 64
    prompts: tuple[int, ...] = (1, 4)


@dataclass(frozen=True)
class ManyPlan:
    """What is measured on a layer with an adapter for each row.

    Parameters
    ----------
    d : int
        The sides of W0.
    cases : tuple of (int, int)
        Rows, and distinct adapters among them.
    mixed : (int, int)
        The same, of the batch with unequal ranks.
    peft_rows : int
        Rows in the comparison with PEFT.
    peft : tuple of int
        Distinct adapters in it.
    """

    d: int = 576
    cases: tuple[tuple[int, int], ...] = ((8, 8), (64, 62), (1024, 100), (1024, 642))
    mixed: tuple[int, int] = (1024, 100)
    peft_rows: int = 128
    peft: tuple[int, ...] = (10, 100)


# by the number of threads, and texts x tokens
LLAMA_STEP_GOALS = {
    1: {"1 x 64": 0.88, "4 x 64": 0.85, "4 x 128": 0.85},
    2: {"1 x 64": 0.70, "4 x 64": 0.75, "4 x 128": 0.80},
}
LLAMA_MEMORY_GOALS = {"plain": 0.55, "recompute": 0.42}
LLAMA_QUANTISED_GOALS = {"seconds": 1.20, "MB": 450.0}
LLAMA_EDGE_GOAL = 350.0  # MB
LLAMA_GENERATION_GOALS = {1: 0.55, 4: 0.60}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Parameters
    ----------
    sizes : tuple of Size
    rounds : int
        In which all sides take turns.
    slice_seconds : float
        What a side gets in a round, at least three repetitions.
    compile : bool
        Whether to measure torch.compile; the first run on a machine compiles for some minutes.
    ledger : mapping of str to tuple of int
        Values of T, d, L and r.
    slow_rounds : int
        Rounds of what starts processes: first-step and sweep.
    sweep : tuple of str
        Options for ``lora-np sweep``.
    spectra : tuple of (int, int)
        Sides of square products of factors, and how often their dense SVD is taken.
    adapter : AdapterSize
    llama : LlamaPlan
    many : ManyPlan
    threads : int
    peers : bool
        Whether to compare with PyTorch, PEFT and transformers at all.
    """

    sizes: tuple[Size, ...] = (TINY, SMALL, MEDIUM)
    rounds: int = 5
    slice_seconds: float = 0.5
    compile: bool = True
    ledger: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "T": (32, 64, 128, 256),
            "d": (64, 128, 256, 512),
            "L": (1, 2, 4, 8),
            "r": (4, 16, 64),
        }
    )
    slow_rounds: int = 3
    sweep: tuple[str, ...] = ("--ranks", "1,4,16,32", "--steps", "60", "--windows", "128")
    spectra: tuple[tuple[int, int], ...] = ((1024, 3), (4096, 1))
    adapter: AdapterSize = AdapterSize()
    llama: LlamaPlan = LlamaPlan()
    many: ManyPlan = ManyPlan()
    threads: int = THREADS
    peers: bool = True


DEFAULT = Plan()
QUICK = Plan(
    sizes=(TINY, SMALL),
    rounds=3,
    slice_seconds=0.15,
    compile=False,
    ledger={"T": (32, 128), "d": (64, 256), "L": (1, 4), "r": (4, 64)},
    slow_rounds=1,
    sweep=("--ranks", "4", "--steps", "20", "--windows", "32"),
    spectra=((512, 1),),
    adapter=AdapterSize(layers=4, side=512),
    llama=LlamaPlan("tiny"),
)
