"""An adapter beside a record of its base: no command applies it to another one."""

import numpy as np
import pytest

from lora_np import LoraConfig, cli, load_adapter, load_llama
from lora_np.files import CheckpointError, TensorFile, load_json, save_json, save_tensors
from lora_np.finetune import Settings
from lora_np.finetune.prepare import prepare
from lora_np.methods import DoraConfig, OFTConfig
from lora_np.pretrained import fingerprint
from lora_np.pretrained.find import base_of_adapter, kept_of_records
from tests.adapters.llama_files import arrays, llama, write_folder, write_lora, write_model_gguf

PLAIN, DORA, OFT = LoraConfig(r=2), DoraConfig(r=2), OFTConfig()
EXPORT, TO_GGUF = "export --model {} --adapter LORA --out OUT", "convert LORA --to gguf --out OUT"
APPLIED = [  # every command that applies an adapter to a base, on every kind of base that it takes
    (PLAIN, EXPORT.format("FOLDER") + ".gguf"),
    (PLAIN, EXPORT.format("FOLDER")),
    (DORA, EXPORT.format("FILE")),
    (PLAIN, f"{TO_GGUF}.gguf --base FOLDER"),
    (PLAIN, f"{TO_GGUF}.gguf --base FILE"),
    (PLAIN, "convert LORA --rank 1 --out OUT --base FOLDER"),
    (DORA, "convert LORA --rank 1 --out OUT --base FOLDER"),
    (OFT, "convert LORA --rank 1 --out OUT --base FOLDER/model.safetensors"),
    (PLAIN, "merge --adapter LORA --base FOLDER --out OUT.safetensors"),
    (PLAIN, "merge --adapter LORA/adapter_model.safetensors --base FOLDER --out OUT.safetensors"),
    (PLAIN, "combine LORA OTHER --weights 1 1 --out OUT"),
]


def recorded(folder, base, name="a model"):
    save_json(folder / "training.json", {"base": {"name": name, "fingerprint": base}})


@pytest.fixture
def words_of(tmp_path):
    """The words of a command, with its files written."""

    def write(config, command):
        write_folder(tmp_path / "folder", llama())
        write_model_gguf(tmp_path / "base.gguf", llama())
        write_lora(tmp_path / "lora", llama(), config)
        write_lora(tmp_path / "other", llama(), config)
        recorded(tmp_path / "other", fingerprint(llama()))
        places = {"FOLDER": "folder", "FILE": "base.gguf", "LORA": "lora", "OUT": "x"}
        for word, name in {**places, "OTHER": "other"}.items():
            command = command.replace(word, str(tmp_path / name))
        return command.split()

    return write


@pytest.mark.parametrize("config, command", APPLIED)
def test_the_shapes_fit_and_only_the_record_tells(config, command, words_of, tmp_path, capsys):
    words = words_of(config, command)
    another = llama()
    another.parameters()["model.norm.gamma"].value[0] += 0.5
    recorded(tmp_path / "lora", fingerprint(another))
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "lora" in said and "another base" in said and fingerprint(another) in said
    assert str(tmp_path / "lora" / "training.json") in said or "combine" in command
    assert said.count("\n") == 1 and not [*tmp_path.glob("x*")]


@pytest.mark.parametrize("config, command", APPLIED)
def test_the_base_of_the_record_passes(config, command, words_of, tmp_path):
    words = words_of(config, command)
    recorded(tmp_path / "lora", fingerprint(llama()))
    assert cli.main(words) == 0 and [*tmp_path.glob("x*")]


@pytest.mark.parametrize("record", [[], {}, {"base": 1}, {"base": {"fingerprint": 5}}], ids=repr)
def test_a_record_of_somebody_else_names_no_base(record, words_of, tmp_path):
    words = words_of(PLAIN, "merge --adapter LORA --base FOLDER --out OUT.safetensors")
    save_json(tmp_path / "lora" / "training.json", record)
    assert base_of_adapter(tmp_path / "lora") is None
    assert cli.main(words) == 0


def test_a_model_in_memory_and_a_run_that_goes_on_are_compared_too(tmp_path):
    write_folder(tmp_path / "base", llama())
    write_lora(tmp_path / "lora", llama())
    recorded(tmp_path / "lora", "0123456789abcdef")
    with pytest.raises(CheckpointError, match=r"lora was trained on another base \('a model', "):
        load_adapter(llama(), tmp_path / "lora")
    (tmp_path / "my.txt").write_text("a text of my own\n" * 9)
    model, data, adapter = (str(tmp_path / name) for name in ("base", "my.txt", "lora"))
    with pytest.raises(CheckpointError, match="lora was trained on another base"):
        prepare(Settings(model=model, data=data, resume_adapter=adapter))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_checkpoint_has_its_models_fingerprint(dtype, tmp_path):
    """Whichever wrapper's or head's prefix its names have."""
    model = llama(n_layer=12)  # layer 10 stands before layer 2 in the order of names
    held = {name: x.astype(dtype) for name, x in arrays(model).items()}
    save_tensors(tmp_path / "a.safetensors", {f"_orig_mod.{n}": x for n, x in held.items()})
    save_tensors(tmp_path / "b.safetensors", {n.removeprefix("model."): x for n, x in held.items()})
    for name in "ab":
        with TensorFile(tmp_path / f"{name}.safetensors") as file:
            assert fingerprint(file) == fingerprint(model)


@pytest.mark.parametrize("missing", ["model.norm", "model.layers.0.input_layernorm"])
def test_a_part_of_a_checkpoint_cannot_be_compared_and_says_so(missing, words_of, tmp_path, capsys):
    words = words_of(PLAIN, "merge --adapter LORA --base FOLDER --out OUT.safetensors")
    recorded(tmp_path / "lora", fingerprint(llama()), name="mine")
    rest = {n: x for n, x in arrays(llama()).items() if n != f"{missing}.weight"}
    save_tensors(tmp_path / "folder" / "model.safetensors", rest)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "was trained on 'mine', and" in said and "is not a whole Llama" in said
    assert f"lacks '{missing}.weight'" in said and said.count("\n") == 1
    assert not [*tmp_path.glob("x*")]
    (tmp_path / "lora" / "training.json").unlink()
    assert cli.main(words) == 0


def test_a_quantised_model_is_compared_with_the_record(tmp_path):
    write_model_gguf(tmp_path / "base.gguf", llama())
    write_lora(tmp_path / "lora", llama())
    recorded(tmp_path / "lora", fingerprint(llama()))
    load_adapter(load_llama(tmp_path / "base.gguf", keep_quantised=True), tmp_path / "lora")


# ------------------------------------------------------------- an adapter made of other adapters

WRITERS = [  # every command that writes an adapter of others
    (PLAIN, "resize LORA --rank 1 --out OUT"),
    (PLAIN, "convert LORA --rank 1 --out OUT --base FOLDER"),
    (OFT, "convert LORA --rank 1 --out OUT --base FOLDER"),
    (PLAIN, "combine LORA OTHER --weights 1 1 --out OUT"),
    (PLAIN, "combine LORA OTHER --weights 1 1 --out OUT --method svd --rank 1"),
]


@pytest.mark.parametrize("config, command", WRITERS)
def test_what_is_made_of_an_adapter_still_names_its_base(config, command, words_of, tmp_path):
    words, base = words_of(config, command), fingerprint(llama())
    about = {"name": "mine", "fingerprint": base}
    save_json(tmp_path / "lora" / "training.json", {"base": about, "loss": [2.0, 1.0]})
    assert cli.main(words) == 0
    assert load_json(tmp_path / "x" / "training.json") == {"base": about}
    load_adapter(llama(), tmp_path / "x")
    another = llama()
    another.parameters()["model.norm.gamma"].value[0] += 0.5
    with pytest.raises(CheckpointError, match=r"x was trained on another base \('mine', "):
        load_adapter(another, tmp_path / "x")


@pytest.mark.parametrize("config, command", WRITERS)
def test_nobody_invents_a_base(config, command, words_of, tmp_path):
    assert cli.main(words_of(config, command)) == 0  # LORA has no record
    assert not (tmp_path / "x" / "training.json").exists()


def test_a_base_is_kept_if_all_have_it(tmp_path):
    for name, base in (("a", "x"), ("b", "x"), ("c", "y"), ("d", None)):
        (tmp_path / name).mkdir()
        if base is not None:
            recorded(tmp_path / name, base, name)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert kept_of_records([a, b]) == {"base": {"name": "a", "fingerprint": "x"}}
    assert kept_of_records([a, c]) == kept_of_records([a, d]) == kept_of_records([d, a]) == {}


def test_a_sampler_is_kept_if_all_that_name_one_agree(tmp_path):
    for name, record in (("a", {}), ("b", {"sampler": "x"}), ("c", {"sampler": "y"})):
        (tmp_path / name).mkdir()
        save_json(tmp_path / name / "training.json", record)
    a, b, c = (tmp_path / name for name in "abc")
    assert kept_of_records([a, b]) == kept_of_records([b, b]) == {"sampler": "x"}
    assert kept_of_records([a]) == kept_of_records([b, c]) == {}
