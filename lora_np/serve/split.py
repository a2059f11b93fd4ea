"""A model and its adapters split over several processes: S-LoRA's parallel strategy.

**The base** is split as in Megatron-LM. Two products follow one another, with something between
them that treats each column alone: a head of attention, or an activation::

    y = f(x W1^T) W2^T            x (N, h), W1 (m, h), W2 (h, m)

Member i of p holds some rows of W1 and the same columns of W2. Its part of f(x W1^T) needs nothing
from the others; its product with W2 is a term of the sum y. In attention, W1 stands for q_proj,
k_proj, v_proj, cut between the heads, and W2 for o_proj. In the MLP, W1 is up_proj (and gate_proj),
and W2 is down_proj. (The paper writes x W: it calls W1 column-partitioned and W2 row-partitioned.)

**The adapters** are split so that their results lie where those of the base do::

    W1    x A1^T        A1 (r, h) is cut by its rows      each member has r / p numbers of a token
          all-gather    of these                          each member has all r
          u B1^T        B1 (m, r) is cut as W1 is         the columns that the member needs
    W2    x A2^T        A2 (r, m) is cut as W2 is         a term of the sum, r numbers of a token
          all-reduce    of these                          each member has all r
          u B2^T        B2 (h, r) is cut by its rows      h / p columns of the change of y

The last products are not gathered: a member adds its columns of the change (and of the bias) to
its term of y, and the all-reduce of the base carries them. Nothing of size h is sent for adapters.

**The numbers sent** by all members together are counted (:mod:`lora_np.crew.exchange`). The paper
gives the mean of a member, a p-th part of these. For N tokens:

- base: an all-reduce of y, 2 (p - 1) N h, in attention and in the MLP: in a block 4 (p - 1) N h;
- adapters in attention: three all-gathers (q, k, v) and an all-reduce (o), each of N r numbers:
  (3 + 2) (p - 1) N r, which is the paper's 5 (p - 1) N r / p for a member;
- adapters in the MLP: (1 + 2) (p - 1) N r, or (2 + 2) (p - 1) N r with a gate.

For the adapters, N counts only the tokens of rows that have one. If ranks differ, N r is the sum
over these tokens of the rank of their own adapter. In a Llama with h = 576 whose rows all have
adapters of rank 8 on all linear layers, the adapters send (5 + 4) 8 / (4 * 576) = 1/32 of what the
base sends.

The norms, the residual stream and the embedding are computed by every member. The head is cut by
its rows; its logits go to the caller, which is not counted.

Source: Sheng et al. (2023), arXiv:2311.03285, "Tensor Parallelism"; Shoeybi et al. (2019),
arXiv:1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora_np.backend import ShapeError
from lora_np.crew import CrewError, Exchange, MemberLost, Processes, Threads, can_fork
from lora_np.crew.exchange import shares
from lora_np.layers import MLP, CausalSelfAttention, GatedMLP, Linear
from lora_np.methods import LoRALinear
from lora_np.methods.contract import adapters as adapters_of
from lora_np.methods.contract import is_adapted
from lora_np.methods.stacked import Factors
from lora_np.models.language import LanguageModel
from lora_np.ops.contract import expect_shape
from lora_np.ops.embedding import check_tokens
from lora_np.ops.many import Rows
from lora_np.parameters import Parameter
from lora_np.serve.split_layers import Cut, SplitBatch, for_batch, key_heads


class Sent(NamedTuple):
    """How many numbers the members have sent to one another."""

    base: int
    adapters: int


class SplitModel:
    """A language model and adapters over it, split over several processes.

    Parameters
    ----------
    model : LanguageModel
        A :class:`lora_np.GPT` or a :class:`lora_np.Llama` without adapters. Stored weights are
        decoded: each member keeps its part in the compute dtype.
    adapters : sequence of models
        Models with LoRA from :func:`lora_np.inject` or :func:`lora_np.load_adapter` over `model`.
        Ranks and targets may differ.
    members : int
        The number of processes, at most that of the heads of keys. Where this process may not fork
        others (:func:`lora_np.crew.processes.can_fork`) threads take their place.

    Raises
    ------
    ValueError
        If the model or an adapter cannot be split; the message gives the reason.

    Notes
    -----
    On several machines each member would hold its part alone. Here the parts of plain arrays are
    views of the model's, in memory that all processes share: what is shown is that the parts
    suffice, and what they cost in messages. The logits differ from those of the whole model in the
    last bits, because sums are formed in another order.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject
    >>> from lora_np.serve.split import SplitModel
    >>> rng, tokens = np.random.default_rng(0), np.array([[1, 2, 3], [4, 5, 6]])
    >>> model = GPT(GPTConfig(9, 4, n_layer=1, n_head=2, d_model=8), rng)
    >>> adapted = inject(model, LoraConfig(r=2, target_modules="all-linear"), rng)
    >>> with SplitModel(model, [adapted]) as split:
    ...     logits = split.forward(tokens, [-1, 0])  # the first row has no adapter
    ...     split.sent
    Sent(base=192, adapters=48)
    >>> bool(abs(logits - model.forward(tokens)[0]).max() < 1e-6)  # B is zero at the start
    True
    """

    def __init__(
        self, model: LanguageModel, adapters: Sequence[Any] = (), members: int = 2
    ) -> None:
        _check_model(model, members)
        held = []
        for i, adapted in enumerate(adapters):
            try:
                held.append(factors_by_path(adapted, model))
            except ValueError as error:
                raise ValueError(f"adapter {i} cannot be split: {error}") from None
        self.model, self.adapters, self.members = model, held, members
        head = model.head()
        self.parts = [  # of each member: its blocks, and its rows of the head
            (Cut(held, m, members).of(model), Parameter(head.take(own)))
            for m, own in enumerate(shares(model.vocab_size, members))
        ]
        self.crew: Any = None
        self.exchange: Any = None

    def __enter__(self) -> SplitModel:
        self.exchange = Exchange(self.members, self.model.head().dtype, Sent._fields)
        self.crew = (Processes if can_fork() else Threads)(self._work, self.members)
        self.crew.__enter__()
        if isinstance(self.crew, Processes):
            self.exchange.know([process.pid for process in self.crew.processes])
        return self

    def __exit__(self, *args: object) -> None:
        crew, self.crew = self.crew, None
        if crew is not None:
            crew.__exit__()

    @property
    def sent(self) -> Sent:
        """The numbers that members have sent to one another since the block was entered."""
        return Sent(**self.exchange.sent())

    def forward(self, tokens: Any, ids: Any) -> np.ndarray:
        """Return the logits (n, T, V) of the next token at every position.

        Parameters
        ----------
        tokens : integer array, shape (n, T)
        ids : integer array, shape (n,)
            The number of each row's adapter, -1 for the base alone.

        Raises
        ------
        CrewError
            If a member was killed or was stopped. The crew has ended then.
        """
        if self.crew is None:
            raise CrewError("a SplitModel works inside its with block; an error ends its crew")
        tokens, rows = np.asarray(tokens), Rows(ids, len(self.adapters))
        _check_tokens(tokens, self.model)
        expect_shape("ids", rows.ids, len(tokens))
        order = np.argsort(rows.ids, kind="stable")  # the rows of the base come first
        first = len(tokens) - len(rows.sorted)
        item = tokens[order], [(i, first + a, first + b) for i, a, b in rows.segments]
        try:
            parts = self.crew.map([item] * self.members)
            for part in parts:
                if isinstance(part, MemberLost):
                    raise part
        except BaseException:  # the members no longer stand at the same exchange
            self.__exit__()
            raise
        return np.concatenate(parts, axis=-1)[np.argsort(order)]  # (n, T, V)

    def _work(self, member: int, item: tuple[np.ndarray, Any]) -> Any:
        """Return a member's columns of the logits, or MemberLost if another one has failed."""
        tokens, segments = item
        tree, head = self.parts[member]
        try:
            batch = SplitBatch(self.exchange, member, segments)
            y, _, _ = for_batch(tree, batch).outputs(tokens)  # (n, T, d)
            return head.product(y)
        except MemberLost as lost:
            self.exchange.fail()
            return lost  # the error of the other one is raised
        except BaseException:
            self.exchange.fail()
            raise


def _check_model(model: Any, members: int) -> None:
    """Raise ValueError unless the model is a base whose heads can be shared by the members."""
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{type(model).__name__} is no language model: expected a GPT or a Llama")
    if is_adapted(model):
        raise ValueError("the model is adapted already: pass its base, and the model as an adapter")
    layers = model.modules().values()
    heads = [key_heads(layer) for layer in layers if isinstance(layer, CausalSelfAttention)]
    if not 1 <= members <= min(heads, default=0):
        raise ValueError(
            f"members is {members}, expected 1 to {min(heads, default=0)}, the number of heads of "
            "keys"
        )


def _check_tokens(tokens: np.ndarray, model: LanguageModel) -> None:
    """Raise TypeError, ShapeError or IndexError unless tokens (n, T) fit the model."""
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens has dtype {tokens.dtype}, expected integers")
    if tokens.ndim != 2 or not len(tokens) or not 1 <= tokens.shape[1] <= model.block_size:
        raise ShapeError(
            f"tokens has shape {tokens.shape}, expected (n, T) with n at least 1 and T from 1 to "
            f"block_size = {model.block_size}"
        )
    check_tokens(tokens, model.vocab_size)


def factors_by_path(adapted: Any, model: LanguageModel) -> Mapping[str, Factors]:
    """Return the factors of adapters over `model`, or raise ValueError if they are not LoRA's."""
    found, own = {}, set()
    for path, layer in adapters_of(adapted).items():
        if type(layer).delta is not LoRALinear.delta:
            raise ValueError(
                f"{type(layer).__name__} at {path!r} is not LoRA on a linear layer, which adds "
                "scale B A"
            )
        found[path] = layer.factors()
        own |= set(layer.own().values())
    places = _linear_paths(model)
    for path, (B, A, _) in found.items():
        if places.get(path) != (len(B), A.shape[1]):
            raise ValueError(f"the model's attention and MLPs have no such layer as {path!r}")
    held = {_address(p) for p in model.parameters().values()}
    for name, p in adapted.parameters().items():
        if p not in own and _address(p) not in held:
            raise ValueError(
                f"its {name} is not the base's: inject into this base, or load over it, and train "
                "only A and B"
            )
    return found


def _linear_paths(model: LanguageModel) -> dict[str, tuple[int, int]]:
    """Return the shapes of the linear layers that are split, by path."""
    blocks = (CausalSelfAttention, MLP, GatedMLP)
    return {
        f"{path}.{name}": (part.d_out, part.d_in)
        for path, layer in model.modules().items()
        if isinstance(layer, blocks)
        for name, part in vars(layer).items()
        if isinstance(part, Linear)
    }


def _address(p: Parameter) -> int:
    """Return where a Parameter's numbers lie, the same for all who share them."""
    return p.held.__array_interface__["data"][0]
