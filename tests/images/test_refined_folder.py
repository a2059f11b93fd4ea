"""A refined base on the disk: made from a plain one, and with adapters of its own."""

import numpy as np
import pytest

from lora_np.files import CheckpointError, load_json
from lora_np.images import Refined, adapted, load_base
from lora_np.images.folder import refine_base
from tests.images.tiny import base, write_base, write_style


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A plain base, two refined ones with networks of their own, and a style of the first."""
    folder = tmp_path_factory.mktemp("refined")
    write_base(folder / "plain")
    for seed in (0, 1):
        refine_base(folder / "plain", folder / str(seed), seed)
    write_style(folder / "bold", of=load_base(folder / "0"), r=1)
    write_style(folder / "plain-bold", r=1)
    return folder


def test_the_denoiser_inside_is_that_of_the_plain_base(shelf):
    refined = load_base(shelf / "0").denoiser
    assert isinstance(refined, Refined)
    theirs = base().denoiser.parameters()
    for name, p in refined.denoiser.parameters().items():
        np.testing.assert_array_equal(p.value, theirs[name].value)


def test_a_refined_base_is_not_refined_again(shelf, tmp_path):
    with pytest.raises(CheckpointError, match="has convolutions around its denoiser already"):
        refine_base(shelf / "0", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_networks_with_other_weights_make_another_base(shelf):
    records = [load_json(shelf / name / "image_model.json") for name in ("plain", "0", "1")]
    assert len({record["weights"] for record in records}) == 3


@pytest.mark.parametrize("folder, adapter", [("1", "bold"), ("plain", "bold"), ("0", "plain-bold")])
def test_an_adapter_fits_only_the_networks_it_was_trained_on(folder, adapter, shelf):
    adapted(
        load_base(shelf / ("plain" if adapter == "plain-bold" else "0")), [shelf / adapter], [1]
    )
    with pytest.raises(CheckpointError, match="was trained on another base"):
        adapted(load_base(shelf / folder), [shelf / adapter], [1.0])
