"""lora-np images: the chain from nothing to a picture, and one line for every mistake."""

import json
import shutil

import numpy as np
import pytest

from lora_np.cli import images as cli_images
from lora_np.cli.images import QUICK
from lora_np.files import load_json, save_json
from lora_np.images import SAMPLERS, SvdCodec, adapted, glyphs, letters, load_base, training
from lora_np.images.training import Mixed
from lora_np.train import resume
from tests.images.test_sheet import chunks, texts
from tests.images.tiny import SMALL, write_base, write_lcm, write_style

FEW = ("--steps", "4")


@pytest.fixture(autouse=True)
def tiny(request, monkeypatch):
    """A quick base that takes no time at all, but in slow tests."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(cli_images, "QUICK", SMALL)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A base, another one, and adapters of the first."""
    folder = tmp_path_factory.mktemp("shelf")
    write_base(folder / "base")
    write_base(folder / "another", seed=1)
    write_style(folder / "bold")
    write_lcm(folder / "lcm")
    write_style(folder / "full", r=None)
    return folder


@pytest.fixture
def images(command, shelf, tmp_path):
    """Run a command of images; BASE, BOLD and so on are folders of the shelf, OUT is new."""

    def run(line, *more):
        words = [*line.split(), *more]
        held = {path.name.upper(): path for path in shelf.iterdir()}
        held |= {"OUT": tmp_path / "out", "OUT.png": tmp_path / "out.png"}
        return command("images", *(held.get(word, word) for word in words))

    return run


def refused(said):
    """The one line that a mistake leaves; nothing is written."""
    status, out, err = said
    assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("lora-np: "), said
    return err


# ------------------------------------------------------------------------------ from nothing


def test_from_nothing_to_a_picture(images, tmp_path, command):
    base, bold, lcm, out = (tmp_path / name for name in ("b", "bold", "lcm", "lora.png"))
    status, said, _ = images("base --quick --seed 3 --out", base)
    assert status == 0 and said.startswith("a quick base, which draws worse: ")
    assert "48 latents" in said and load_json(base / "image_model.json")["seed"] == 3
    assert (
        images(
            "style --style bold --images 26 --letters ABCDE --r 2",
            "--base",
            base,
            *FEW,
            "--out",
            bold,
        )[0]
        == 0
    )
    assert images("distil --guidance 1.5,1 --r 2", "--base", base, *FEW, "--out", lcm)[0] == 0
    style, fast = (load_json(path / "training.json") for path in (bold, lcm))
    assert style["settings"]["of"] == "ABCDE" and style["settings"]["images"] == 26
    assert fast["guidance"] == [1.0, 1.5] and fast["sampler"] == "consistency"
    words = ["--base", base, "--adapter", bold, "--weight", "1.25", "--adapter", lcm]
    status, said, err = images("sample --text LORA --family serif --n 2", *words, "--out", out)
    assert (status, err) == (0, "") and "8 letters by consistency in 2 steps" in said
    about = texts(out)
    assert (about["text"], about["family"], about["n"], about["seed"]) == (
        "LORA",
        "serif",
        "2",
        "0",
    )
    assert (about["sampler"], about["steps"], about["guidance"]) == ("consistency", "2", "1.0")
    assert json.loads(about["adapters"]) == [[str(bold), 1.25], [str(lcm), 1.0]]
    record = load_json(base / "image_model.json")
    digests = {name: record[name] for name in ("fingerprint", "weights", "codec")}
    expected = {"name": str(base), **digests}
    assert json.loads(about["base"]) == expected and about["Software"].startswith("lora_np ")


@pytest.mark.parametrize("kind", ["style", "distil"])
def test_all_weights_can_be_trained(kind, images, tmp_path):
    assert images(f"{kind} --base BASE --full --out OUT", *FEW)[0] == 0
    assert images("sample --base BASE --prompt R --n 1 --out OUT.png --adapter OUT")[0] == 0


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(images, tmp_path):
    drawn = []
    for i, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{i}.png"
        assert images("sample --base BASE --prompt A", "--seed", seed, "--out", path)[0] == 0
        drawn.append(dict(chunks(path))[b"IDAT"])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "options, sampler, steps",
    [
        ("", "ddim", 20),
        ("--adapter BOLD", "ddim", 20),
        ("--adapter LCM", "consistency", 2),
        ("--adapter BOLD --adapter LCM", "consistency", 2),
        ("--adapter LCM --weight 0", "ddim", 20),
        ("--sampler dpm_solver", "dpm_solver", 8),
        ("--sampler ddpm --steps 3", "ddpm", 3),
    ],
)
def test_the_adapters_choose_the_sampler_and_the_sampler_its_steps(
    options, sampler, steps, images, tmp_path
):
    status, _, err = images(f"sample --base BASE --prompt R --n 1 --out OUT.png {options}")
    assert (status, err) == (0, "")
    about = texts(tmp_path / "out.png")
    assert (about["sampler"], about["steps"]) == (sampler, str(steps))


def test_a_weight_belongs_to_the_adapter_before_it(images, shelf, tmp_path):
    words = "sample --base BASE --prompt R --n 1 --out OUT.png"
    assert images(f"{words} --adapter BOLD --weight -0.5 --adapter LCM --weight 2e-1")[0] == 0
    held = json.loads(texts(tmp_path / "out.png")["adapters"])
    assert held == [[str(shelf / "bold"), -0.5], [str(shelf / "lcm"), 0.2]]


@pytest.mark.parametrize(
    "options", ["--weight 1 --adapter BOLD", "--adapter BOLD --weight 1 --weight 2"]
)
def test_more_weights_than_adapters_are_refused(options, images, capsys):
    with pytest.raises(SystemExit) as ended:
        images(f"sample --base BASE --prompt R --out OUT.png {options}")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "follows no --adapter of its own: give one for each" in said


def test_a_base_that_is_stopped_continues(images, tmp_path, monkeypatch):
    drawn, draw = [], Mixed.__call__

    def stopped(self):
        if len(drawn) == 5 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        drawn.append(1)
        return draw(self)

    monkeypatch.setattr(Mixed, "__call__", stopped)
    monkeypatch.setattr(resume, "KEEP_EVERY", 0.0)
    status, out, err = images("base --quick --out OUT")
    assert (status, out) == (130, "") and "stopped: run the same command to continue in" in err
    err = refused(images("sample --prompt R --out OUT.png --base OUT"))
    assert "run the same command as before to continue" in err
    (tmp_path / "again").touch()
    assert images("base --quick --out OUT")[0] == 0 and len(drawn) == SMALL["steps"]
    assert images("base --quick --out OUT")[0] == 0 and len(drawn) == SMALL["steps"]


def letters_seen(drawn, style):
    """Return the share of images of A to Z that are nearest to the mean of their own letter."""
    real = letters(np.random.default_rng(9), 2600, style)
    means = np.stack([real.images[real.words[:, 0] == i].mean(axis=0) for i in range(26)])
    distances = ((drawn[:, None] - means[None]) ** 2).sum(axis=(2, 3))  # (n, 26)
    return float((distances.argmin(axis=1) == np.arange(len(drawn)) % 26).mean())


@pytest.mark.slow
def test_the_quick_base_draws_letters_that_one_can_read_in_every_way(images, tmp_path):
    base, bold, lcm = (tmp_path / name for name in ("b", "bold", "lcm"))
    assert images("base --quick --out", base)[0] == 0
    assert images("style --base", base, "--out", bold)[0] == 0
    assert images("distil --base", base, "--out", lcm)[0] == 0
    held = load_base(base)
    words = np.array([[i, 3] for i in range(26)] * 8)

    def drawn(folders, sampler, steps):
        model, rng = adapted(held, folders, [1.0] * len(folders)), np.random.default_rng(0)
        return held.codec.decode(SAMPLERS[sampler](model, words, steps=steps, rng=rng))

    ways = {
        "base": ([], "ddim", 20, "regular"),
        "bold": ([bold], "ddim", 20, "bold"),
        "lcm": ([lcm], "consistency", 2, "regular"),
        "both": ([bold, lcm], "consistency", 2, "bold"),
    }
    found = {name: drawn(*way[:3]) for name, way in ways.items()}
    for name, x in found.items():
        assert letters_seen(x, ways[name][3]) > 0.8, name  # by chance 0.04
    ink = {name: float(x.mean()) for name, x in found.items()}
    for thin, thick in (("base", "bold"), ("lcm", "both")):  # real letters: -0.76 and -0.62
        assert ink[thick] > ink[thin] + 0.06


@pytest.mark.parametrize("k", [QUICK["k"], training.BaseSettings.k])
def test_the_bases_of_the_guide_can_hold_every_style_but_inverted(k):
    rng = np.random.default_rng(0)
    codec = SvdCodec.fit(letters(rng, QUICK["images"]).images, k)
    held = {s for s in glyphs.STYLES if codec.energy(letters(rng, 100, s).images) >= 0.9}
    assert held == set(glyphs.STYLES) - {"inverted"}


# -------------------------------------------------------------------------------- bad input

SAMPLE = "sample --base BASE --out OUT.png"
MISTAKES = {  # a command, and what is said
    "sample --base BASE --prompt R --out r.pdf": "--out r.pdf: the picture is a PNG",
    f"{SAMPLE} --prompt seriff": "word 'seriff' is unknown: did you mean serif",
    f"{SAMPLE} --prompt r": "letter 'r' is unknown: did you mean R?",
    f"{SAMPLE} --prompt bold": "'bold' is a style: a style is an adapter",
    f"{SAMPLE} --text LoRA": "letter 'o' is unknown: did you mean O?",
    f"{SAMPLE} --text L0RA": "letter '0' is unknown: expected one of A to Z",
    f"{SAMPLE} --text LORA --family sarif": "word 'sarif' is unknown: did you mean serif",
    f"{SAMPLE} --prompt R --family serif": "--family is for --text",
    f"{SAMPLE} --prompt R --n 0": "--n 0: expected 1 to 10000",
    f"{SAMPLE} --prompt R --n 1000000000": "--n 1000000000: expected 1 to 10000",
    f"{SAMPLE} --text LORA --n 2501": "--n 2501: expected 1 to 2500",
    f"{SAMPLE} --prompt R --guidance 1e300": "latents hold nan or inf: the model",
    f"{SAMPLE} --prompt R --adapter BOLD --weight 1e300": "latents hold nan or inf: the model",
    f"{SAMPLE} --prompt R --steps 0": "steps is 0: give a whole number from 1 to 1000",
    f"{SAMPLE} --prompt R --steps 1001": "steps is 1001: give a whole number from 1 to 1000",
    f"{SAMPLE} --prompt R --guidance nan": "guidance is nan",
    f"{SAMPLE} --prompt R --seed -1": "--seed -1: expected at least 0",
    f"{SAMPLE} --prompt R --adapter BOLD --weight inf": "weight inf of",
    f"{SAMPLE} --prompt R --adapter FULL --weight 0.5": "is not LoRA, which alone can be weighed",
    f"{SAMPLE} --prompt R --adapter FULL --adapter BOLD": "is not LoRA, which alone can be",
    f"{SAMPLE} --prompt R --adapter none": "none",
    "sample --base ANOTHER --out OUT.png --prompt R --adapter LCM": "trained on another base",
    "sample --base none --out OUT.png --prompt R": "none has no image_model.json: give the folder",
    "sample --base BOLD --out OUT.png --prompt R": "bold has no image_model.json: give the folder",
    "style --base BASE --out OUT --style blod": "style 'blod' is unknown: did you mean bold",
    "style --base BASE --out OUT --letters ABb": "letter 'b' is unknown: did you mean B?",
    "style --base BASE --out OUT --letters ABA": "of = 'ABA', expected one or more, each",
    "style --base BASE --out OUT --images 12": "12 images for 13 letters: give at least one",
    "style --base BASE --out OUT --r 0": "r = 0",
    "style --base BASE --out OUT --steps 0": "steps = 0",
    "style --base BASE --out OUT --lr -1": "lr = -1.0",
    "style --base BASE --out BOLD": "bold already exists: give the adapter a new folder",
    "style --base none --out BOLD": "bold already exists",  # said before any work
    "distil --base none --out OUT": "none has no image_model.json",
    "refine --base BASE --out BOLD": "bold holds adapter_config.json, but no image_model.json",
    "refine --base BASE --out ANOTHER": "another already holds an image model: choose another",
    "base --quick --out BOLD": "bold holds adapter_config.json, but no image_model.json",
    "base --quick --k 257 --out OUT": "k = 257, expected 1 to 256 for 300 images",
    "base --quick --seed 5 --out BASE": "base was begun with",
}


@pytest.mark.parametrize("line, said", MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(line, said, images, shelf, tmp_path):
    before = sorted(shelf.rglob("*"))
    assert said in refused(images(line))
    assert sorted(shelf.rglob("*")) == before
    assert not [*tmp_path.iterdir()]


def test_a_picture_is_not_overwritten(images, tmp_path):
    (tmp_path / "out.png").write_bytes(b"mine")
    assert "out.png already exists: choose another --out" in refused(images(f"{SAMPLE} --prompt R"))
    assert (tmp_path / "out.png").read_bytes() == b"mine"


def test_a_text_with_a_space_is_refused(images):
    assert "--text 'L A': expected letters" in refused(images(SAMPLE, "--text", "L A"))


def test_another_codec_is_refused(images, shelf, tmp_path):
    shutil.copytree(shelf / "bold", tmp_path / "bold")
    record = load_json(tmp_path / "bold" / "training.json")
    record["base"]["codec"] = "0123456789abcdef"
    save_json(tmp_path / "bold" / "training.json", record)
    err = refused(images(f"{SAMPLE} --prompt R --adapter", tmp_path / "bold"))
    assert "was trained on latents of another codec ('0123456789abcdef'" in err


def test_a_style_that_the_codec_cannot_hold_names_the_command_that_makes_one_that_can(images):
    err = refused(images("style --base BASE --out OUT --style outline"))
    assert "k = 48 keeps" in err and "of their energy, expected 90.0%" in err
    k = int(err.rpartition("--k ")[2].split()[0])
    assert 60 < k < 130 and f"lora-np images base --k {k} --out DIR makes such a base" in err


@pytest.mark.parametrize(
    "options, said",
    [
        ("--adapter LCM --sampler ddim", "was distilled for the sampler consistency, not ddim"),
        ("--adapter LCM --guidance 2", "has guidance 1.0 to 1.5 built in, and guidance 2 changes"),
        ("--sampler consistency --steps 1", "no adapter is distilled for the sampler consistency"),
    ],
)
def test_what_draws_badly_is_drawn_with_a_warning(options, said, images, tmp_path):
    status, out, err = images(f"{SAMPLE} --prompt R --n 1 {options}")
    assert status == 0 and "written to" in out and (tmp_path / "out.png").exists()
    assert err.startswith("lora-np: warning: ") and said in err and err.count("\n") == 1


def test_a_missing_font_is_named_and_the_others_go_on(images, tmp_path, monkeypatch):
    fonts = tmp_path / "fonts"
    shutil.copytree(glyphs._folder(), fonts, ignore=shutil.ignore_patterns("DejaVuSerif*"))
    monkeypatch.setattr(glyphs, "_folder", lambda: fonts)
    status, out, err = images("base --quick --out OUT")
    assert status == 0 and "written to" in out
    assert err == (
        f"lora-np: warning: the font {fonts / 'DejaVuSerif.ttf'} is missing: no regular serif "
        f"letters are drawn\n"
    )


def test_a_distillation_that_collapses_stops_and_leaves_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LEAST_SPREAD", 2.0)  # a share that no student has
    err = refused(images("distil --base BASE --out OUT --r 2", *FEW))
    assert "the student has collapsed" in err and "give it a lower learning rate" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["1,2,3", "x", "nan", "1,inf"])
def test_a_guidance_that_is_no_range_is_refused(text, images, capsys):
    with pytest.raises(SystemExit) as ended:
        images("distil --base BASE --out OUT --guidance", text)
    assert ended.value.code == 2
    assert f"'{text}': expected a number, or two as in 1,1.5" in capsys.readouterr().err
