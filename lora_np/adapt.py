"""LoRA on a model: inject by name, merge, unmerge, and the account of what it costs.

``inject(model, config, rng)`` leaves `model` as it was and returns an adapted one that shares its
frozen arrays. Several adapters over one base are several light objects; switching is picking
another one, and there is no mode to forget.

Nothing here knows GPT: it works on the named modules and Parameters that every Layer offers.

Source: Hu et al. (2021), arXiv:2106.09685, section 4; rsLoRA: Kalajdzievski (2023),
arXiv:2312.03732. Names and defaults follow PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from lora_np.backend import like
from lora_np.layers import Flops, Layer, Linear, LoRALinear, copy_model, rebuild
from lora_np.parameters import Parameter
from lora_np.patterns import Pattern, at_the_end
from lora_np.reading import brief, shown


@dataclass(frozen=True)
class LoraConfig:
    """Which modules to adapt, at which rank and scale.

    Parameters
    ----------
    r : int
        Rank.
    lora_alpha : float
        The change of a weight is ``lora_alpha / r * B A``.
    lora_dropout : float
        Probability of dropping an entry of the adapter's input.
    target_modules : sequence of str, or str
        Names ("q_proj", or longer ends of a path: "0.attn.q_proj"), or a string: "all-linear", or
        a regular expression that a module's whole path must match.
    layers_to_transform : int or sequence of int, optional
        Adapt only these blocks: the first number in a module's path. By default all.
    use_rslora : bool
        Scale by ``lora_alpha / sqrt(r)`` instead.
    rank_pattern, alpha_pattern : mapping of str to number, optional
        Another r or lora_alpha where the key, a name or regular expression, matches the end of a
        module's path; the first key that matches counts.

    Examples
    --------
    >>> from lora_np import LoraConfig
    >>> config = LoraConfig(r=4, lora_alpha=8, rank_pattern={"v_proj": 16})
    >>> config.rank_of("h.0.attn.q_proj"), config.scale_of("h.0.attn.q_proj")
    (4, 2.0)
    >>> config.rank_of("h.0.attn.v_proj"), config.scale_of("h.0.attn.v_proj")
    (16, 0.5)
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: Sequence[str] | str = ("q_proj", "v_proj")
    layers_to_transform: int | Sequence[int] | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for name, rank in {"r": self.r, **(self.rank_pattern or {})}.items():
            if not isinstance(rank, int | np.integer) or isinstance(rank, bool) or rank < 1:
                raise ValueError(
                    f"rank {brief(name)} = {shown(rank)}, expected a whole number from 1 to "
                    "min(in, out) of the matrices it adapts"
                )
        for alpha in (self.lora_alpha, *(self.alpha_pattern or {}).values()):
            if not isinstance(alpha, int | float | np.number) or not 0.0 < alpha < math.inf:
                raise ValueError(f"lora_alpha = {shown(alpha)}, expected a number above 0")
        p = self.lora_dropout
        if not isinstance(p, int | float | np.number) or not 0.0 <= p < 1.0:
            raise ValueError(f"lora_dropout = {shown(p)}, expected 0 <= p < 1")
        if not self.target_modules:
            raise ValueError("target_modules is empty: name at least one, or 'all-linear'")
        for key in {**(self.rank_pattern or {}), **(self.alpha_pattern or {})}:
            at_the_end(key)  # raises PatternError, a ValueError, if it is no regular expression

    def rank_of(self, path: str) -> int:
        """Return the rank for the module at `path`."""
        return int(_lookup(self.rank_pattern, path, self.r))

    def scale_of(self, path: str) -> float:
        """Return the scale for the module at `path`."""
        r, alpha = self.rank_of(path), float(_lookup(self.alpha_pattern, path, self.lora_alpha))
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r


def _lookup(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of `path`, from a dot on."""
    for key, value in (pattern or {}).items():
        if at_the_end(key).match(path):
            return value
    return default


def inject(model: Any, config: LoraConfig, rng: np.random.Generator) -> Any:
    """Return `model` with adapters; `model` itself stays as it was and lends its arrays.

    A is drawn kaiming-uniform with a = sqrt(5), i.e. from U(-1/sqrt(in), 1/sqrt(in)); B is zero, so
    the adapted model starts exactly where the base is. Only A and B are trainable.

    Parameters
    ----------
    model : Layer
        E.g. a GPT.
    config : LoraConfig
    rng : numpy.random.Generator
        Draws the As, in the order of the modules' paths.

    Returns
    -------
    Layer
        Of the model's type, its frozen Parameters read-only views of the model's arrays.

    Raises
    ------
    ValueError
        If a target matches nothing, or a rank exceeds min(in, out) of its matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import GPT, GPTConfig, LoraConfig, inject
    >>> rng, tokens = np.random.default_rng(0), np.array([[1, 2, 3]])
    >>> base = GPT(GPTConfig(vocab_size=9, block_size=4, n_layer=1, n_head=2, d_model=8), rng)
    >>> adapted = inject(base, LoraConfig(r=2), rng)
    >>> np.array_equal(adapted.forward(tokens)[0], base.forward(tokens)[0])  # as B is zero
    True
    >>> [name for name, p in adapted.parameters().items() if p.trainable]
    ['h.0.attn.q_proj.A', 'h.0.attn.q_proj.B', 'h.0.attn.v_proj.A', 'h.0.attn.v_proj.B']
    """
    paths = target_paths(model, config)

    def adapt(path: str, layer: Layer) -> Layer | None:
        if path not in paths or not isinstance(layer, Linear):
            return None
        return _adapted(path, layer, config, rng)

    return rebuild(rebuild(model, Parameter.share), lambda p: p, adapt)


def _adapted(path: str, linear: Linear, config: LoraConfig, rng: np.random.Generator) -> LoRALinear:
    """Wrap one linear layer."""
    W0 = linear.W.value
    (d_out, d_in), r = W0.shape, config.rank_of(path)
    if r > min(d_in, d_out):
        raise ValueError(
            f"rank {r} for {path or 'the layer'} is above the limit {min(d_in, d_out)}: "
            f"its weight is {d_out} x {d_in}"
        )
    bound = 1.0 / math.sqrt(d_in)  # kaiming: sqrt(2 / (1 + a^2)) sqrt(3 / in), with a^2 = 5
    A = rng.uniform(-bound, bound, (r, d_in)).astype(W0.dtype)
    B = np.zeros((d_out, r), W0.dtype)
    scale = config.scale_of(path)
    return LoRALinear(
        linear, Parameter(like(A, W0)), Parameter(like(B, W0)), scale, config.lora_dropout
    )


def target_paths(model: Layer, config: LoraConfig) -> list[str]:
    """Return the paths of the linear layers that the configuration targets, in order.

    Raises
    ------
    ValueError
        If a target matches no linear layer; the message suggests the nearest names.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import MLP, LoraConfig
    >>> from lora_np.adapt import target_paths
    >>> target_paths(MLP(4, 16, np.random.default_rng(0)), LoraConfig(target_modules=["up_proj"]))
    ['up_proj']
    """
    if adapters(model):
        raise ValueError("the model is adapted already: inject into its base, or merge() it first")
    modules = {"": model, **model.modules()}
    linear = [path for path, layer in modules.items() if isinstance(layer, Linear)]
    if not linear:
        raise ValueError("the model has no linear layer to adapt")
    chosen = _in_blocks(_named(linear, config.target_modules), config.layers_to_transform)
    for key in {**(config.rank_pattern or {}), **(config.alpha_pattern or {})}:
        if all(_lookup({key: True}, path, None) is None for path in chosen):
            raise _no_match(key, chosen, "pattern")
    return chosen


def _in_blocks(chosen: list[str], blocks: int | Sequence[int] | None) -> list[str]:
    """Return the paths that lie in these blocks."""
    if blocks is None:
        return chosen
    blocks = [int(b) for b in np.atleast_1d(blocks)]
    kept = [path for path in chosen if _block_of(path) in blocks]
    missing = sorted(set(blocks) - {_block_of(path) for path in kept})
    if missing or not kept:
        have = sorted({b for b in map(_block_of, chosen) if b is not None})
        raise ValueError(f"layers_to_transform names blocks {missing}; targets are in {have}")
    return kept


def _named(linear: list[str], targets: Sequence[str] | str) -> list[str]:
    """Return the paths in `linear` that match."""
    if targets == "all-linear":
        return linear
    if isinstance(targets, str):
        pattern = Pattern(targets)
        chosen = [path for path in linear if pattern.fullmatch(path)]
        if not chosen and any(ends_with(path, targets) for path in linear):
            raise ValueError(
                f"target_modules {targets!r} is a string, so a regular expression for a whole "
                f"path: pass [{targets!r}] to name modules"
            )
        if not chosen:
            raise _no_match(targets, linear)
        return chosen
    for name in targets:
        if not any(ends_with(path, name) for path in linear):
            raise _no_match(name, linear)
    return [path for path in linear if any(ends_with(path, name) for name in targets)]


def ends_with(path: str, name: str) -> bool:
    """Whether `name` is the path or an end of it, from a dot on."""
    return path == name or path.endswith(f".{name}")


def _no_match(target: str, linear: list[str], what: str = "target module") -> ValueError:
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))
    near = get_close_matches(target, [*names, *linear], n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names)}"
    return ValueError(f"{what} {target!r} matches no linear layer: {hint}")


def _block_of(path: str) -> int | None:
    number = next((part for part in path.split(".") if part.isdigit()), None)
    return None if number is None else int(number)


def adapters(model: Layer) -> dict[str, LoRALinear]:
    """Return a model's LoRA layers by path, in order."""
    modules = {"": model, **model.modules()}
    return {path: layer for path, layer in modules.items() if isinstance(layer, LoRALinear)}


def merge(adapted: Any) -> Any:
    """Return a new plain model with W = W0 + scale B A: no adapters, no extra cost, own memory.

    All its Parameters are trainable. W is computed and rounded in its dtype, so the merged model's
    logits equal the adapted one's to rounding.

    Parameters
    ----------
    adapted : Layer
        From :func:`inject`, or :func:`lora_np.load_adapter`.

    Raises
    ------
    ValueError
        If there is no adapter.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoraConfig, inject, merge
    >>> rng = np.random.default_rng(0)
    >>> adapted = inject(Linear(6, 5, rng), LoraConfig(r=2, target_modules="all-linear"), rng)
    >>> adapted.B.value[...] = 1.0  # as if it had been trained
    >>> plain, x = merge(adapted), np.ones((3, 6), np.float32)
    >>> np.allclose(plain.forward(x)[0], adapted.forward(x)[0], atol=1e-5)
    True
    >>> type(plain).__name__, len(plain.parameters())
    ('Linear', 2)
    """
    check_adapted(adapted)

    def plain(path: str, layer: Layer) -> Layer | None:
        return _with_weight(layer, layer.delta()) if isinstance(layer, LoRALinear) else None

    merged = rebuild(copy_model(adapted), lambda p: p, plain)
    for parameter in merged.parameters().values():
        parameter.trainable = True
    return merged


def _with_weight(lora: LoRALinear, change: Any) -> Linear:
    """Return a plain linear layer with W0 + change and the same bias."""
    return Linear.over(Parameter(lora.W0.value + change), lora.b)


def unmerge(merged: Any, adapted: Any) -> Any:
    """Return a new plain model with scale B A taken out of `merged` again: W0, to rounding.

    Merging rounded W0 + scale B A to the dtype, and subtracting rounds once more. So an entry of
    W0 comes back within one unit in the last place of the larger of ``|W0|`` and ``|W|``, a
    relative 1.2e-7 in float32. The larger the change, the more entries are not bit-equal: 2 % where
    it is a hundredth of W0, 11 % at a tenth, a third where the two are alike. The base that
    `adapted` borrows from has the exact W0: keep it where bits matter.

    Parameters
    ----------
    merged : Layer
        What ``merge(adapted)`` gave.
    adapted : Layer
        The model that was merged, with the same A and B.

    Raises
    ------
    ValueError
        If the two do not belong together.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoraConfig, inject, merge, unmerge
    >>> rng = np.random.default_rng(0)
    >>> base = Linear(6, 5, rng)
    >>> adapted = inject(base, LoraConfig(r=2, target_modules="all-linear"), rng)
    >>> adapted.B.value[...] = 1.0
    >>> again = unmerge(merge(adapted), adapted)
    >>> np.allclose(again.W.value, base.W.value, atol=1e-5)
    True
    """
    check_adapted(adapted)
    changes = {path: layer.delta() for path, layer in adapters(adapted).items()}
    modules = {"": merged, **merged.modules()}
    for path, change in changes.items():
        layer = modules.get(path)
        if not isinstance(layer, Linear) or layer.W.shape != change.shape:
            raise ValueError(f"the merged model has no linear {change.shape} layer at {path!r}")
    plain = copy_model(merged)
    for path, change in changes.items():
        W = {"": plain, **plain.modules()}[path].W
        W.value = W.value - change
    return plain


def check_adapted(model: Layer) -> None:
    """Raise ValueError if the model has no adapter."""
    if not adapters(model):
        raise ValueError("the model has no adapters: inject() gives it some")


# ------------------------------------------------------------------------------------ accounts


@dataclass(frozen=True)
class Account:
    """What a model costs to train; prints as a table.

    Attributes
    ----------
    base, adapter : int
        Parameters of the model itself, and those that adapters add.
    trainable : int
    T : int
        Tokens in a sequence, on which attention's share depends.
    flops : Flops
        Of the matrix products, forward and backward, for one token.
    weight_bytes, gradient_bytes, optimizer_bytes : int
    """

    base: int
    adapter: int
    trainable: int
    T: int
    flops: Flops
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    @property
    def total(self) -> int:
        """All parameters, adapters included."""
        return self.base + self.adapter

    @property
    def share(self) -> float:
        """Trainable parameters over those of the base."""
        return self.trainable / self.base

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.total:,}"),
            ("of which adapters", f"{self.adapter:,}"),
            ("trainable", f"{self.trainable:,}"),
            ("trainable / base", f"{100 * self.share:.2f} %"),
            (f"FLOPs a token forward, T = {self.T}", f"{self.flops.forward:,}"),
            (f"FLOPs a token backward, T = {self.T}", f"{self.flops.backward:,}"),
            ("bytes of weights", f"{self.weight_bytes:,}"),
            ("bytes of gradients", f"{self.gradient_bytes:,}"),
            ("bytes of optimizer state", f"{self.optimizer_bytes:,}"),
        ]
        return "\n".join(f"{name:<34}{value:>18}" for name, value in rows)


def account(model: Layer, T: int | None = None, *, state_per_parameter: int = 2) -> Account:
    """Count parameters, FLOPs a token and bytes.

    Parameters
    ----------
    model : Layer
        Plain or adapted; what is frozen is not counted as trainable.
    T : int, optional
        Tokens in a sequence; by default the model's block_size, or 1 where it has none.
    state_per_parameter : int
        Numbers that the optimizer keeps for each trainable parameter: 2 for Adam and AdamW, 0 for
        SGD, 1 with momentum.

    Returns
    -------
    Account

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import Linear, LoraConfig, account, inject
    >>> rng = np.random.default_rng(0)
    >>> base = Linear(1000, 1000, rng, bias=False)
    >>> found = account(inject(base, LoraConfig(r=8, target_modules="all-linear"), rng))
    >>> found.base, found.trainable, f"{found.share:.1%}"  # r (in + out) = 8 x 2000
    (1000000, 16000, '1.6%')
    """
    if T is None:
        T = int(getattr(getattr(model, "config", None), "block_size", 1))
    if T < 1:
        raise ValueError(f"T = {T}, expected at least 1 token in a sequence")
    parameters = model.parameters().values()
    added = {p for layer in adapters(model).values() for p in layer.own().values()}
    adapter = sum(p.size for p in added)  # what several layers share counts once
    trainable = [p for p in parameters if p.trainable]
    gradient_bytes = sum(p.size * p.dtype.itemsize for p in trainable)
    return Account(
        base=sum(p.size for p in parameters) - adapter,
        adapter=adapter,
        trainable=sum(p.size for p in trainable),
        T=T,
        flops=model.flops(T, False),
        weight_bytes=sum(p.size * p.dtype.itemsize for p in parameters),
        gradient_bytes=gradient_bytes,
        optimizer_bytes=state_per_parameter * gradient_bytes,
    )


# model: matrices adapted as (count, out, in), r, parameters of the base
KNOWN_MODELS = {
    "one 4096 x 4096 matrix": ([(1, 4096, 4096)], 8, 4096 * 4096),
    "BERT-base, q k v o": ([(12 * 4, 768, 768)], 8, 109_482_240),
    "LLaMA-7B, q k v o": ([(32 * 4, 4096, 4096)], 8, 6_738_415_616),
    "GPT-3 175B, q v": ([(96 * 2, 12288, 12288)], 4, 174_604_259_328),
}


def known_models() -> str:
    """Return a table of what LoRA adds to models of public sizes, computed from their shapes.

    An adapter of rank r on an (out, in) matrix has r (in + out) parameters. The sizes come from
    Devlin et al. (2018), Touvron et al. (2023) and Brown et al. (2020).

    Examples
    --------
    >>> from lora_np.adapt import known_models
    >>> print(known_models())
    model, matrices adapted     r       adapter    / base   fp16 MB
    one 4096 x 4096 matrix      8        65,536   0.391 %       0.1
    ...
    """
    lines = [f"{'model, matrices adapted':<26}{'r':>3}{'adapter':>14}{'/ base':>10}{'fp16 MB':>10}"]
    for name, (matrices, r, base) in KNOWN_MODELS.items():
        adapter = sum(count * r * (d_out + d_in) for count, d_out, d_in in matrices)
        share, megabytes = 100 * adapter / base, 2 * adapter / 1e6
        lines.append(f"{name:<26}{r:>3}{adapter:>14,}{share:>8.3f} %{megabytes:>10.1f}")
    return "\n".join(lines)
