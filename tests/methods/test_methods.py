"""The contract of methods: a reader's own is used like LoRA; the checkers find what is wrong."""

import dataclasses
import pickle
from dataclasses import dataclass

import numpy as np
import pytest

import lora_np
from lora_np import (
    GPT,
    GPTConfig,
    Linear,
    LoraConfig,
    MethodConfig,
    account,
    check_layer,
    check_method,
    copy_model,
    evaluate,
    fit,
    inject,
    load_adapter,
    merge,
    save_adapter,
    unmerge,
)
from lora_np.checks import ContractError
from lora_np.experiments.rank_sweep import LinearSettings, SweepError, TextSettings, rank_sweep
from lora_np.experiments.rank_sweep.models import load_model
from lora_np.experiments.rank_sweep.report import table
from lora_np.files import CheckpointError, load_json
from lora_np.layers import MLP, Layer
from lora_np.methods import (
    METHODS,
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    DoraConfig,
    DyLoraConfig,
    FullConfig,
    HiraConfig,
    IA3Config,
    IntrinsicConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    OFTConfig,
    PrefixConfig,
    PromptConfig,
    ShiraConfig,
    TokensConfig,
    VeraConfig,
    WRGConfig,
    adapters,
    method_of,
)
from lora_np.methods.contract import METHOD_FIELD
from lora_np.methods.virtual import VirtualTokens
from lora_np.selfcheck import at_random
from tests.methods.own_gains import GainConfig, GainLinear

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, d_model=16)
TOKENS = np.arange(12).reshape(2, 6) % 13


@dataclass(frozen=True)
class Biases(MethodConfig):
    """BitFit: no layer of its own, the base's biases alone are trained."""

    name = "test_biases"

    def places(self, model):
        return []

    def trains(self, name):
        return name.endswith((".b", ".beta"))


def make_gpt(dtype=np.float32):
    """Weights so large that attention attends: a prompt is nothing to a model that does not."""
    model = GPT(CONFIG, np.random.default_rng(0), np.float64)
    at_random(model, np.random.default_rng(0), 0.2)
    return copy_model(model, dtype=dtype)


SLOW = ("adalora", "bitfit", "ia3", "ln_tuning", "vera")  # few numbers, or a start near zero


def trained(config, seed=1):
    """A model with the method's Parameters away from their start, after some steps."""
    base, rng = make_gpt(), np.random.default_rng(seed)
    adapted, lr = inject(base, config, rng), 0.5 if config.name in SLOW else 0.05
    fit(adapted, lambda: (TOKENS, (TOKENS + 1) % 13), steps=5, lr=lr, rng=rng)
    return base, adapted


# ------------------------------------------------------------ a method is used like LoRA is

METHODS_TRIED = [
    LoraConfig(r=2),
    LoraConfig(r=2, init_lora_weights="pissa"),
    LoraConfig(r=2, init_lora_weights="olora", lora_dropout=0.1),
    LoraConfig(r=2, init_lora_weights=False),
    LoraConfig(r=2, train_A=False, loraplus_lr_ratio=4.0),
    DoraConfig(r=2),
    DoraConfig(r=2, exact=True, lora_dropout=0.1),
    IA3Config(),
    IA3Config(target_modules="all-linear", feedforward_modules=()),
    BottleneckConfig(r=2),
    BottleneckConfig("pfeiffer", r=3, nonlinearity="gelu"),
    BottleneckConfig("parallel", r=3, nonlinearity="gelu", scale=4.0),
    BitFitConfig(),
    BitFitConfig(target_modules=("q_proj", "up_proj")),
    LNTuningConfig(),
    AdaLoraConfig(init_r=3, target_r=2, total_step=5, tinit=2, lora_alpha=32),
    AdaLoraConfig(init_r=2, target_r=2, total_step=5, orth_reg="norm", lora_dropout=0.1),
    VeraConfig(r=3),
    VeraConfig(r=40, d_initial=1.0, target_modules="all-linear"),
    DyLoraConfig(r=4),
    DyLoraConfig(4, 16, 0.1, "all-linear", update="frozen", scale="constant"),
    WRGConfig(r=4),
    WRGConfig(r=4, factor="gaussian"),
    TokensConfig((1, 4)),
    PromptConfig(2),
    PrefixConfig(2),
    IntrinsicConfig(40, seed=3),
    IntrinsicConfig(60, structured=True, seed=3),
    LoHaConfig(r=2),
    LoKrConfig(r=1, alpha=8, decompose_both=True, target_modules="all-linear"),
    OFTConfig(oft_block_size=4, target_modules=("q_proj", "k_proj", "v_proj", "up_proj")),
    OFTConfig(r=1, oft_block_size=0, use_cayley_neumann=False, block_share=True),
    HiraConfig(r=8, target_modules="all-linear"),
    MissConfig(r=3),
    MissConfig(r=4, init_weights="mini", mini_r=2),
    ShiraConfig(r=2),
    FullConfig(),
    FullConfig(("q_proj", "ln_2"), layers_to_transform=1),
    GainConfig(r=2),
    Biases(),
]
every_method = pytest.mark.parametrize("config", METHODS_TRIED, ids=lambda c: c.name)


@pytest.mark.parametrize("config", [LoraConfig(r=2), GainConfig(r=2), Biases()])
def test_the_contract_has_fifteen_claims(config):
    assert len(check_method(config)) == 15


@pytest.mark.slow  # half a second and more each: every entry of every Parameter is perturbed
@every_method
def test_a_method_keeps_the_whole_contract(config):
    assert len(check_method(config, needed_by(config))) == 15


def needed_by(config):
    """A language model for a method that needs one, else None: any model will do."""
    blocks = config.layers_to_transform
    tiny = GPTConfig(vocab_size=5, block_size=6, n_layer=(blocks or 0) + 1, n_head=2, d_model=4)
    of_tokens = isinstance(config, VirtualTokens) or config.target_modules == ("wte",)
    return GPT(tiny, np.random.default_rng(0)) if of_tokens or blocks is not None else None


@every_method
def test_a_method_is_trained_and_its_base_stays_as_it_was(config):
    before = {name: p.value.copy() for name, p in make_gpt().parameters().items()}
    base, adapted = trained(config)
    for name, p in base.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])
    start = evaluate(base, TOKENS, (TOKENS + 1) % 13)
    assert evaluate(adapted, TOKENS, (TOKENS + 1) % 13) < start - 0.01


@every_method
def test_a_method_is_merged_and_unmerged(config):
    base, adapted = trained(config)
    if not config.merges:
        with pytest.raises(ValueError, match=r"(do|does) not merge: "):
            merge(adapted)
        return
    plain = merge(adapted)
    assert adapters(plain) == {} and method_of(plain) is None
    np.testing.assert_allclose(plain.forward(TOKENS)[0], adapted.forward(TOKENS)[0], atol=1e-5)
    if not adapters(adapted):
        with pytest.raises(ValueError, match=r"trained \S+ and .* of the base itself"):
            unmerge(plain, adapted)
        return
    if isinstance(config, IntrinsicConfig):
        with pytest.raises(ValueError, match="changes the whole model: its old values are in"):
            unmerge(plain, adapted)
        return
    again = unmerge(plain, adapted).parameters()
    for name, p in base.parameters().items():
        np.testing.assert_allclose(again[name].value, p.value, atol=1e-6, err_msg=name)


@dataclass(frozen=True)
class Offset(MethodConfig):
    """One more bias on every linear layer, which merging adds to the base's."""

    def wrap(self, path, layer, rng):
        return OffsetLinear(layer, lora_np.Parameter(np.zeros(layer.d_out, layer.W.dtype)))


class OffsetLinear(lora_np.methods.Adapter):
    def __init__(self, base, offset):
        self.base, self.offset = base, offset

    def forward(self, x, rng=None):
        y, cache = self.base.forward(x, rng)
        return y + self.offset.value, cache

    def backward(self, dy, cache, grads, need_dx=True):
        grads.add(self.offset, dy.reshape(-1, dy.shape[-1]).sum(axis=0))
        return self.base.backward(dy, cache, grads, need_dx)

    def merged(self):
        b = 0.0 if self.base.b is None else self.base.b.value
        return Linear.over(self.base.W, lora_np.Parameter(b + self.offset.value))


@pytest.mark.parametrize("bias", [True, False])
def test_unmerge_takes_the_change_of_a_bias_out_too(bias):
    base = Linear(3, 2, np.random.default_rng(0), bias=bias)
    x = np.ones((1, 3), np.float32)
    if bias:
        base.b.value[...] = 3.0
    adapted = inject(base, Offset(), np.random.default_rng(1))
    adapted.offset.value[...] = 5.0
    again = unmerge(merge(adapted), adapted)
    np.testing.assert_allclose(again.forward(x)[0], base.forward(x)[0], atol=1e-6)


@every_method
def test_a_method_is_saved_and_loaded_bit_for_bit(config, tmp_path):
    base, adapted = trained(config)
    save_adapter(adapted, tmp_path / "adapter")
    again = load_adapter(base, tmp_path / "adapter")
    np.testing.assert_array_equal(again.forward(TOKENS)[0], adapted.forward(TOKENS)[0])
    assert type(method_of(again)) is type(config)
    save_adapter(again, tmp_path / "twice")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        one, two = (tmp_path / folder / name for folder in ("adapter", "twice"))
        assert one.read_bytes() == two.read_bytes()


@every_method
def test_an_adapted_model_keeps_its_configuration_in_every_copy(config):
    adapted = inject(make_gpt(), config, np.random.default_rng(1))
    given = {name: value for name, value in vars(config).items() if value is not None}
    assert vars(adapted.method).items() >= given.items()  # what is None may have been drawn
    copies = [copy_model(adapted), pickle.loads(pickle.dumps(adapted))]
    assert [method_of(twin) for twin in copies] == [adapted.method] * 2
    assert method_of(make_gpt()) is None


def test_the_account_of_a_method_without_layers_counts_what_it_trains():
    adapted = inject(make_gpt(), Biases(), np.random.default_rng(1))
    found, whole = account(adapted), account(make_gpt())
    count = sum(p.size for name, p in make_gpt().parameters().items() if name.endswith("b"))
    betas = sum(p.size for name, p in make_gpt().parameters().items() if name.endswith("beta"))
    assert (found.base, found.adapter, found.trainable) == (whole.base, 0, count + betas)


def test_a_layer_that_counts_no_products_of_its_own_costs_what_its_base_does():
    adapted = inject(make_gpt(), GainConfig(r=2), np.random.default_rng(1))
    assert "flops" not in vars(GainLinear)
    assert account(adapted).flops.forward == account(make_gpt()).flops.forward


def test_a_model_is_adapted_once():
    adapted = inject(make_gpt(), Biases(), np.random.default_rng(1))
    for config in METHODS_TRIED:
        with pytest.raises(ValueError, match="adapted already"):
            inject(adapted, config, np.random.default_rng(1))


def test_a_method_that_names_nothing_is_refused():
    config = dataclasses.make_dataclass("Nothing", [], bases=(Biases,), frozen=True)
    config.trains = lambda self, name: False
    with pytest.raises(ValueError, match="names no layer and no Parameter of the model"):
        inject(make_gpt(), config(), np.random.default_rng(1))


class Headed(Layer):
    """Its head is a layer, not the method of a language model that returns a Parameter."""

    def __init__(self, rng):
        self.body, self.head = Linear(3, 3, rng), Linear(3, 2, rng)

    def forward(self, x, rng=None):
        y, c_body = self.body.forward(x)
        y, c_head = self.head.forward(y)
        return y, (c_body, c_head)


def test_a_model_merges_whatever_it_calls_head_and_whatever_that_holds():
    rng, x = np.random.default_rng(0), np.ones((1, 3), np.float32)
    adapted = inject(Headed(rng), LoraConfig(r=1, target_modules=["head"]), rng)
    adapted.head.B.value[...] = 1.0
    np.testing.assert_allclose(merge(adapted).forward(x)[0], adapted.forward(x)[0], atol=1e-6)
    base = make_gpt()
    base.wte.W.value[0] = np.nan
    merge(inject(base, LoraConfig(r=1), rng))


# ----------------------------------------------------------------------------- files of methods


def test_a_file_names_its_method_and_an_unknown_one_says_what_to_do(tmp_path, monkeypatch):
    base, adapted = trained(GainConfig(r=2))
    save_adapter(adapted, tmp_path)
    assert load_json(tmp_path / "adapter_config.json")[METHOD_FIELD] == "own_gains"
    monkeypatch.delitem(METHODS, "own_gains")
    with pytest.raises(CheckpointError, match=r"method 'own_gains' is not defined: import"):
        load_adapter(base, tmp_path)


def test_a_file_of_another_model_is_refused_by_a_name(tmp_path):
    _, adapted = trained(GainConfig(r=2))
    save_adapter(adapted, tmp_path)
    other = GPT(dataclasses.replace(CONFIG, n_layer=1), np.random.default_rng(0))
    with pytest.raises(CheckpointError, match=r"the file holds 'h\.1\.attn"):
        load_adapter(other, tmp_path)
    wide = GPT(dataclasses.replace(CONFIG, d_model=18), np.random.default_rng(0))
    with pytest.raises(CheckpointError, match="has shape"):
        load_adapter(wide, tmp_path)


def test_the_table_of_methods_takes_a_cell_run_twice_and_refuses_a_name_of_another():
    def define(module):
        return type(MethodConfig)("Twice", (MethodConfig,), {"name": "twice", "__module__": module})

    try:
        first, second = define("cell"), define("cell")
        assert METHODS["twice"] is second is not first
        with pytest.raises(ValueError, match="method 'twice' is already defined in "):
            define("elsewhere")
    finally:
        METHODS.pop("twice", None)


# ------------------------------------------------------------------- the checkers find mistakes


class Halved(Linear):
    """A planted mistake: dW is halved."""

    def backward(self, dy, cache, grads, need_dx=True):
        inner = type(grads)()
        dx = super().backward(dy, cache, inner, need_dx)
        for p in (self.W, self.b):
            if p in inner:
                grads.add(p, 0.5 * inner[p])
        return dx


class Writing(Linear):
    """A planted mistake: forward writes to its input."""

    def forward(self, x, rng=None):
        x *= 1.0 + 1e-9
        return super().forward(x, rng)


class Mixing(Linear):
    """A planted mistake: samples are centred on their mean, outside of backward's knowledge."""

    def forward(self, x, rng=None):
        return super().forward(x - x.mean(axis=0, keepdims=True), rng)


class Wide(Linear):
    """A planted mistake: y in float64."""

    def forward(self, x, rng=None):
        y, cache = super().forward(x, rng)
        return y * np.float64(1.0) if y.dtype.kind == "c" else y.astype(np.float64), cache


class Always(Linear):
    """A planted mistake: dx is formed although nobody needs it."""

    def backward(self, dy, cache, grads, need_dx=True):
        return super().backward(dy, cache, grads, True)


class Remembering(Linear):
    """A planted mistake: the cache stays in the layer."""

    def forward(self, x, rng=None):
        y, self.kept = super().forward(x, rng)
        return y, None

    def backward(self, dy, cache, grads, need_dx=True):
        return super().backward(dy, self.kept, grads, need_dx)


@pytest.mark.parametrize(
    "kind, claim",
    [
        (Halved, "gradients agree with central"),
        (Writing, "change no array"),
        (Mixing, "samples do not mix"),
        (Wide, "float32 stays"),
        (Always, "frozen Parameters get"),
        (Remembering, "change no array: backward reads what a later forward left"),
    ],
)
def test_check_layer_names_the_claim_that_a_planted_mistake_breaks(kind, claim):
    layer = kind(3, 2, np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((4, 3))
    with pytest.raises(ContractError, match=f"{kind.__name__} breaks the contract:(.|\n)*{claim}"):
        check_layer(layer, x)
    check_layer(Linear(3, 2, np.random.default_rng(0)), x)


def planted(**changes):
    """Gains with one method of the configuration or of the layer replaced."""
    of_layer = {k: v for k, v in changes.items() if hasattr(GainLinear, k) and k != "wrap"}
    kind = type("PlantedLinear", (GainLinear,), of_layer)

    def wrap(self, path, layer, rng):
        made = GainConfig.wrap(self, path, layer, rng)
        return kind(made.base, made.A, made.g, made.B)

    body = {"wrap": wrap, **{k: v for k, v in changes.items() if k not in of_layer}, "name": ""}
    return dataclass(frozen=True)(type("PlantedConfig", (GainConfig,), body))(r=2)


def wrong_start(self, path, layer, rng):
    made = GainConfig.wrap(self, path, layer, rng)
    made.B.value[...] = 1e-3
    return made


def draws_in(dtype):
    def wrap(self, path, layer, rng):
        made = GainConfig.wrap(self, path, layer, rng)
        made.A.value = made.A.value.astype(dtype)
        return made

    return wrap


def remembers(self, x, rng=None):
    y, self.kept = GainLinear.forward(self, x, rng)
    return y, self.kept


def recalls(self, dy, cache, grads, need_dx=True):
    return GainLinear.backward(self, dy, self.kept, grads, need_dx)


def ignores_what_is_frozen(self, dy, cache, grads, need_dx=True):
    frozen, self.g.trainable = not self.g.trainable, True
    dx = GainLinear.backward(self, dy, cache, grads, need_dx)
    self.g.trainable = not frozen
    return dx


def drops_g(self):
    return {"A": self.A, "B": self.B}


def merges_without_gains(self):
    return Linear.over(
        lora_np.Parameter(self.base.W.value + self.B.value @ self.A.value), self.base.b
    )


def forgets_dg(self, dy, cache, grads, need_dx=True):
    self.g.trainable, before = False, self.g.trainable
    dx = GainLinear.backward(self, dy, cache, grads, need_dx)
    self.g.trainable = before
    return dx


@pytest.mark.parametrize(
    "changes, claim",
    [
        ({"wrap": wrong_start}, "model computes what the base"),
        ({"merged": merges_without_gains}, "a merged model computes the same"),
        ({"backward": forgets_dg}, "gets a gradient"),
        ({"own": drops_g}, "saved and loaded"),
        ({"merges": False}, "merge.. is refused"),
        ({"starts_at_base": False}, "model differs from the base"),
        (
            {"wrap": draws_in(np.float32)},
            "dtype: up_proj.A is float32 over a base of float64",
        ),
        (
            {"wrap": draws_in(np.float64)},
            "dtype: up_proj.A is float64 over a base of float32",
        ),
        ({"forward": remembers, "backward": recalls}, "change no array"),
        ({"backward": ignores_what_is_frozen}, "frozen Parameters get"),
    ],
)
def test_check_method_names_the_claim_that_a_planted_mistake_breaks(changes, claim):
    rng = np.random.default_rng(0)
    with pytest.raises(ContractError, match=claim):
        check_method(planted(**changes), MLP(4, 4, rng))


class Rms(Layer):
    """x / n with n the length of a fixed vector v, which backward takes as a constant."""

    def __init__(self, v):
        self.v = lora_np.Parameter(v)

    def constants(self):
        return {"n": float(np.sqrt((self.v.value.real**2).sum()))}

    def forward(self, x, rng=None):
        n = (self.fixed or self.constants())["n"]
        return x * self.v.value / n, (x, n)

    def backward(self, dy, cache, grads, need_dx=True):
        x, n = cache
        if self.v.trainable:
            grads.add(self.v, (dy * x / n).reshape(-1, x.shape[-1]).sum(axis=0))
        return dy * self.v.value / n if need_dx else None


def test_what_a_layer_declares_constant_is_held_still_while_gradients_are_checked():
    x = np.random.default_rng(0).standard_normal((3, 4))
    check_layer(Rms(np.ones(4)), x)
    honest = type("Silent", (Rms,), {"constants": lambda self: {}, "forward": silent_forward})
    with pytest.raises(ContractError, match="gradients agree with central"):
        check_layer(honest(np.ones(4)), x)


def silent_forward(self, x, rng=None):
    n = Rms.constants(self)["n"]
    return x * self.v.value / n, (x, n)


# ------------------------------------------------------------------------- swept over its ranks


def test_a_method_of_a_readers_file_is_swept_like_lora(tmp_path):
    """On the linear task, where theory has the answer: gains reach what LoRA of that rank does."""
    settings = LinearSettings(
        ranks=(1, 2), seeds=2, d_in=6, d_out=5, decay=0.5, steps=900, method=GainConfig()
    )
    results = rank_sweep(settings, tmp_path / "gains")
    assert results["settings"]["method"][METHOD_FIELD] == "own_gains"
    runs = [run for run in results["runs"] if run["rank"] is not None]
    assert [(run["method"], run["rank"]) for run in runs] == [("own_gains", 1)] * 2 + [
        ("own_gains", 2)
    ] * 2
    assert {run["rank"]: run["trainable_parameters"] for run in runs} == {1: 12, 2: 24}
    for run in runs:
        assert run["test_loss"] == pytest.approx(run["floor"], rel=1e-3)
    text = str(table(results))
    assert "r = 2" in text and rank_sweep(settings, tmp_path / "gains") == results
    with pytest.raises(SweepError, match="other settings"):
        rank_sweep(dataclasses.replace(settings, method=None), tmp_path / "gains")


def test_a_swept_method_of_the_text_task_is_read_back(tmp_path, tiny):
    method = GainConfig(target_modules=["q_proj"])
    settings = dataclasses.replace(tiny, ranks=(1,), seeds=1, method=method)
    results = rank_sweep(settings, tmp_path / "gains")
    model = load_model(tmp_path / "gains", "1")
    found = adapters(model)
    assert {type(layer) for layer in found.values()} == {GainLinear}
    assert all(path.endswith("q_proj") for path in found)
    (run,) = [run for run in results["runs"] if run["rank"] == 1]
    trained = sum(p.size for p in model.parameters().values() if p.trainable)
    assert run["trainable_parameters"] == trained
    assert any(layer.B.value.any() for layer in found.values())


def test_a_method_without_a_rank_is_not_swept_over_ranks(tmp_path):
    with pytest.raises(ValueError, match=r"'test_biases' has no rank r to sweep over"):
        rank_sweep(LinearSettings(ranks=(1,), steps=5, method=Biases()), tmp_path / "biases")
    with pytest.raises(ValueError, match="'no_such' matches no linear layer"):
        method = LoraConfig(target_modules=["no_such"])
        rank_sweep(TextSettings(ranks=(1,), method=method), tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []  # refused before anything was trained
