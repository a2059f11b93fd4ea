"""The engine's thread: order, batches of tokens, commands that fail, and a crash."""

import asyncio
import threading

import pytest

from lora_np.serve.http.worker import Stopped, Worker
from tests.serve.fake import CRASH, FakeEngine


class Sink:
    """Keeps what it takes."""

    def __init__(self):
        self.events, self.over = [], asyncio.Event()

    def take(self, event):
        self.events.append(event)
        if type(event) is not int:
            self.over.set()


def run(scenario, engine=None):
    """Run a coroutine function of a worker; return the worker, which has ended."""

    async def main():
        worker = Worker(engine or FakeEngine(), asyncio.get_running_loop(), crashed.set)
        worker.start()
        try:
            await asyncio.wait_for(scenario(worker), 20)
        finally:
            worker.stop()
            await asyncio.to_thread(worker.join, 20)
        await asyncio.sleep(0)  # what it has posted is taken
        return worker

    crashed = threading.Event()
    worker = asyncio.run(main())
    assert not worker.is_alive() and crashed.is_set() == (worker.error is not None)
    return worker


async def result(future):
    return await asyncio.wrap_future(future)


def test_tokens_come_in_order_and_then_the_request():
    async def scenario(worker):
        sink = Sink()
        request = await result(worker.submit(sink, "sql", [1, 2, 3], 5, stop=()))
        await sink.over.wait()
        assert sink.events == [1, 2, 3, 1, 2, request] and request.state == "done"
        assert await result(worker.do(lambda engine: engine.counts())) == worker.counts
        assert worker.counts[:2] == (0, 0)

    run(scenario)


def test_a_command_that_fails_fails_alone():
    async def scenario(worker):
        sink = Sink()
        with pytest.raises(ValueError, match="the context has 160"):
            await result(worker.submit(sink, None, [1], 1000))
        with pytest.raises(ZeroDivisionError):
            await result(worker.do(lambda engine: 1 / 0))
        assert await result(worker.do(lambda engine: engine.names)) and sink.events == []

    assert run(scenario).error is None


def test_a_cancelled_request_is_over_once():
    engine = FakeEngine()
    engine.steps = threading.Semaphore(2)

    async def scenario(worker):
        sink = Sink()
        request = await result(worker.submit(sink, None, [1], 100))
        worker.cancel(sink)
        worker.cancel(sink)
        engine.steps.release(100)
        await sink.over.wait()
        worker.cancel(sink)  # when it is over, nothing happens
        await result(worker.do(lambda engine: None))
        assert request.state == "cancelled" and sink.events.count(request) == 1
        assert len(sink.events) <= 4

    run(scenario, engine)


def test_a_command_that_nobody_waits_for_is_left_out():
    engine, called = FakeEngine(), []
    engine.steps = threading.Semaphore(0)

    async def scenario(worker):
        await result(worker.submit(Sink(), None, [1], 2))
        future = worker.do(called.append)  # while the step waits
        assert future.cancel()
        engine.steps.release(2)
        await result(worker.do(lambda engine: None))

    run(scenario, engine)
    assert called == []


def test_a_crash_fails_everybody_and_ends_the_thread():
    engine = FakeEngine()
    engine.steps = threading.Semaphore(0)

    async def scenario(worker):
        one, two = Sink(), Sink()
        await result(worker.submit(one, None, [1], 100))
        worker.submit(two, None, [CRASH], 100)
        engine.steps.release(10)
        await one.over.wait()
        await two.over.wait()
        assert one.events[-1] is two.events[-1] is worker.error
        with pytest.raises(Stopped):
            worker.do(lambda engine: None)
        worker.cancel(one)  # has nothing to cancel, and says nothing

    assert isinstance(run(scenario, engine).error, ArithmeticError)


def test_what_waits_in_the_inbox_at_the_end_is_told():
    engine = FakeEngine()
    engine.steps = threading.Semaphore(0)

    async def scenario(worker):
        sink = Sink()
        await result(worker.submit(sink, None, [1], 2))
        worker.stop()
        late = worker.do(lambda engine: "never")
        engine.steps.release(2)
        with pytest.raises(Stopped):
            await result(late)
        await sink.over.wait()
        assert isinstance(sink.events[-1], Stopped)

    assert run(scenario, engine).error is None
