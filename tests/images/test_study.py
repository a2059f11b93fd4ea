"""The report's work on tiny models: in which order, resumed, refused, and what it leaves."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lora_np.experiments.folder import SweepError
from lora_np.files import load_json
from lora_np.images import load_base
from lora_np.images.adapters import adapted
from lora_np.images.drawn import least, over_bars
from lora_np.images.plan import CHANGES, CHOSEN, NEEDS, ImagesSettings, all_work, next_work
from lora_np.images.study import check_images_run, run_images
from tests.images.tiny_run import TINY, hurry, timeless


def test_every_piece_of_work_comes_after_what_it_needs():
    settings, done = ImagesSettings(seeds=2), {}
    while waiting := next_work(settings, done):
        work = waiting[-1]  # in whatever order a pool ends them
        for what in NEEDS[work.what]:
            assert what in done or f"{what}, seed {work.seed}" in done
        done[str(work)] = {}
    assert list(done) != list(map(str, all_work(settings)))
    assert sorted(done) == sorted(map(str, all_work(settings)))


@pytest.mark.parametrize("change", [{"n": 100}, {"seeds": 0}])
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match="expected a multiple of 78 and at least 1"):
        ImagesSettings(**change)


def test_a_stopped_run_goes_on_where_it_stopped(stopped_run):
    _, held, results, after = stopped_run
    assert held["complete"] is False and results["complete"] is True
    assert {"judge", "base, seed 0", "regular, seed 0"} < set(held["done"])
    assert not set(after) & set(held["done"])
    assert set(after) | set(held["done"]) == set(results["done"])
    assert set(results["done"]) == set(map(str, all_work(TINY)))
    assert all(results["done"][work] == found for work, found in held["done"].items())


@pytest.mark.slow
def test_a_run_that_was_not_stopped_finds_the_same(stopped_run, tmp_path, monkeypatch):
    hurry(monkeypatch)
    assert timeless(run_images(TINY, tmp_path)) == timeless(stopped_run[2])


def test_a_complete_folder_is_only_read(stopped_run):
    out, _, results, _ = stopped_run
    before = (out / "results.json").stat().st_mtime_ns
    assert check_images_run(TINY, out) is True
    assert run_images(TINY, out, listen=pytest.fail) == json.loads(json.dumps(results))
    assert (out / "results.json").stat().st_mtime_ns == before


def test_a_folder_that_was_only_checked_can_be_run(tmp_path):
    assert check_images_run(TINY, tmp_path) is False
    assert check_images_run(TINY, tmp_path) is False  # and what the first one wrote is a run's


@pytest.mark.parametrize(
    "content, says",
    [
        ({"settings": {"task": "text"}, "complete": True}, "is not the results file of a report"),
        ({"settings": {"distil": {}}, "complete": True, "done": 3}, "is not the results file"),
        ({"settings": {"distil": {}}, "complete": True, "done": {}}, "is of other settings"),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path, content, says):
    text = json.dumps(content)
    (tmp_path / "results.json").write_text(text)
    for call in (run_images, check_images_run):
        with pytest.raises(SweepError, match=says):
            call(TINY, tmp_path)
    assert (tmp_path / "results.json").read_text() == text


def test_a_folder_of_other_settings_is_refused(stopped_run):
    with pytest.raises(SweepError, match="seeds 1, now 2"):
        run_images(replace(TINY, seeds=2), stopped_run[0])


def test_pictures_without_results_are_nothing_to_continue(tmp_path):
    (tmp_path / "images.txt").write_text("an older report")
    with pytest.raises(SweepError, match=r"holds images.txt, but no results.json"):
        run_images(TINY, tmp_path)


def test_every_training_leaves_a_model_that_can_be_drawn_with(stopped_run):
    models = stopped_run[0] / "models"
    z, t, words = np.ones((1, TINY.base.k), np.float32), np.full(1, 0.5, np.float32), [[17, 1]]
    for what in CHANGES:
        folder = models / f"{what}-0"
        base = load_base(models / load_json(folder / "training.json")["base"]["name"])
        v, bare = (
            model.forward(z, t, np.array(words))[0]
            for model in (adapted(base, [folder], [1.0]), base.denoiser)
        )
        assert np.isfinite(v).all() and not np.array_equal(v, bare)
    assert load_json(models / "lcm-0" / "training.json")["sampler"] == "consistency"


def row(part, model, fd, **how):
    return {"set": part, "model": model, "fd": fd, **how}


def test_the_weights_whose_worse_ratio_is_smallest_are_chosen():
    rows = [row(part, "style", 10.0, steps=n) for part in ("seen", "unseen") for n in (2, 50)]
    planted = {(1.0, 1.0): (9.0, 3.0), (1.0, 0.6): (7.0, 7.0), (0.6, 0.0): (1.0, 20.0)}
    for pair, (seen, unseen) in planted.items():
        rows += [row("seen", "sum", seen, weights=list(pair))]
        rows += [row("unseen", "sum", unseen, weights=list(pair))]
    over = over_bars(rows)
    assert over[1.0, 1.0] == {"seen": 9.0 / 8.0, "unseen": 3.0 / 7.5}
    assert least(over) == [1.0, 0.6]  # 7 / 7.5; (1, 1) is 9 / 8 on letters seen


def test_the_weights_are_chosen_among_those_that_were_tried(stopped_run):
    found = stopped_run[2]["done"][CHOSEN]
    pairs = [one["weights"] for one in found["rows"] if one["model"] == "sum"]
    assert found["weights"] in pairs
    assert sorted(pairs) == sorted(2 * [[1.0, 0.0], [1.0, 1.0]])  # seen and unseen; never no style


def test_weights_are_chosen_on_the_letters_that_the_style_is_not_judged_on(stopped_run):
    done = stopped_run[2]["done"]

    def floors(work):
        return {row["set"]: row["fd"] for row in done[work]["rows"] if row["model"] == "real"}

    chosen, judged = floors(CHOSEN), floors("styled, seed 0")
    assert judged["seen"] != judged["unseen"]
    assert chosen == {"seen": judged["unseen"], "unseen": judged["seen"]}


def test_the_ratio_of_speed_is_that_of_the_medians(stopped_run):
    speed = stopped_run[2]["done"]["speed"]
    fifty, one = (np.median(speed["seconds"][name]) for name in ("fifty", "one"))
    assert speed["ratio"] == pytest.approx(fifty / one)
