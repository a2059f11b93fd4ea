"""Crews: alone, threads, forked processes. Also memory that processes share, and BLAS's threads."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from lora_np import crew
from lora_np.crew import (
    Alone,
    CrewError,
    Processes,
    Threads,
    machine,
    one_blas_thread,
    processes,
    shared_empty,
    threads_at_work,
)

needs_fork = pytest.mark.skipif(not crew.can_fork(), reason="processes are forked on Linux only")
CREWS = [
    Alone,
    functools.partial(Threads, size=3),
    pytest.param(functools.partial(Processes, size=3), marks=needs_fork),
]
every_crew = pytest.mark.parametrize("make", CREWS, ids=["alone", "threads", "processes"])


def blas():
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


@every_crew
def test_a_crew_works_item_by_item_in_order(make):
    offset = 0.5
    with make(lambda member, item: (member, item + offset)) as workers:
        assert workers.map([10, 20, 30]) == [(0, 10.5), (1, 20.5), (2, 30.5)]
        assert workers.map([7]) == [(0, 7.5)]
        assert workers.map([]) == []


@every_crew
def test_an_error_reaches_the_caller_and_the_crew_goes_on(make):
    with make(lambda member, item: 1 // item) as workers:
        with pytest.raises(ZeroDivisionError):
            workers.map([1, 0, 1])
        assert workers.map([1, 1, 1]) == [1, 1, 1]


@every_crew
def test_work_is_done_under_the_callers_errstate(make):
    work = make(lambda member, item: float(np.float64(item) * 10.0))
    with np.errstate(over="raise"), work as workers, pytest.raises(FloatingPointError):
        workers.map([1e308])
    with np.errstate(over="ignore"), work as workers:
        assert workers.map([1e308]) == [np.inf]


@pytest.mark.parametrize("make", CREWS[1:], ids=["threads", "processes"])
def test_members_have_blas_at_one_thread_and_the_setting_is_restored(make):
    before = blas()
    with make(lambda member, item: blas()) as workers:
        assert workers.map([0, 0]) == [[1] * len(before)] * 2
    assert blas() == before


@pytest.mark.parametrize("make", CREWS[1:], ids=["threads", "processes"])
def test_members_work_at_the_same_time(make):
    ours, theirs = os.pipe()

    def meet(member, item):  # each waits for the byte that the other writes
        if member == 0:
            os.write(theirs, b"x")
            return b""
        return os.read(ours, 1)

    with make(meet) as workers:
        assert workers.map([0, 0]) == [b"", b"x"]
    os.close(ours)
    os.close(theirs)


@needs_fork
def test_processes_share_what_was_made_shared_and_nothing_else():
    shared, private = shared_empty((2, 3), np.float32), np.zeros((2, 3))
    assert shared.shape == (2, 3) and shared.dtype == np.float32 and not shared.any()

    def write(member, item):
        shared[member] += item
        private[member] += item

    with Processes(write, 2) as workers:
        shared[0] = 1.0  # seen by them, although they were forked before
        workers.map([5, 7])
    assert shared.tolist() == [[6.0] * 3, [7.0] * 3] and not private.any()


def test_shared_memory_can_be_empty():
    assert shared_empty((0, 4), np.float64).shape == (0, 4)


@needs_fork
def test_processes_can_be_used_again_and_none_stays():
    workers = Processes(lambda member, item: os.getpid(), 2)
    seen = []
    for _ in range(2):
        with workers:
            running = list(workers.processes)
            seen += workers.map([0, 0])
        assert all(process.exitcode == 0 for process in running)
    assert len({*seen, os.getpid()}) == 5


@needs_fork
def test_a_process_that_was_killed_is_an_error_and_not_a_wait():
    def work(member, item):
        if item:
            os.kill(os.getpid(), signal.SIGKILL)

    with Processes(work, 2) as workers:
        with pytest.raises(CrewError, match="one of 2 processes was killed"):
            workers.map([False, True])
        with pytest.raises(CrewError, match="was interrupted"):
            workers.map([False, False])


class Stubborn(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")  # cannot be unpickled: two is missing


@needs_fork
def test_an_error_that_does_not_survive_pickling_comes_as_its_text():
    def fail(member, item):
        raise Stubborn("this", "that")

    with Processes(fail, 1) as workers, pytest.raises(CrewError, match="Stubborn: this and that"):
        workers.map([0])


@needs_fork
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
def test_processes_end_with_their_parent(end):
    program = f"""
import os, signal
from lora_np.crew import Processes
with Processes(lambda member, item: print("worked", flush=True), 2) as workers:
    workers.map([0, 0])
    {end}
"""
    # Returns when nobody holds the other end of stdout any more.
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and done.stdout.count("worked") == 2 and done.stderr == ""


@pytest.mark.parametrize("make", CREWS[1:], ids=["threads", "processes"])
def test_a_crew_outside_its_with_block_says_so(make):
    workers = make(lambda member, item: item)
    with pytest.raises(CrewError, match="inside its with block"):
        workers.map([1])
    with workers:
        assert workers.map([1]) == [1]
    with pytest.raises(CrewError, match="inside its with block"):
        workers.map([1])


@needs_fork
def test_no_answer_is_taken_for_that_of_a_later_question():
    with Processes(lambda member, item: item, 2) as workers:
        with pytest.raises(Exception, match="pickle"):
            workers.map([1, lambda: 0])  # the first is on its way when the second fails
        with pytest.raises(CrewError, match="was interrupted"):
            workers.map([5, 6])


@needs_fork
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_whatever_ends_the_work_reaches_the_caller(error):
    def leave(member, item):
        raise error("on purpose")

    with Processes(leave, 1) as workers, pytest.raises(error, match="on purpose"):
        workers.map([0])


@needs_fork
def test_a_fork_of_somebody_else_does_not_keep_processes_waiting():
    with Processes(lambda member, item: item, 2) as workers:
        other = multiprocessing.get_context("fork").Process(target=signal.pause)
        other.start()  # holds the ends of all pipes
        running = list(workers.processes)
    other.kill()
    other.join()
    assert [process.exitcode for process in running] == [0, 0]  # not killed after some patience


@needs_fork
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_in_the_middle_leaves_no_process_and_blas_as_it_was(times):
    program = f"""
import multiprocessing, os, signal
from threadpoolctl import threadpool_limits, threadpool_info
import numpy
from lora_np.crew import Processes

def blas():
    return [lib["num_threads"] for lib in threadpool_info()]

def work(member, item):
    if member == 1:
        os.kill(os.getppid(), signal.SIGINT)
        while item and os.getppid() != 1:  # until it is killed
            pass
    return member

before = blas()
workers = Processes(work, 2)
try:
    with workers:
        if {times} == 2:  # Ctrl-C again, while the processes are waited for
            first = workers.processes[0]
            join = first.join
            def interrupted(*args):
                first.join = join
                os.kill(os.getpid(), signal.SIGINT)
            first.join = interrupted
        workers.map([False, {times} == 2])
except KeyboardInterrupt:
    print("stopped", blas() == before, multiprocessing.active_children())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "stopped True []\n" and done.stderr == ""


@needs_fork
def test_ctrl_c_ends_the_parent_with_its_own_words_alone():
    program = """
import os, signal
from lora_np.crew import Processes
with Processes(lambda member, item: print("worked", flush=True), 2) as workers:
    workers.map([0, 0])
    try:
        os.killpg(0, signal.SIGINT)  # as a terminal does: to all of the group
        signal.pause()
    except KeyboardInterrupt:
        workers.map([0, 0])
        print("stopped")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.stdout.count("worked") == 4 and done.stdout.endswith("stopped\n")
    assert done.stderr == ""


def test_where_nothing_can_be_forked_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(processes.sys, "platform", "darwin")
    with pytest.raises(ValueError, match="use threads"):
        Processes(lambda member, item: None, 2)


@needs_fork
def test_a_fork_that_fails_leaves_blas_as_it_was(monkeypatch):
    def fail():
        raise BlockingIOError("no more processes")

    before = blas()
    monkeypatch.setattr(os, "fork", fail)
    with pytest.raises(BlockingIOError), Processes(lambda member, item: None, 2):
        pass
    assert blas() == before


def test_blas_is_looked_for_again_only_once_more_modules_are_loaded(monkeypatch):
    machine._controller.cache_clear()
    for module in (None, None, "one_with_a_blas"):
        if module:
            monkeypatch.setitem(sys.modules, module, machine)
        with one_blas_thread():
            assert set(blas()) == {1}
    assert machine._controller.cache_info().misses == 2


def test_one_blas_thread_is_restored_by_the_last_one_out():
    before, inside = blas(), threading.Event()
    leave = threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        inside.wait()
    assert blas() == [1] * len(before)
    leave.set()
    thread.join()
    assert blas() == before


# ------------------------------------------------------------ beside others, and after a stop


@needs_fork
def test_a_stopped_process_is_named_after_a_while(monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.01)
    monkeypatch.setattr(processes, "PATIENCE", 0.05)

    def work(member, item):
        if item:
            os.kill(os.getpid(), signal.SIGSTOP)

    with Processes(work, 2) as workers:
        pids = [process.pid for process in workers.processes]
        with pytest.raises(CrewError, match=f"process {pids[1]} was stopped from outside"):
            workers.map([False, True])
        running = list(workers.processes)
    assert not any(process.is_alive() for process in running)


@needs_fork
def test_a_process_that_waits_for_ever_is_named(monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.01)
    monkeypatch.setattr(processes, "STUCK", 0.05)
    monkeypatch.setattr(processes, "PATIENCE", 0.05)
    with (
        Processes(lambda member, item: threading.Event().wait(), 1) as workers,
        pytest.raises(CrewError, match=r"process \d+ has not computed for \d+ s \(state S\)"),
    ):
        workers.map([0])


@needs_fork
def test_a_process_that_computes_for_long_is_left_alone(monkeypatch):
    monkeypatch.setattr(processes, "BEAT", 0.001)
    monkeypatch.setattr(processes, "STUCK", 0.01)
    monkeypatch.setattr(processes, "PATIENCE", 0.01)

    def work(member, item):
        start = time.process_time()
        while time.process_time() < start + 0.1:
            pass
        return item

    with Processes(work, 2) as workers:
        assert workers.map([7, 8]) == [7, 8]


def test_threads_at_work_are_told_from_those_that_wait():
    done, started = threading.Event(), threading.Event()

    def busy():
        started.set()
        while not done.is_set():
            np.ones((64, 64)) @ np.ones((64, 64))

    with ThreadPoolExecutor(1) as idle:
        idle.submit(int).result()
        waiting = threading.Thread(target=done.wait, name="waits")
        working = threading.Thread(target=busy, name="computes")
        waiting.start()
        working.start()
        started.wait()
        found = threads_at_work()
        done.set()
        working.join()
        waiting.join()
    assert found == ["computes"]
    assert threads_at_work() == []
