"""What every experiment is built on: runs on any executor, arrays that workers map, resuming."""

import errno
import json
import logging
import os
import pickle
import re
import shutil
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.crew import InProcess
from lora_np.experiments import runner
from lora_np.experiments.intrinsic import IntrinsicSettings, intrinsic_run
from lora_np.experiments.rank_sweep import (
    LinearSettings,
    SweepError,
    TextSettings,
    Trial,
    rank_sweep,
)
from lora_np.experiments.rank_sweep.report import table
from lora_np.experiments.rank_sweep.text import DeviceBatches, TextTask, rebuild_base
from lora_np.experiments.runner import mapped, run_all
from lora_np.experiments.terminal import Terminal
from lora_np.files import load_json, save_arrays, save_json
from lora_np.train import load_state, resume, save_state
from tests.tiny import TINY, write_texts

SMALL = LinearSettings(ranks=(1,), seeds=1, d_in=4, d_out=3, steps=5)  # of old_sweep.json
F64 = 1e-12  # float64, relative: a few steps of training on another processor
NAMES = ("method", "rank", "seed", "lr")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of a text sweep that takes less than a second."""
    english, code = write_texts(tmp_path_factory.mktemp("texts"))
    return TextSettings((1,), 1, pretrain_text=english, adapt_text=code, **TINY)


def without_seconds(results):
    plain = json.loads(json.dumps(results))
    for trial in (*plain["trials"], *plain.get("runs", ())):
        trial.pop("seconds", None)
    return plain


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -------------------------------------------------------------------- runs on any executor


class Idle(Executor):
    """An executor whose first call ends at once and whose others wait for ever."""

    def __init__(self):
        self.futures = []

    def submit(self, fn, /, *args):
        self.futures.append(Future())
        if len(self.futures) == 3:
            self.futures[0].set_result(fn(*args))
        return self.futures[-1]


def test_what_stops_a_loop_keeps_what_has_ended_and_cancels_what_waits():
    kept, executor = [], Idle()

    def keep(run, found, running):
        kept.append((found, running))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(lambda: [1, 2, 3], lambda run: 10 * run, keep, executor)
    assert kept == [(30, 2)] and [f.cancelled() for f in executor.futures] == [False, True, True]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_run_is_started_once_though_the_plan_names_it_again(number):
    started, kept = [], []

    def waiting():
        return [n for n in range(number) if n not in kept]

    run_all(waiting, started.append, lambda run, found, running: kept.append(run))
    assert started == kept == list(range(number))


# ------------------------------------------------------------------ arrays that are mapped


class Pickling(InProcess):
    """An executor that pickles each call as a process pool does, and notes how many bytes."""

    def __init__(self):
        self.sizes = []

    def submit(self, fn, /, *args, **kwargs):
        """Call what comes back from the pickle."""
        pickled = pickle.dumps((fn, args, kwargs))
        self.sizes.append(len(pickled))
        again, args, kwargs = pickle.loads(pickled)
        try:
            return super().submit(again, *args, **kwargs)
        except OSError as error:
            future = Future()
            future.set_exception(error)
            return future


class FarAway(Pickling):
    """A Pickling executor whose workers have no disk in common with this process."""

    error = FileNotFoundError

    def submit(self, fn, /, *args, **kwargs):
        """Call what comes back from the pickle, where no file can be seen."""

        def absent(path, **_):
            raise self.error(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner.np, "load", absent)
            return super().submit(fn, *args, **kwargs)


class AnotherUser(FarAway):
    """A Pickling executor whose workers may not look into the folder."""

    error = PermissionError


def measure(experiment, settings, folder, where=Pickling):
    """Run an experiment on an executor that pickles; return its results and the sizes."""
    executor = where()
    return experiment(settings, folder, executor=executor), executor.sizes


def test_a_trial_is_pickled_in_few_bytes_whatever_the_size_of_the_base(tiny, tmp_path):
    cases = [
        (rank_sweep, tiny, replace(tiny, d_model=32)),
        (rank_sweep, SMALL, replace(SMALL, d_in=99, d_out=98)),
        (
            intrinsic_run,
            IntrinsicSettings((40,), tiny),
            IntrinsicSettings((40,), replace(tiny, d_model=32)),
        ),
    ]
    for i, (experiment, small, large) in enumerate(cases):
        _, few = measure(experiment, small, tmp_path / f"small{i}")
        _, many = measure(experiment, large, tmp_path / f"large{i}")
        assert max(few) < 2000 and abs(max(many) - max(few)) < 20
    assert (tmp_path / "large0/base.npz").stat().st_size > 20 * 2000


@pytest.mark.parametrize("stopped", [False, True])
def test_mapped_arrays_give_equal_results_and_leave_no_file(tiny, tmp_path, stopped):
    expected = rank_sweep(tiny, tmp_path / "here")

    def stop(progress):
        if stopped and progress.done == 2:
            raise KeyboardInterrupt

    try:
        rank_sweep(tiny, tmp_path / "mapped", executor=Pickling(), listen=stop)
    except KeyboardInterrupt:
        assert names(tmp_path / "mapped") == ["base.json", "base.npz", "models", "results.json"]
    found, _ = measure(rank_sweep, tiny, tmp_path / "mapped")
    assert without_seconds(found) == without_seconds(expected)
    assert names(tmp_path / "mapped") == names(tmp_path / "here")


@pytest.mark.parametrize("executor", [None, Pickling()])
def test_a_mapped_file_that_a_killed_process_left_is_removed(tmp_path, executor):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_sweep(SMALL, tmp_path, listen=stop)
    (tmp_path / f"{runner.MAPPED}0123456789abcdef").write_bytes(b"half")
    rank_sweep(SMALL, tmp_path, executor=executor)
    assert names(tmp_path) == ["models", "results.json"]


@pytest.mark.parametrize("where", [FarAway, AnotherUser])
@pytest.mark.parametrize("experiment", [rank_sweep, intrinsic_run])
def test_workers_that_do_not_see_the_folder_are_sent_the_arrays(tiny, tmp_path, experiment, where):
    settings = tiny if experiment is rank_sweep else IntrinsicSettings((40,), tiny)
    expected = experiment(settings, tmp_path / "here")
    found, sizes = measure(experiment, settings, tmp_path / "far", where)
    assert without_seconds(found) == without_seconds(expected)
    assert min(sizes) < 2000 and max(sizes) > 20_000


def test_a_worker_reads_the_base_where_it_is_mapped_and_cannot_write_there(tiny, tmp_path):
    task = TextTask(tiny)
    with mapped(task.prepare(tmp_path, False), tmp_path) as shared:
        arrays = pickle.loads(pickle.dumps(shared))
        model = rebuild_base(tiny, arrays)
        for name, p in model.parameters().items():
            assert np.shares_memory(p.value, arrays[name]) and not p.value.flags.writeable


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["float32", "float64", "uint8", "int64", "bool"]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_arrays_of_any_type_and_shape_are_mapped_as_they_are(tmp_path_factory, kinds):
    rng = np.random.default_rng(0)
    arrays = {
        f"h.{i}.W": rng.integers(0, 2, shape).astype(dtype).T
        for i, (dtype, shape) in enumerate([*kinds, ("float64", [2, 1])])
    }
    with mapped(arrays, tmp_path_factory.mktemp("mapped")) as shared:
        assert list(shared) == list(arrays) and len(shared) == len(arrays)
        for name, array in arrays.items():
            found = shared[name]
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert np.array_equal(found, array) and found.flags.aligned


def test_a_base_of_thousands_of_arrays_is_mapped_without_a_warning(tmp_path):
    arrays = {f"blocks.{i}.attn.q_proj.W": np.full((2, 3), i) for i in range(3000)}
    with mapped(arrays, tmp_path) as shared:  # a longer header than NumPy's format 1.0 has
        assert all(np.array_equal(shared[name], array) for name, array in arrays.items())


def test_arrays_that_a_full_disk_does_not_take_are_an_error_that_says_so(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    said = f"^{re.escape(str(tmp_path))} cannot be written: {os.strerror(errno.ENOSPC)}$"
    with pytest.raises(OSError, match=said), mapped({"W": np.ones(9)}, tmp_path):
        pass
    assert names(tmp_path) == []


# ------------------------------------------------------------------- pretraining resumes


@pytest.fixture
def steps(monkeypatch):
    """The batches that are drawn; `steps.stop_at` says at which one Ctrl-C comes."""
    drawn, draw = [], DeviceBatches.__call__

    def counted(self):
        if len(drawn) == counted.stop_at:
            raise KeyboardInterrupt
        drawn.append(draw(self))
        return drawn[-1]

    counted.stop_at, counted.drawn = None, drawn
    monkeypatch.setattr(DeviceBatches, "__call__", counted)
    monkeypatch.setattr(resume, "KEEP_EVERY", 0.0)  # after every step
    return counted


def pretrained(settings, folder):
    """Return the arrays of the base that is made in a folder, and its bytes."""
    return TextTask(settings).prepare(folder, False), (folder / "base.npz").read_bytes()


@pytest.mark.parametrize("k", [0, 1, 4, 6])
def test_pretraining_that_is_stopped_continues_and_its_base_is_equal_bit_for_bit(
    tiny, tmp_path, steps, k
):
    settings = replace(tiny, pretrain_steps=7)
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    _, whole = pretrained(settings, tmp_path / "whole")
    steps.drawn.clear()
    steps.stop_at = k
    with pytest.raises(KeyboardInterrupt):
        pretrained(settings, tmp_path / "stopped")
    assert names(tmp_path / "stopped") == ["pretraining.npz"] * (k > 0)
    steps.stop_at = None
    _, stopped = pretrained(settings, tmp_path / "stopped")
    assert len(steps.drawn) == 7 and stopped == whole  # no step was taken twice
    assert names(tmp_path / "stopped") == ["base.json", "base.npz"]


@pytest.mark.parametrize("kept", ["damaged", "of other settings"])
def test_a_state_of_pretraining_that_does_not_fit_is_not_taken(tiny, tmp_path, steps, kept):
    (tmp_path / "whole").mkdir()
    _, whole = pretrained(tiny, tmp_path / "whole")
    steps.drawn.clear()
    steps.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        pretrained(tiny, tmp_path)
    path = tmp_path / "pretraining.npz"
    if kept == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        state = load_state(path)
        save_state(path, {**state, "key": {**state["key"], "pretrain_lr": 0.5}})
    steps.stop_at = None
    steps.drawn.clear()
    assert pretrained(tiny, tmp_path)[1] == whole and len(steps.drawn) == tiny.pretrain_steps


# ------------------------------------------------------------- results files of earlier versions


@pytest.fixture
def old(tmp_path):
    """The folder of a sweep that version 0.1.0 finished, without its models."""
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("old_sweep.json"), folder / "results.json")
    return folder


def test_a_finished_sweep_of_an_earlier_version_is_read(old):
    before = (old / "results.json").read_bytes()
    results = rank_sweep(SMALL, old)
    assert results == json.loads(before) and "r = 1" in str(table(results))
    assert (old / "results.json").read_bytes() == before


def test_an_unfinished_sweep_of_an_earlier_version_continues(old):
    whole = load_json(old / "results.json")
    kept = [whole["trials"][i] for i in (0, 5)]  # one of full fine-tuning, one of LoRA
    unfinished = {k: v for k, v in whole.items() if k not in ("runs", "spectrum")}
    save_json(old / "results.json", {**unfinished, "complete": False, "trials": kept})
    (old / "models").mkdir()
    for trial in kept:
        path = old / "models" / f"{Trial(*[trial[name] for name in NAMES])}.npz"
        save_arrays(path, {"W": np.zeros(1)})
    heard = []
    results = rank_sweep(SMALL, old, listen=heard.append)
    assert results["trials"][:2] == kept and len(heard) == len(results["trials"]) - 2
    for found, expected in zip(results["runs"], whole["runs"], strict=True):
        assert found["lr"] == expected["lr"]
        assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=F64)


# ---------------------------------------------------------------------- broken results files


def broken(results):
    """Yield names of what is changed, and the results with it changed."""
    trials = [{**results["trials"][0], "lr": [1]}]
    no_loss = [{k: v for k, v in t.items() if not k.endswith("loss")} for t in results["trials"]]
    yield "lr", {**results, "trials": trials}
    yield "no loss", {**results, "trials": no_loss}
    for trial in results["trials"]:
        loss = next(name for name in trial if name.endswith("loss"))
        yield "huge", {**results, "trials": [{**trial, loss: 10**400}]}
    yield "trials", {**results, "trials": {"a": 1}}
    for name in ("base_validation_loss", "floors"):
        if name in results and "d_in" in results["settings"]:
            yield name, {**results, name: [None]}


def broken_when_finished(results):
    """Yield the same of what only a finished experiment has."""
    for name in ("pretrained", "random"):
        if name in results:
            yield name, {**results, name: {}}
            yield f"rows of {name}", {**results, name: {**results[name], "rows": [1]}}
            yield f"d90 of {name}", {**results, name: {**results[name], "d90": None}}
    if "runs" in results:
        yield "count", {**results, "runs": [{**results["runs"][0], "trainable_parameters": []}]}
        yield "no floors", {k: v for k, v in results.items() if k != "floors"}


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("experiment", [rank_sweep, intrinsic_run])
def test_results_that_cannot_be_shown_or_continued_are_refused_in_one_line(
    tiny, tmp_path, experiment, complete
):
    settings = SMALL if experiment is rank_sweep else IntrinsicSettings((40,), tiny)
    results = experiment(settings, tmp_path) | {"complete": complete}
    cases = [*broken(results), *(broken_when_finished(results) if complete else ())]
    for name, content in cases:
        (tmp_path / "results.json").write_text(json.dumps(content))
        with pytest.raises(SweepError) as caught:
            experiment(settings, tmp_path)
        assert "results.json is not the results file of a" in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert load_json(tmp_path / "results.json") == content


# ---------------------------------------------------------------------------- the terminal


def test_the_terminal_says_what_a_folder_holds_and_nothing_of_a_new_one(tmp_path, capsys, caplog):
    terminal = Terminal(tmp_path)
    with caplog.at_level(logging.INFO, "lora_np"):
        terminal.start(30.0, 2)
    terminal.interrupted()
    assert caplog.messages == ["about 30 seconds in 2 processes"]
    stopped = "\nstopped: no run was finished; run the same command to continue\n"
    assert capsys.readouterr().err == stopped
    (tmp_path / "pretraining.npz").touch()
    terminal.interrupted()
    assert "no run was finished, and pretraining continues from" in capsys.readouterr().err
    save_json(tmp_path / "results.json", {"trials": [{}]})
    with caplog.at_level(logging.INFO, "lora_np"):
        terminal.start(30.0, 1)
    assert f"less for what {tmp_path} already holds" in caplog.messages[-1]
