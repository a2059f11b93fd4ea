"""A browser starts no thread and no process: members take turns there, to the same bits."""

import argparse
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from lora_np import GPT, GPTConfig, LoraConfig, fit, inject
from lora_np.cli.workers import jobs_of
from lora_np.crew import (
    CrewError,
    Exchange,
    Threads,
    cores,
    has_processes,
    has_threads,
    machine,
    one_blas_thread,
    progress_bar,
)
from lora_np.data import sample_batch


@pytest.fixture
def browser(monkeypatch):
    """A Python whose threads and processes are refused, as in a browser."""

    def refuse(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(machine, "has_threads", lambda: False)
    monkeypatch.setattr(machine, "has_processes", lambda: False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize("threads, processes", [(True, False), (False, False), (True, True)])
def test_what_the_machine_offers_is_read_from_python_itself(threads, processes, monkeypatch):
    assert has_threads() and has_processes()
    name = "pthread" if threads else "pthread-stubs"
    platform = "linux" if processes else "emscripten"
    own = SimpleNamespace(thread_info=SimpleNamespace(name=name), platform=platform)
    monkeypatch.setattr(machine, "sys", own)
    assert (has_threads(), has_processes()) == (threads, processes)


def trained(threads):
    """Return the losses and the adapter of a model with dropout, trained by some threads."""
    rng = np.random.default_rng(0)
    base = GPT(GPTConfig(32, 8, n_layer=1, n_head=2, d_model=8), rng)
    model = inject(base, LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear"), rng)
    tokens = rng.integers(0, 32, 200)
    history = fit(
        model,
        lambda: sample_batch(tokens, 4, 8, rng),
        steps=5,
        lr=0.01,
        rng=rng,
        threads=threads,
    )
    found = {name: p.value for name, p in model.parameters().items() if p.trainable}
    return history.loss, found


def test_the_halves_of_a_batch_one_after_the_other_give_the_bits_of_threads(browser, monkeypatch):
    losses, adapter = trained(threads=2)
    monkeypatch.undo()
    by_threads, other = trained(threads=2)
    assert losses == by_threads and losses[0] != losses[-1]
    assert adapter and all(np.array_equal(adapter[name], other[name]) for name in other)


def test_members_take_turns_in_a_copy_of_this_context(browser):
    def work(member, item):
        if member == 0:
            np.seterr(all="raise")
        return member, np.geterr()["divide"], threading.current_thread() is threading.main_thread()

    with Threads(work, 2) as crew:
        assert crew.map([7, 8]) == [(0, "raise", True), (1, np.geterr()["divide"], True)]
    with pytest.raises(CrewError, match="inside its with block"):
        crew.map([7])
    with Threads(lambda member, item: 1 / item, 2) as crew, pytest.raises(ZeroDivisionError):
        crew.map([0, 1])


def test_blas_is_left_alone_where_it_has_no_threads(browser):
    before = threadpool_info()
    with one_blas_thread():
        assert threadpool_info() == before
    assert cores() == 1


def test_members_that_would_wait_for_one_another_are_refused(browser):
    with pytest.raises(CrewError, match="starts no threads here"):
        Exchange(2, float, ["sums"])


def test_a_progress_bar_starts_no_thread_and_does_not_warn(browser, monkeypatch, capsys):
    from tqdm import tqdm

    monkeypatch.setattr(tqdm, "monitor_interval", 10)
    monkeypatch.setattr(tqdm, "monitor", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bar = progress_bar(range(3), file=sys.stdout)
        assert list(bar) == [0, 1, 2] and bar.monitor is None
    assert "3/3" in capsys.readouterr().out


def test_a_command_runs_in_one_process(browser, monkeypatch):
    settings = SimpleNamespace(device="cpu")
    assert jobs_of(argparse.Namespace(jobs=4), settings) == 1
    monkeypatch.undo()
    assert jobs_of(argparse.Namespace(jobs=4), settings) == 4
