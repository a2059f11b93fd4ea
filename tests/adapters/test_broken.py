"""Files that are broken or hostile: each is one CheckpointError of one line that says where."""

import math
import pickle
import re

import numpy as np
import pytest

from lora_np.adapters import open_adapter
from lora_np.adapters.analyse import analyse_adapter
from lora_np.files import CheckpointError, open_weights, save_tensors
from tests.sample_files import PREFIX, entry, modules_of, raw, tampered, write_adapter

A, B = "h.0.q.lora_A.weight", "h.0.q.lora_B.weight"
ONE = np.ones


def read_all(path):
    with open_adapter(path) as adapter:
        for module in adapter.modules.values():
            module.factors()


def assert_refused(path, words):
    """One CheckpointError of one line, with these words."""
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        read_all(path)
    assert "\n" not in str(caught.value) and type(caught.value) is CheckpointError


# ------------------------------------------------------------------ the file itself is no such file

PAIR = {"a": entry(0, 16), "b": entry(16, 32)}
BYTES = {
    "empty": (b"", "it has 0 bytes, too few for the length of a header"),
    "cut within the length": (b"\x10\x00", "it has 2 bytes, too few"),
    "cut within the header": (raw(PAIR)[:20], "not a readable .safetensors file"),
    "cut within the numbers": (raw(PAIR, bytes(31)), "not a readable .safetensors file"),
    "numbers left over": (raw(PAIR, bytes(40)), "not a readable .safetensors file"),
    "a header of 2^63 bytes": (
        raw(PAIR, bytes(32), 2**63),
        "its header would have 9223372036854775808 bytes",
    ),
    "a header longer than the file": (raw(PAIR, bytes(32), 10**6), "not a readable"),
    "no JSON": (raw(b"{nope}"), "its header is not JSON: Expecting property name"),
    "JSON, no object": (raw([1, 2]), "its header is not a JSON object"),
    "JSON without end": (raw(b"[" * 100_000), "not a readable .safetensors file"),
    "tensors overlap": (raw({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)), "'b' overlaps"),
    "a gap": (
        raw({"a": entry(0, 16), "b": entry(20, 36)}, bytes(36)),
        "'b' overlaps another tensor, or leaves a gap",
    ),
    "beyond the end": (raw({"a": entry(0, 16), "b": entry(16, 1024, (252,))}, bytes(32)), "not a"),
    "the end before the start": (
        raw({"a": entry(16, 0)}, bytes(16)),
        "'a' has data_offsets [16, 0]",
    ),
    "a negative start": (raw({"a": entry(-4, 12)}, bytes(16)), "'a' has data_offsets [-4, 12]"),
    "a shape that does not fit": (
        raw({"a": entry(0, 16, (3, 3))}, bytes(16)),
        "'a' has 16 bytes for shape [3, 3]",
    ),
    "a shape of 2^124": (
        raw({"a": entry(0, 16, (2**62, 2**62))}, bytes(16)),
        "'a' has 16 bytes for shape",
    ),
    "an unknown dtype": (
        raw({"a": entry(0, 16, dtype="F99")}, bytes(16)),
        "its 'a' has dtype 'F99'",
    ),
    "a name twice": (raw(b'{"a": 1, "a": 1}'), "a name stands twice in its header"),
    "a note that is no text": (raw({"__metadata__": {"a": 1}}), "its __metadata__ is not of texts"),
    "half a character in a note": (raw({"__metadata__": {"a": "\ud800"}}), "is not of texts"),
    "notes in a list": (raw({"__metadata__": []}), "its __metadata__ is not of texts"),
    "half a size": (raw({"a": entry(0, 16, (4.0,))}, bytes(16)), "'a' has shape [4.0]"),
    "a size that is true": (raw({"a": entry(0, 4, (True,))}, bytes(4)), "'a' has shape [True]"),
    "three places": (
        raw({"a": {**entry(0, 16), "data_offsets": [0, 8, 16]}}),
        "data_offsets [0, 8",
    ),
    "no shape": (
        raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
        "'a' lacks a field",
    ),
    "half a byte": (raw({"a": entry(0, 1, (1,), "F4")}, bytes(1)), "'a' has 1 bytes for shape [1]"),
    "a name of two lines": (raw({"a\nb": entry(0, 16)}, bytes(16)), r"'a\nb'"),
    "a zip": (b"PK\x03\x04" + bytes(100), "not a readable .safetensors file"),
    "a pickle": (pickle.dumps({"a": [1.0] * 100}), "not a readable .safetensors file"),
    "no tensor": (raw({}), "holds no tensor"),
    "a note alone": (raw({"__metadata__": {"a": "b"}}), "holds no tensor"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_a_file_of_such_bytes_is_refused(tmp_path, kind):
    content, words = BYTES[kind]
    (tmp_path / "x.safetensors").write_bytes(content)
    assert_refused(tmp_path / "x.safetensors", words)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(content)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert_refused(folder, words)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.ckpt"])
def test_a_pickle_is_not_even_opened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({}))
    assert_refused(tmp_path / name, f"{name} may be a pickle, which can run code")


def test_what_is_missing_or_a_folder_is_named(tmp_path, rng):
    assert_refused(tmp_path / "none.safetensors", "none.safetensors does not exist")
    assert_refused(tmp_path, "has no adapter_config.json: it is not a PEFT adapter")
    folder = tampered(tmp_path / "a", rng)
    (folder / "adapter_model.safetensors").unlink()
    assert_refused(folder, "adapter_model.safetensors does not exist")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))
    assert_refused(folder, "adapter_model.bin may be a pickle")
    (folder / "adapter_model.safetensors").mkdir()
    assert_refused(folder, "adapter_model.safetensors is a folder")


# ------------------------------------------------------------------------------ what tensors say

TENSORS = {
    "A is missing": ({A: None}, f"'{PREFIX}{B}' without its factor A"),
    "B is missing": ({B: None}, f"'{PREFIX}{A}' without its factor B"),
    "ranks that do not meet": ({B: ONE((6, 3))}, f"'{PREFIX}{B}' with shape (6, 3)"),
    "A is a vector": ({A: ONE(10)}, f"'{PREFIX}{A}' with shape (10,)"),
    "B is a vector": ({B: ONE(12)}, f"'{PREFIX}{B}' with shape (12,)"),
    "A has three axes": ({A: ONE((2, 5, 1))}, f"'{PREFIX}{A}' with shape (2, 5, 1)"),
    "B has three axes": ({B: ONE((6, 2, 1))}, f"'{PREFIX}{B}' with shape (6, 2, 1)"),
    "B is a 3 x 3 kernel": ({B: ONE((6, 2, 3, 3))}, f"'{PREFIX}{B}' with shape (6, 2, 3, 3)"),
    "A is a number": ({A: np.array(1.0)}, f"'{PREFIX}{A}' with shape ()"),
    "A has no row": ({A: ONE((0, 5)), B: ONE((6, 0))}, f"'{PREFIX}{A}' with shape (0, 5)"),
    "A has no column": ({A: ONE((2, 0))}, f"'{PREFIX}{A}' with shape (2, 0)"),
    "B has no row": ({B: ONE((0, 2))}, f"'{PREFIX}{B}' with shape (0, 2)"),
    "rank is not the config's": ({A: ONE((3, 5)), B: ONE((6, 3))}, f"'{PREFIX}{A}' of rank 3"),
    "integers": ({A: ONE((2, 5), np.int8)}, f"'{PREFIX}{A}' as I8"),
    "complex numbers": ({B: ONE((6, 2), np.complex64)}, f"'{PREFIX}{B}' as C64"),
    "truth values": ({B: ONE((6, 2), bool)}, f"'{PREFIX}{B}' as BOOL"),
    "NaN in A": ({A: np.full((2, 5), math.nan, "f4")}, f"'{PREFIX}{A}' with entries not finite"),
    "infinity in B": ({B: np.full((6, 2), -math.inf, "f2")}, f"'{PREFIX}{B}' with entries not"),
    "kohya's alpha beside a config": ({"h.0.q.alpha": ONE(1)}, "h.0.q.alpha'"),
    "twice, under two names": ({"h.0.q.lora_A.default.weight": ONE((2, 5))}, "again as"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, rng, kind):
    tensors, words = TENSORS[kind]
    assert_refused(tampered(tmp_path / "a", rng, tensors=tensors), words)


STRANGERS = {  # tensors beside the factors, and the cause that each tells
    "h.0.q.lora_magnitude_vector": "a magnitude of DoRA's",
    "h.0.q.lora_magnitude_vector.default.weight": "a magnitude of DoRA's",
    "h.0.q.dora_scale": "a magnitude of DoRA's",
    "h.0.q.ia3_l": "of IA3",
    "h.0.q.hada_w1_a": "of LoHa",
    "h.0.q.lokr_w1": "of LoKr",
    "h.0.q.oft_R.weight": "of OFT",
    "h.0.q.lora_E": "of AdaLoRA",
    "h.0.q.vera_lambda_b": "of VeRA",
    "h.0.q.lora_a": "of mlx",
    "h.0.q.lora_mid.weight": "the core of a Tucker decomposition",
    "h.0.q.diff_b": "a whole change",
    "prompt_embeddings": "a trained prompt",
    "wte.lora_embedding_A": "a factor of an embedding",
    "h.0.q.base_layer.bias": "a trained bias",
    "h.0.q.lora_B.bias": "a trained bias",
    "lm_head.weight": "a layer saved whole, as PEFT saves modules_to_save, and",
    "lm_head.base_layer.weight": "a layer saved whole",
    "h.0.q.something_else": "of a method that is not known here",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_tensor_of_another_method_is_named_with_the_cause(tmp_path, rng, name):
    words = f"holds '{PREFIX}{name}', not a factor of plain LoRA but {STRANGERS[name]}"
    assert_refused(tampered(tmp_path / "a", rng, tensors={name: ONE((2, 2))}), words)


@pytest.mark.parametrize("method", ["CPT", "LNTUNING", "XLORA", "lora"])
def test_the_config_of_another_method_is_named(tmp_path, rng, method):
    words = f"peft_type = '{method}', expected 'LORA': lora_np does not read this method"
    assert_refused(tampered(tmp_path / "a", rng, {"peft_type": method}), words)


def test_a_config_of_mlxs_is_named(tmp_path, rng):
    changes = {"peft_type": None, "fine_tune_type": "lora"}
    assert_refused(
        tampered(tmp_path / "a", rng, changes), "fine_tune_type = 'lora', which mlx writes"
    )


def test_a_checkpoint_and_an_adapter_in_the_place_of_the_other_are_named(tmp_path, rng):
    said = "; a checkpoint after training is compared with the one before, as --base"
    (tmp_path / "tuned").mkdir()
    weights = {"h.0.q.weight": ONE((2, 2)), "h.0.q.bias": ONE(2)}
    save_tensors(tmp_path / "tuned" / "model.safetensors", weights)
    (tmp_path / "tuned" / "config.json").write_text("{}")
    assert_refused(tmp_path / "tuned", f"it is not a PEFT adapter{said}")
    assert_refused(
        tmp_path / "tuned" / "model.safetensors", f"and no factor of LoRA{said.replace(';', ':')}"
    )
    adapter = tampered(tmp_path / "a", rng)
    with pytest.raises(CheckpointError, match="a is an adapter, where a checkpoint is expected"):
        open_weights(adapter)


@pytest.mark.parametrize("name", ["a\tb", "x" * 600])
def test_what_could_not_be_read_again_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="is not a valid name of a tensor"):
        write_adapter(tmp_path / "a", [(name, ONE((2, 1)), ONE((1, 2)), 1.0)])
    assert not (tmp_path / "a").exists()


def test_a_module_with_and_without_the_prefix_is_there_twice(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {A: ONE((2, 5)), PREFIX + A: ONE((2, 5))})
    assert_refused(tmp_path / "x.safetensors", "again as")


@pytest.mark.parametrize("alpha", [math.nan, math.inf, 0.0, [1.0, 2.0], []])
def test_an_alpha_that_is_no_number_is_named(tmp_path, alpha):
    tensors = {"m.lora_down.weight": ONE((2, 5)), "m.lora_up.weight": ONE((6, 2))}
    save_tensors(tmp_path / "x.safetensors", {**tensors, "m.alpha": np.array(alpha, "f4")})
    assert_refused(tmp_path / "x.safetensors", "'m.alpha'")


@pytest.mark.parametrize(
    "name", ["m.lora_mid.weight", "m.dora_scale", "m.hada_w1_a", "m.lokr_w1", "m.diff_b"]
)
def test_what_kohyas_relatives_hold_beside_lora_is_named(tmp_path, name):
    tensors = {"m.lora_down.weight": ONE((2, 5)), "m.lora_up.weight": ONE((6, 2)), name: ONE(2)}
    save_tensors(tmp_path / "x.safetensors", tensors)
    assert_refused(tmp_path / "x.safetensors", f"{name!r}, not a factor of plain LoRA")


def test_an_alpha_without_factors_is_named(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"m.alpha": np.array(1.0)})
    assert_refused(tmp_path / "x.safetensors", "'m.alpha' without its factor A")


# ---------------------------------------------------------------------------- what the config says

OBJECT = {"a": 1}
FIELDS = {  # of PEFT's LoraConfig: each would change what is computed, or cannot be read
    "peft_type": ["LOHA", "lora", None, 1, ["LORA"]],
    "r": [0, -1, "8", 2.0, True, None, [2], 3, 10**400],
    "lora_alpha": [0, -1, "16", None, True, 10**400],
    "lora_dropout": [1.0, -0.1, "x"],
    "rank_pattern": [[1], "x", {"q": 0}, {"q": "2"}, {"q": 3}],
    "alpha_pattern": [[1], {"q": None}, {"x": "1"}],
    "use_rslora": [1, "yes", None],
    "fan_in_fan_out": ["yes", 0],
    "bias": ["all", "lora_only", True],
    "init_lora_weights": [
        *("pissa", "pissa_niter_16", "olora", "loftq", "corda", "eva", "lora_ga", "mica"),
        *(None, 3, [True], "unknown"),
    ],
    "target_modules": [["v"], "h.0.k", "q", ["h.1.q"], [], [1], 7, "("],
    "exclude_modules": [["q"], "h.*", "(", 7],
    "layers_to_transform": [1, [1, 2], ["x"], "0", 0.5],
    "use_dora": [True],
    "modules_to_save": [["lm_head"]],
    "lora_bias": [True],
    "layer_replication": [[[0, 4], [2, 5]]],
    "megatron_config": [OBJECT],
    "trainable_token_indices": [[1, 2], OBJECT],
    "target_parameters": [["experts.gate"]],
    "loftq_config": [OBJECT],
    "eva_config": [OBJECT],
    "corda_config": [OBJECT],
    "lora_ga_config": [OBJECT],
    "velora_config": [OBJECT],
    "kasa_config": [OBJECT],
    "arrow_config": [OBJECT],
    "monteclora_config": [OBJECT],
    "use_bdlora": [OBJECT],
    "use_qalora": [True],
    "alora_invocation_tokens": [[7]],
    "ensure_weight_tying": [True],
}
CASES = [(field, value) for field, values in FIELDS.items() for value in values]


@pytest.mark.parametrize("field, value", CASES, ids=[f"{f}={str(v)[:20]}" for f, v in CASES])
def test_a_field_that_is_not_computed_or_makes_no_sense_is_named(tmp_path, rng, field, value):
    of_a_rank = field == "rank_pattern" or (field == "r" and value in (0, -1, 3))
    words = "rank" if of_a_rank and value is not True else field
    assert_refused(tampered(tmp_path / "a", rng, {field: value}), words)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", ["(", "a{9999999999999}", "(" * 5000 + ")" * 5000])
def test_a_pattern_that_is_no_regular_expression_is_named(tmp_path, rng, field, key):
    assert_refused(tampered(tmp_path / "a", rng, {field: {key: 2}}), "cannot be used: ")


@pytest.mark.parametrize("changes", [{"r": None}, {"peft_type": None}, {"lora_alpha": None}])
def test_a_config_must_name_what_has_no_safe_default(tmp_path, rng, changes):
    assert_refused(tampered(tmp_path / "a", rng, changes), next(iter(changes)))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not a readable JSON file"),
        ("{", "not a readable JSON file"),
        ("[" * 100_000, "not a readable JSON file"),
        ('{"r": ' + "1" * 5000 + "}", "not a readable JSON file"),
        ('{"lora_alpha": NaN}', "NaN is not a finite number"),
        ('{"x": [-Infinity]}', "-Infinity is not a finite number"),
        ('{"x": 1e999}', "1e999 is not a finite number"),
        ("[]", "holds a list, expected an object"),
        ("null", "holds a NoneType, expected an object"),
        ("{}", "peft_type"),
    ],
    ids=[
        *("empty", "cut", "deep", "a number of 5000 digits", "nan", "infinity", "1e999", "a list"),
        *("null", "no field"),
    ],
)
def test_a_config_that_is_none_is_named(tmp_path, rng, text, words):
    folder = tampered(tmp_path / "a", rng)
    (folder / "adapter_config.json").write_text(text)
    assert_refused(folder, words)


def test_a_config_that_is_a_folder_is_named(tmp_path, rng):
    folder = tampered(tmp_path / "a", rng)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    assert_refused(folder, "adapter_config.json is a folder, expected a file")


QUIET = {
    "use_dora": False, "modules_to_save": None, "loftq_config": {}, "layer_replication": None,
    "a_field_of_tomorrow": None, "another": [], "one_more": "", "megatron_core": "megatron.core",
    "qalora_group_size": 16, "peft_version": "0.21.2", "task_type": "CAUSAL_LM", "bias": "none",
    "auto_mapping": OBJECT, "revision": "main", "inference_mode": True, "lora_dropout": 0.1,
    "init_lora_weights": "gaussian", "exclude_modules": ["v"], "layers_to_transform": [0, 3],
    "layers_pattern": ["x", "h"], "target_modules": "(x.)*h.[0-3].q", "rank_pattern": None,
}  # fmt: skip


def test_fields_that_change_nothing_pass(tmp_path, rng):
    folder = tampered(tmp_path / "a", rng, QUIET, shapes={"x.h.0.q": (6, 2, 5, 2.0)})
    with open_adapter(folder) as adapter:
        assert adapter.modules["x.h.0.q"].scale == 2 and adapter.lora_dropout == 0.1


@pytest.mark.parametrize("value", [2e-4, "anything", 1, OBJECT, [1]])
def test_a_field_that_peft_does_not_know_is_passed_over_with_a_note(tmp_path, rng, value):
    changes = {"learning_rate": value, "lr": 1e-3, "quiet": None, "empty": {}}
    with open_adapter(tampered(tmp_path / "a", rng, changes)) as adapter:
        assert adapter.modules["h.0.q"].scale == 2
        assert adapter.notes == ["config fields ignored, unknown to PEFT: learning_rate, lr"]
    assert analyse_adapter(tmp_path / "a").notes() == adapter.notes


def test_every_field_of_a_default_config_of_pefts_passes(tmp_path, rng):
    """The fields of PEFT 0.21's LoraConfig(target_modules=["q"]).to_dict(), as it saves them."""
    fields = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
        "auto_mapping": None, "base_model_name_or_path": None, "bias": "none",
        "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
        "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "kasa_config": None, "layer_replication": None,
        "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
        "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0, "lora_ga_config": None,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2",
        "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": None,
        "target_modules": ["q"], "target_parameters": None, "task_type": None,
        "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
        "use_qalora": False, "use_rslora": False, "velora_config": None,
    }  # fmt: skip
    with open_adapter(tampered(tmp_path / "a", rng, fields)) as adapter:
        assert adapter.modules["h.0.q"].scale == 4


def test_hundreds_of_patterns_do_not_take_their_square_in_time(tmp_path, rng):
    """600 modules, each of its own rank: 360,000 matches, each compiled once."""
    shapes = {f"model.layers.{i}.q": (2, 1 + i % 7, 2, 1.0 + i) for i in range(600)}
    write_adapter(tmp_path / "a", modules_of(rng, shapes))
    with open_adapter(tmp_path / "a") as adapter:
        assert {n: (m.r, m.scale) for n, m in adapter.modules.items()} == {
            name: (r, scale) for name, (_, r, _, scale) in shapes.items()
        }
