"""Options of a wrong type: one line that names the option, before a model is made."""

import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest

from lora_np import inject, load_adapter, save_adapter
from lora_np.files import CheckpointError
from lora_np.methods import METHODS, MethodConfig, make_method
from tests.methods.test_methods import METHODS_TRIED, make_gpt

STRANGE: list[Any] = [
    *(float("nan"), float("inf"), 1e308, 10**400, -1, 1.5, np.array([[1]]), object()),
    *("", "x", "(", [None], [[]], {"a": 1}, {"q_proj": "x"}, [10**30], {"q_proj"}, ["q_proj", 1]),
]
NEEDED = {
    "adalora": {"total_step": 5, "target_r": 2, "init_r": 3},
    "tokens": {"token_indices": (1,)},
    "intrinsic": {"d": 20},
    "oft": {"oft_block_size": 4},
    "hira": {"r": 2},
    "shira": {"r": 2},
    "miss": {"r": 2},
    "prompt": {"num_virtual_tokens": 2},
    "prefix": {"num_virtual_tokens": 2},
}
OURS = sorted(name for name, method in METHODS.items() if method.__module__.startswith("lora_np"))


def options(name):
    method: Any = METHODS[name]
    return [field.name for field in fields(method)]


@pytest.mark.parametrize("name", OURS)
def test_an_option_of_any_value_is_taken_or_refused_on_one_line(name):
    base = make_gpt()
    refused = 0
    for option in options(name):
        for value in STRANGE:
            given = {"r": 2} if "r" in options(name) else {}
            try:
                config = make_method(name, **{**given, **NEEDED.get(name, {}), option: value})
                inject(base, config, np.random.default_rng(0))
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 2


@pytest.mark.parametrize("name", OURS)
def test_a_type_that_an_option_does_not_have_is_named(name):
    for option in options(name):
        with pytest.raises(ValueError, match=f"^{option} = <object object at .*>, expected .*"):
            make_method(name, **{**NEEDED.get(name, {}), option: object()})


def test_numpy_numbers_and_sets_become_what_a_file_holds(tmp_path):
    rng = np.random.default_rng(0)
    config: Any = make_method(
        "bottleneck", r=np.int64(2), target_modules={"mlp"}, scale=np.float32(2)
    )
    assert type(config.r) is int and config.target_modules == ("mlp",)
    adapted = inject(make_gpt(), config, rng)
    save_adapter(adapted, tmp_path / "one")
    assert load_adapter(make_gpt(), tmp_path / "one").method.r == 2


def test_a_method_of_ones_own_has_its_options_checked_too():
    @dataclass(frozen=True)
    class Own(MethodConfig):
        scale: float = 1.0
        names: Any = ()

    assert Own(names=object).scale == 1.0
    with pytest.raises(ValueError, match="scale = '2', expected a finite number"):
        Own(scale="2")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize("config", METHODS_TRIED[:-2], ids=lambda c: c.name)
def test_a_field_of_a_file_of_any_json_value_is_taken_or_refused(config, tmp_path):
    base, folder = make_gpt(), tmp_path / "adapter"
    save_adapter(inject(base, config, np.random.default_rng(0)), folder)
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text("utf-8"))
    for option in saved:
        for value in (None, True, 0, -1, 1.5, 10**400, "x", "(", [], [None], {"a": {}}, [[1]]):
            path.write_text(json.dumps({**saved, option: value}), encoding="utf-8")
            try:
                load_adapter(base, folder)
            except CheckpointError as error:
                assert str(folder) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("config", [None, "lora", make_method, METHODS["lora"]])
def test_what_is_no_configuration_is_not_injected(config):
    with pytest.raises(ValueError, match="expected a configuration like LoraConfig"):
        inject(make_gpt(), config, np.random.default_rng(0))


@pytest.mark.parametrize("name", [None, 3, ["lora"]])
def test_a_name_that_is_none_is_not_looked_up(name):
    with pytest.raises(ValueError, match="there is no method"):
        make_method(name)
