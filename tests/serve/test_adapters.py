"""Adapters on demand: read once, kept while used, the least recently used let go first."""

import json
import shutil

import numpy as np
import pytest

from lora_np import LoraConfig, inject, save_adapter
from lora_np.files import CheckpointError
from lora_np.methods import make_method
from lora_np.serve.adapters import Adapters
from lora_np.serve.pool import Pool
from tests.serve.tiny import adapter, gpt, llama

SMALL = {"r": 2, "target_modules": ["q_proj"]}  # 2 layers of 2 (32 + 32) numbers: 16 pages of 16


@pytest.fixture
def base():
    return llama()


def shelf(base, tmp_path, rng, names, pages=40):
    for name in names:
        adapter(base, tmp_path / name, rng, **SMALL)
    pool = Pool(pages, 16)
    return Adapters(base, pool, [tmp_path / name for name in names]), pool


def test_factors_in_the_pool_are_those_of_the_file(base, tmp_path, rng):
    adapted = adapter(base, tmp_path / "a", rng, r=3, lora_alpha=6, target_modules="all-linear")
    held = Adapters(base, Pool(900, 16), [tmp_path / "a"]).hold("a")
    for path, (A, B) in held.pairs().items():
        layer = adapted.modules()[path]
        np.testing.assert_array_equal(A, layer.A.value)
        np.testing.assert_array_equal(B, layer.B.value)
        assert held.scales[path] == 2.0
    assert len(held.pairs()) == 14


def test_stacked_modules_of_gpt2_are_split(tmp_path, rng):
    base = gpt()
    adapted = adapter(base, tmp_path / "a", rng, r=2, target_modules=["q_proj", "v_proj"])
    held = Adapters(base, Pool(900, 16), [tmp_path / "a"]).hold("a")
    A, B = held.pairs()["h.1.attn.v_proj"]
    np.testing.assert_array_equal(
        B @ A, adapted.h[1].attn.v_proj.B.value @ adapted.h[1].attn.v_proj.A.value
    )
    assert "h.1.attn.k_proj" not in held.pairs()


def test_the_least_recently_used_is_let_go_and_one_in_use_never(base, tmp_path, rng):
    adapters, pool = shelf(base, tmp_path, rng, "abc")
    a, b = adapters.hold("a"), adapters.hold("b")  # 16 pages each, of 40
    adapters.release(a)
    adapters.release(b)
    adapters.release(adapters.hold("a"))  # used after b
    c = adapters.hold("c")
    assert (adapters.loaded, adapters.pages, pool.free) == (2, 32, 8)
    again = adapters.hold("a")
    assert again is a  # b was let go
    assert adapters.hold("b") is None  # both others are in use
    adapters.release(c)
    assert adapters.hold("b").users == 1 and adapters.loaded == 2


def test_none_is_let_go_for_what_does_not_fit_all_the_same(base, tmp_path, rng):
    adapters, pool = shelf(base, tmp_path, rng, "ab")
    adapter(base, tmp_path / "large", rng, r=4, target_modules=["q_proj"])  # 32 pages
    adapters.add(tmp_path / "large")
    adapters.hold("a")
    adapters.release(adapters.hold("b"))
    assert adapters.hold("large") is None  # 8 pages are free, and 16 of b
    assert (adapters.loaded, adapters.pages, pool.free) == (2, 32, 8)
    assert not adapters.make_room(25) and adapters.loaded == 2
    assert adapters.make_room(24) and adapters.loaded == 1


def test_an_adapter_in_use_is_passed_over_though_it_was_used_before_others(base, tmp_path, rng):
    adapters, _ = shelf(base, tmp_path, rng, "abc")
    a = adapters.hold("a")
    adapters.release(adapters.hold("b"))
    adapters.hold("c")  # in the place of b
    assert adapters.hold("a") is a and adapters.reads == 3


def test_views_follow_a_move(base, tmp_path, rng):
    adapters, pool = shelf(base, tmp_path, rng, "a", pages=20)
    lease = pool.take(2, at_end=True)
    held = adapters.hold("a")
    before = {path: (A.copy(), B.copy()) for path, (A, B) in held.pairs().items()}
    pool.give_back(lease)
    assert pool.take(4) is not None and pool.moves == 1
    for path, (A, B) in held.pairs().items():
        np.testing.assert_array_equal(A, before[path][0])
        np.testing.assert_array_equal(B, before[path][1])
        assert np.shares_memory(A, pool.memory)


def test_a_changed_folder_is_read_again_and_users_go_on_with_what_they_hold(base, tmp_path, rng):
    adapters, pool = shelf(base, tmp_path, rng, "a")
    old = adapters.hold("a")
    kept = old.pairs()["model.layers.0.self_attn.q_proj"][0].copy()
    shutil.rmtree(tmp_path / "a")
    adapter(base, tmp_path / "a", rng, **SMALL)
    new = adapters.hold("a")
    assert new is not old and adapters.pages == 32
    np.testing.assert_array_equal(old.pairs()["model.layers.0.self_attn.q_proj"][0], kept)
    adapters.release(old)
    assert adapters.pages == 16 and pool.free == 24
    adapters.release(new)
    assert adapters.hold("a") is new


def test_a_removed_adapter_stays_with_its_users(base, tmp_path, rng):
    adapters, pool = shelf(base, tmp_path, rng, "a")
    held = adapters.hold("a")
    adapters.remove("a")
    assert adapters.names == [] and adapters.pages == 16
    with pytest.raises(ValueError, match="no adapter is called 'a': there are none"):
        adapters.hold("a")
    adapters.release(held)
    assert (adapters.pages, pool.free) == (0, 40)


def test_names_are_names_and_never_paths(base, tmp_path, rng):
    adapters, _ = shelf(base, tmp_path, rng, ["sql-a", "sql-b"])
    for name in (str(tmp_path / "sql-a"), "../sql-a", "sql-a/", "sql-", ""):
        with pytest.raises(ValueError, match="no adapter is called"):
            adapters.hold(name)
    with pytest.raises(ValueError, match="did you mean sql-"):
        adapters.expect("sql-c")


def test_two_folders_of_one_name_are_refused(base, tmp_path, rng):
    adapter(base, tmp_path / "x" / "a", rng, **SMALL)
    with pytest.raises(CheckpointError, match="two adapters are called 'a'"):
        Adapters(base, Pool(4, 16), [tmp_path / "x" / "a", tmp_path / "y" / "a"])


def test_a_link_has_its_own_name_and_may_lie_beside_its_folder(base, tmp_path, rng, monkeypatch):
    shelf(base, tmp_path, rng, ["v7"])
    (tmp_path / "latest").symlink_to(tmp_path / "v7")
    adapters = Adapters(base, Pool(40, 16), [tmp_path / "v7", tmp_path / "latest"])
    assert adapters.names == ["v7", "latest"]
    one, other = adapters.hold("latest").pairs(), adapters.hold("v7").pairs()
    assert one is not other
    for path, (A, B) in one.items():
        np.testing.assert_array_equal(A, other[path][0])
        np.testing.assert_array_equal(B, other[path][1])
    monkeypatch.chdir(tmp_path / "v7")
    assert Adapters(base, Pool(40, 16), ["."]).names == ["v7"]


def test_a_link_that_points_elsewhere_is_another_version(base, tmp_path, rng):
    adapter(base, tmp_path / "v1" / "lora", rng, **SMALL)
    adapter(base, tmp_path / "v2" / "lora", rng, **SMALL)
    links = [tmp_path / "anna", tmp_path / "ben"]
    for link, version in zip(links, ("v1", "v2")):
        link.symlink_to(tmp_path / version / "lora")
    adapters = Adapters(base, Pool(40, 16), links)
    assert adapters.names == ["anna", "ben"]
    first = adapters.hold("anna")
    links[0].unlink()
    links[0].symlink_to(tmp_path / "v2" / "lora")  # the next version
    assert adapters.hold("anna") is not first


def vanished(folder):
    shutil.rmtree(folder)


def cut_off(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def no_json(folder):
    (folder / "adapter_config.json").write_text("{")


def other_base(folder):
    record = {"base": {"name": "other", "fingerprint": "0123456789abcdef"}}
    (folder / "training.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "broken, said",
    [
        (vanished, "No such file"),
        (cut_off, "not a readable"),
        (no_json, "adapter_config.json"),
        (other_base, "another base"),
    ],
)
def test_a_broken_adapter_is_an_error_and_takes_no_page(base, tmp_path, rng, broken, said):
    adapters, pool = shelf(base, tmp_path, rng, "ab")
    adapters.release(adapters.hold("a"))
    broken(tmp_path / "a")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=said):
            if broken is other_base:
                adapters.remove("a")
                adapters.add(tmp_path / "a")
            adapters.hold("a")
    assert (adapters.pages, pool.free) == (0, 40)
    assert adapters.hold("b").users == 1


def test_what_does_not_fit_the_base_is_an_error(base, tmp_path, rng):
    wide = llama().__class__(llama().config.__class__(50, 64, 2, 4, 2, 64, 48), rng)
    adapter(wide, tmp_path / "wide", rng, **SMALL)
    adapter(gpt(), tmp_path / "gpt", rng, **SMALL)
    save_adapter(
        inject(base, make_method("dora", r=2, target_modules=["q_proj"]), rng), tmp_path / "dora"
    )
    adapter(base, tmp_path / "large", rng, r=8, target_modules="all-linear")
    embedding = inject(base, LoraConfig(r=2, target_modules=["embed_tokens"]), rng)
    save_adapter(embedding, tmp_path / "embedding")
    adapters = Adapters(base, Pool(40, 16), sorted(tmp_path.iterdir()))
    said = {
        "wide": "with shape",
        "gpt": "which the model does not have",
        "dora": "the method is 'dora', expected LoRA",
        "embedding": "a factor of an embedding",
        "large": "pages, but the pool has 40",
    }
    assert sorted(said) == sorted(adapters.names)
    for name, words in said.items():
        with pytest.raises(CheckpointError, match=words):
            adapters.hold(name)
    assert adapters.pages == 0
