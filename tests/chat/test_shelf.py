"""lora_np.chat.shelf: adapters by name over one base, which stays as it is."""

import json

import numpy as np
import pytest

from lora_np import LoraConfig, inject, save_adapter
from lora_np.chat import Shelf
from lora_np.files import CheckpointError
from lora_np.pretrained import fingerprint
from tests.chat.tiny import llama

TOKENS = np.array([[5, 6, 7]])


def write_adapter(folder, base, seed=0, made_on=None):
    """Write an adapter that changes the model, and the record of its base if there is one."""
    rng = np.random.default_rng(seed)
    adapted = inject(base, LoraConfig(r=2), rng)
    for name, p in adapted.parameters().items():
        if name.endswith(".B"):
            p.value[...] = 0.3 * rng.standard_normal(p.shape)
    save_adapter(adapted, folder)
    if made_on is not None:
        record = {"base": {"name": "a model", "fingerprint": made_on}}
        (folder / "training.json").write_text(json.dumps(record))
    return adapted


@pytest.fixture
def shelf(tmp_path):
    """Return a shelf of two adapters, one and two."""
    base = llama()
    for seed, name in enumerate(("one", "two")):
        write_adapter(tmp_path / name, base, seed)
    return Shelf(base, [tmp_path / "one", tmp_path / "two"])


def test_the_first_adapter_is_chosen_and_base_is_none(shelf, tmp_path):
    assert [*shelf.models] == ["base", "one", "two"] and shelf.chosen == "one"
    found = {name: shelf.choose(name).forward(TOKENS)[0] for name in shelf.models}
    for seed, name in enumerate(("one", "two")):
        expected = write_adapter(tmp_path / f"{name}-again", llama(), seed).forward(TOKENS)[0]
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found["base"], llama().forward(TOKENS)[0])
    assert np.abs(found["one"] - found["two"]).max() > 0.1
    assert shelf.chosen == "two" and shelf.model is shelf.models["two"]
    assert Shelf(llama()).chosen == "base"


def test_all_models_share_the_arrays_of_the_base_and_none_changes_them(shelf):
    before = llama().parameters()
    for name, p in shelf.models["base"].parameters().items():
        np.testing.assert_array_equal(p.value, before[name].value)
        for adapter in ("one", "two"):
            model = shelf.models[adapter]
            own = model.parameters().get(name) or model.parameters()[f"{name}0"]  # W is W0
            assert np.shares_memory(own.value, p.value)


def test_an_unknown_name_is_answered_with_the_nearest_and_nothing_changes(shelf):
    with pytest.raises(ValueError, match=r"no adapter is called 'tow': did you mean two\?"):
        shelf.choose("tow")
    assert shelf.chosen == "one"


def test_a_link_beside_its_folder_has_its_own_name(tmp_path):
    base = llama()
    write_adapter(tmp_path / "v7", base)
    (tmp_path / "latest").symlink_to(tmp_path / "v7")
    shelf = Shelf(base, [tmp_path / "v7", tmp_path / "latest"])
    assert list(shelf.models) == ["base", "v7", "latest"]


def test_two_folders_of_one_name_are_refused(tmp_path):
    base = llama()
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        write_adapter(tmp_path / parent / "sql", base)
    with pytest.raises(
        CheckpointError, match=r"two adapters are called 'sql': .*b/sql and .*a/sql"
    ):
        Shelf(base, [tmp_path / "a" / "sql", tmp_path / "b" / "sql"])
    write_adapter(tmp_path / "base", base)
    with pytest.raises(CheckpointError, match=r"called 'base': .* and the model itself; rename"):
        Shelf(base, [tmp_path / "base"])


def test_a_name_is_that_of_the_folder_however_it_is_written(tmp_path, monkeypatch):
    base = llama()
    write_adapter(tmp_path / "sql", base)
    monkeypatch.chdir(tmp_path / "sql")
    assert [*Shelf(base, ["."]).models] == ["base", "sql"]


def test_an_adapter_of_another_base_is_refused(tmp_path):
    base, other = llama(), llama(1)
    assert fingerprint(base) != fingerprint(other)
    write_adapter(tmp_path / "right", base, made_on=fingerprint(base))
    write_adapter(tmp_path / "wrong", other, made_on=fingerprint(other))
    assert Shelf(base, [tmp_path / "right"]).chosen == "right"
    message = r"wrong was trained on another base \('a model', fingerprint"
    with pytest.raises(CheckpointError, match=message):
        Shelf(base, [tmp_path / "wrong"])


@pytest.mark.parametrize("record", [[], {"base": 1}, {"base": {"fingerprint": 5}}, {}], ids=repr)
def test_a_record_of_somebody_else_says_nothing_about_the_base(tmp_path, record):
    base = llama()
    write_adapter(tmp_path / "one", base)
    (tmp_path / "one" / "training.json").write_text(json.dumps(record))
    assert Shelf(base, [tmp_path / "one"]).chosen == "one"


def test_an_adapter_of_other_shapes_is_refused_in_one_line(tmp_path):
    write_adapter(tmp_path / "one", llama())
    wider = llama(d_model=24)
    with pytest.raises(CheckpointError) as caught:
        Shelf(wider, [tmp_path / "one"])
    assert "one" in str(caught.value) and "\n" not in str(caught.value)
