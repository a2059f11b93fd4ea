"""lora_np.images.folder: a model comes back, a training continues, or one line says why."""

from dataclasses import replace

import numpy as np
import pytest

from lora_np.files import CheckpointError, load_arrays, load_json, save_arrays, save_json
from lora_np.images import folder as folder_module
from lora_np.images import load_base, make_base, save_base
from lora_np.images.folder import STATE, digests_of
from lora_np.images.training import Mixed
from lora_np.train import resume
from tests.images.tiny import BODY, SETTINGS, base, write_base


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_base_comes_back_bit_for_bit(tmp_path):
    again = load_base(write_base(tmp_path / "b"))
    assert again.codec.digest() == base().codec.digest()
    theirs = base().denoiser.parameters()
    for name, p in again.denoiser.parameters().items():
        np.testing.assert_array_equal(p.value, theirs[name].value)
    assert names(tmp_path / "b") == ["codec.npz", "denoiser.npz", "image_model.json"]


def test_bases_that_are_trained_apart_have_fingerprints_of_their_own(tmp_path):
    records = [save_base(tmp_path / str(seed), base(seed), BODY) for seed in (0, 1)]
    assert records[0]["fingerprint"] != records[1]["fingerprint"]
    assert records[0]["codec"] != records[1]["codec"]
    assert records[0] == {**records[0], **digests_of(base(0))}


def test_a_complete_base_is_only_read_and_never_overwritten(tmp_path):
    made = make_base(tmp_path, SETTINGS, 0)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert make_base(tmp_path, SETTINGS, 0) == made
    with pytest.raises(CheckpointError, match="already holds an image model: choose another --out"):
        save_base(tmp_path, base(), BODY)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "settings, seed, said",
    [
        (replace(SETTINGS, k=40), 0, r"begun with k = 48, now 40: choose another --out"),
        (SETTINGS, 3, r"begun with seed = 0, now 3: choose another --out"),
    ],
)
def test_another_training_in_the_same_folder_is_refused(settings, seed, said, tmp_path):
    make_base(tmp_path, SETTINGS, 0)
    with pytest.raises(CheckpointError, match=said):
        make_base(tmp_path, settings, seed)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, but no image_model\.json"):
        make_base(tmp_path, SETTINGS, 0)
    assert names(tmp_path) == ["notes.txt"]


def test_a_base_is_not_saved_into_a_folder_in_which_another_is_trained(tmp_path):
    begun = {"complete": False, "seed": 0}
    save_json(tmp_path / "image_model.json", begun)
    with pytest.raises(CheckpointError, match="already holds an image model"):
        save_base(tmp_path, base(), BODY)
    assert load_json(tmp_path / "image_model.json") == begun


@pytest.mark.parametrize("file", ["save_parameters", "save_arrays", "save_json"])
def test_a_saved_base_appears_with_all_its_files_or_not_at_all(file, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, file, stop)
        with pytest.raises(KeyboardInterrupt):
            write_base(tmp_path / "b")
    assert not [*tmp_path.iterdir()]
    load_base(write_base(tmp_path / "b"))


@pytest.mark.parametrize("stop_at", [0, 1, 7, 11])
def test_a_training_that_is_stopped_continues_bit_for_bit(stop_at, tmp_path, monkeypatch):
    drawn, draw = [], Mixed.__call__

    def counted(self):
        if len(drawn) == stop_at and not (tmp_path / "stopped.txt").exists():
            raise KeyboardInterrupt
        drawn.append(1)
        return draw(self)

    monkeypatch.setattr(Mixed, "__call__", counted)
    monkeypatch.setattr(resume, "KEEP_EVERY", 0.0)  # after every step
    with pytest.raises(KeyboardInterrupt):
        make_base(tmp_path / "b", SETTINGS, 0)
    assert (STATE in names(tmp_path / "b")) == (stop_at > 0)
    with pytest.raises(CheckpointError, match="was stopped: run the same command as before"):
        load_base(tmp_path / "b")
    (tmp_path / "stopped.txt").touch()
    made = make_base(tmp_path / "b", SETTINGS, 0)
    assert len(drawn) == SETTINGS.steps  # no step was taken twice
    assert made["weights"] == digests_of(base(0))["weights"]
    np.testing.assert_array_equal(
        load_base(tmp_path / "b").denoiser.body.in_proj.W.value,
        base(0).denoiser.body.in_proj.W.value,
    )
    assert STATE not in names(tmp_path / "b")


def change(name, content):
    """Return a function that writes over a part of the record."""

    def write(folder):
        save_json(
            folder / "image_model.json", {**load_json(folder / "image_model.json"), name: content}
        )

    return write


def edit_weight(folder):
    """Change one number that is no gain."""
    arrays = load_arrays(folder / "denoiser.npz")
    arrays["body.in_proj.W"][0, 0] += 1.0
    save_arrays(folder / "denoiser.npz", arrays)


BROKEN = {  # how a folder is broken, and what is said
    "empty": (
        lambda f: [path.unlink() for path in f.iterdir()],
        "give the folder of an image model",
    ),
    "no record": (lambda f: (f / "image_model.json").unlink(), "has no image_model.json"),
    "not JSON": (lambda f: (f / "image_model.json").write_text("{"), "not a readable JSON"),
    "a list": (
        lambda f: (f / "image_model.json").write_text("[1]"),
        "is not the record of an image",
    ),
    "another's": (lambda f: save_json(f / "image_model.json", {"a": 1}), "is not the record"),
    "body": (change("body", {"kind": "unet"}), "names no body that is known: mlp"),
    "no kind": (change("body", {**BODY, "kind": ["mlp"]}), "names no body"),
    "no body": (change("body", 5), "names no body"),
    "sizes": (change("body", {**BODY, "d": 0}), "size that is not a whole number"),
    "size": (change("body", {**BODY, "width": 3}), "fit no mlp"),
    "other size": (change("body", {**BODY, "d": 17}), "with shape"),
    "no weights": (lambda f: (f / "denoiser.npz").unlink(), "denoiser.npz does not exist"),
    "weights": (lambda f: (f / "denoiser.npz").write_bytes(b"x"), "not a readable .npz"),
    "codec": (
        lambda f: save_arrays(f / "codec.npz", {"a": np.ones(1)}),
        "codec.npz is not a codec",
    ),
    "one weight": (edit_weight, "denoiser.npz has changed since"),
    "fingerprint": (change("fingerprint", "0"), "denoiser.npz has changed since"),
    "digest": (change("codec", "0"), "codec.npz has changed since"),
}


@pytest.mark.parametrize("break_it, said", BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_one_clear_error(break_it, said, tmp_path):
    break_it(write_base(tmp_path / "b"))
    with pytest.raises(CheckpointError, match=said) as error:
        load_base(tmp_path / "b")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_path_without_a_folder_is_one_too(tmp_path):
    with pytest.raises(CheckpointError, match="nothing has no image_model"):
        load_base(tmp_path / "nothing")


def test_a_record_that_names_no_digest_of_the_weights_is_read(tmp_path):
    record = load_json(write_base(tmp_path / "b") / "image_model.json")
    del record["weights"]
    save_json(tmp_path / "b" / "image_model.json", record)
    assert digests_of(load_base(tmp_path / "b")) == digests_of(base())
