"""lora_np.images.adapters: weighed sums, as combine writes them, on the right base alone."""

import re
import shutil

import numpy as np
import pytest

from lora_np import cli, combine_adapters, load_adapter
from lora_np.files import CheckpointError, load_json, save_json
from lora_np.images import Base, SvdCodec, adapted, letters
from lora_np.images.adapters import cautions, needed_sampler
from tests.images.tiny import base, write_lcm, write_style

WORDS = np.array([[17, 1], [0, 2], [26, 3], [5, 3]])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a style, another, an acceleration, and one of all weights."""
    folder = tmp_path_factory.mktemp("shelf")
    write_style(folder / "bold", seed=0)
    write_style(folder / "other", r=3, seed=1)
    write_style(folder / "full", r=None)
    write_lcm(folder / "lcm")
    return folder


def predicted(denoiser):
    rng = np.random.default_rng(3)
    z = rng.standard_normal((4, base().codec.k), np.float32)
    return denoiser.forward(z, np.full(4, 0.6, np.float32), WORDS)[0]


def weights_of(denoiser, path="body.block.0.layer.up_proj"):
    layer = denoiser.modules()[path]
    return layer.merged().W.value if hasattr(layer, "merged") else layer.W.value


def test_the_record_says_what_the_adapter_is_for(shelf):
    style, lcm = (load_json(shelf / name / "training.json") for name in ("bold", "lcm"))
    assert style["base"]["codec"] == lcm["base"]["codec"] == base().codec.digest()
    assert (style["kind"], style.get("sampler")) == ("style", None)
    assert (lcm["kind"], lcm["sampler"], lcm["guidance"]) == ("lcm", "consistency", [1.0, 1.5])


def test_every_weight_is_that_of_the_sum(shelf):
    """W = W0 + l1 tau_1 + l2 tau_2 + l3 tau_3, from the three adapters one by one."""
    folders, weights = [shelf / name for name in ("bold", "other", "lcm")], [1.25, -0.5, 0.75]
    W0 = weights_of(base().denoiser)
    taus = [weights_of(load_adapter(base().denoiser, folder)) - W0 for folder in folders]
    assert all(np.abs(tau).max() > 1e-3 for tau in taus)  # each does something
    expected = W0 + sum(w * tau for w, tau in zip(weights, taus))
    found = weights_of(adapted(base(), folders, weights))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.4, -1.5])
def test_one_adapter_has_its_weight(shelf, weight):
    W0 = weights_of(base().denoiser)
    tau = weights_of(load_adapter(base().denoiser, shelf / "bold")) - W0
    found = weights_of(adapted(base(), [shelf / "bold"], [weight]))
    np.testing.assert_allclose(found, W0 + weight * tau, atol=1e-6)


def test_the_sum_agrees_with_what_the_command_combine_writes(shelf, tmp_path):
    both = [shelf / "bold", shelf / "lcm"]
    words = ["combine", *map(str, both), "--weights", "0.8", "1", "--out", str(tmp_path / "sum")]
    assert cli.main(words) == 0
    ours, theirs = (
        adapted(base(), both, [0.8, 1.0]),
        load_adapter(base().denoiser, tmp_path / "sum"),
    )
    np.testing.assert_allclose(predicted(ours), predicted(theirs), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        predicted(adapted(base(), [tmp_path / "sum"], [1.0])), predicted(ours), atol=1e-6
    )
    assert needed_sampler([tmp_path / "sum"], [1.0]) == "consistency"
    with pytest.raises(CheckpointError, match="was trained on another base"):
        adapted(base(1), [tmp_path / "sum"], [1.0])


def test_a_weight_of_zero_leaves_the_adapter_out(shelf):
    both = [shelf / "bold", shelf / "lcm"]
    alone = adapted(base(), both[:1], [0.5])
    np.testing.assert_array_equal(predicted(adapted(base(), both, [0.5, 0.0])), predicted(alone))
    assert adapted(base(), both, [0.0, 0.0]) is base().denoiser
    assert needed_sampler(both, [1.0, 0.0]) is None and needed_sampler(both, [0.0, 1.0])


def test_the_base_stays_as_it_was(shelf):
    before = {name: p.value.copy() for name, p in base().denoiser.parameters().items()}
    adapted(base(), [shelf / "bold", shelf / "lcm"], [2.0, 1.0])
    for name, p in base().denoiser.parameters().items():
        np.testing.assert_array_equal(p.value, before[name])


def test_all_weights_are_used_as_they_are_or_not_at_all(shelf):
    full = adapted(base(), [shelf / "full"], [1.0])
    assert np.abs(predicted(full) - predicted(base().denoiser)).max() > 1e-2
    for folders, weights in (([shelf / "full"], [0.5]), ([shelf / "full", shelf / "bold"], [1, 1])):
        with pytest.raises(ValueError, match="full is not LoRA, which alone can be"):
            adapted(base(), folders, weights)


@pytest.mark.parametrize(
    "folders, weights, said",
    [
        (["bold"], [1.0, 2.0], "2 weights for 1 adapter: give one for each"),
        (["bold", "lcm"], [1.0], "1 weight for 2 adapters: give one for each"),
        (["bold"], [np.nan], "weight nan of .*bold: expected a finite number"),
    ],
)
def test_counts_and_weights_are_checked(folders, weights, said, shelf):
    with pytest.raises(ValueError, match=said):
        adapted(base(), [shelf / name for name in folders], weights)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    write_style(tmp_path / "bold", of=base(1))
    for weight in (1.0, 0.5, 0.0):
        with pytest.raises(CheckpointError, match="bold was trained on another base"):
            adapted(base(0), [tmp_path / "bold"], [weight])


def test_an_adapter_of_another_codec_is_refused(shelf):
    images = letters(np.random.default_rng(5), 300).images
    other = Base(base().denoiser, SvdCodec.fit(images, base().codec.k))
    with pytest.raises(CheckpointError, match="bold was trained on latents of another codec"):
        adapted(other, [shelf / "bold"], [1.0])


def test_an_adapter_without_a_record_passes(shelf, tmp_path):
    shutil.copytree(shelf / "lcm", tmp_path / "lcm")
    (tmp_path / "lcm" / "training.json").unlink()
    found = adapted(base(), [tmp_path / "lcm"], [1.0])
    np.testing.assert_array_equal(
        predicted(found), predicted(adapted(base(), [shelf / "lcm"], [1.0]))
    )
    assert needed_sampler([tmp_path / "lcm"], [1.0]) is None


def test_combining_adapters_keeps_the_whole_base(shelf, tmp_path):
    combine_adapters([shelf / "bold", shelf / "other"], [1, 1], tmp_path / "sum")
    record = load_json(tmp_path / "sum" / "training.json")
    assert record == {"base": load_json(shelf / "bold" / "training.json")["base"]}


# ----------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    "names, weights, sampler, steps, guidance, said",
    [
        (["bold"], [1], "ddim", 4, 2.0, []),
        (["lcm"], [1], "consistency", 2, 1.0, []),
        (["lcm", "bold"], [1, 1], "consistency", 2, 1.0, []),
        (["lcm"], [1], "ddim", 2, 1.0, ["lcm was distilled for the sampler consistency, not ddim"]),
        (["lcm"], [0], "ddim", 2, 1.0, []),
        (["lcm"], [1], "consistency", 2, 2.0, ["has guidance 1.0 to 1.5 built in, and guidance 2"]),
        (["bold"], [1], "consistency", 1, 1.0, ["no adapter .* under the noise, a blur"]),
        ([], [], "consistency", 4, 1.0, ["no adapter is distilled .* adds fresh noise"]),
        (["lcm"], [1], "ddpm", 2, 0.0, ["not ddpm: its x0 is the end", "letters once more: use 1"]),
    ],
)
def test_what_will_not_draw_well_is_said_with_the_reason(
    names, weights, sampler, steps, guidance, said, shelf
):
    found = cautions([shelf / name for name in names], weights, sampler, steps, guidance)
    assert len(found) == len(said)
    for sentence, expected in zip(found, said):
        assert re.search(expected, sentence), sentence


def test_a_record_of_somebody_else_needs_no_sampler(shelf, tmp_path):
    shutil.copytree(shelf / "bold", tmp_path / "bold")
    for record in ([], {"sampler": 5}, {"sampler": "euler"}, {"sampler": ["ddim"]}, {"base": 1}):
        save_json(tmp_path / "bold" / "training.json", record)
        assert needed_sampler([tmp_path / "bold"], [1.0]) is None
    save_json(
        tmp_path / "bold" / "training.json", {"sampler": "consistency", "guidance": [{"a": 1}]}
    )
    assert cautions([tmp_path / "bold"], [1.0], "consistency", 2, 1.0) == []
