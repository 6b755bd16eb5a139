"""Virtual time on asyncio's own loop, and what of the real world holds it."""

import asyncio
import socket
import threading
import unittest

import pytest

from libvnf.testing.clock import Clock, DeadlockError


class Virtual:
    """As a test network installs the clock: the task that enters is told of a deadlock."""

    def __init__(self, **options):
        self.clock = Clock(**options)

    async def __aenter__(self):
        self.clock.install(asyncio.current_task())
        return self.clock

    async def __aexit__(self, kind, error, traceback):
        self.clock.uninstall()
        self.clock.judge(error)


def test_an_hour_passes_without_waiting():
    async def main():
        async with Virtual() as clock:
            fired = []
            for minute in range(60):
                asyncio.get_running_loop().call_later(minute * 60.0, fired.append, minute)
            await asyncio.sleep(3600)
            assert fired == list(range(60))
            assert clock.now == 3600.0 == asyncio.get_running_loop().time()
            assert clock.jumps <= 61

    asyncio.run(main())


def test_timeouts_and_groups_of_asyncio_run_in_virtual_time():
    async def main():
        async with Virtual() as clock:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(600):
                    await asyncio.Event().wait()
            assert clock.now == 600.0
            async with asyncio.TaskGroup() as group:
                for seconds in (3, 1, 2):
                    group.create_task(asyncio.sleep(seconds))
            assert clock.now == 603.0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(100), 10)
            assert clock.now == 613.0

    asyncio.run(main())


def test_the_loop_gets_its_own_time_back_and_timers_keep_what_they_have_to_run():
    async def main():
        loop = asyncio.get_running_loop()
        names = {name: vars(loop).get(name) for name in ("time", "run_in_executor")}
        outer = loop.call_at(loop.time() + 5000.0, lambda: None)
        async with Virtual():
            assert outer.when() == pytest.approx(5000.0, abs=60)
            inner = loop.call_later(10_000.0, lambda: None)
            await asyncio.sleep(1000)
        assert {name: vars(loop).get(name) for name in names} == names
        assert "select" not in vars(loop._selector)
        assert outer.when() - loop.time() == pytest.approx(4000.0, abs=60)
        assert inner.when() - loop.time() == pytest.approx(9000.0, abs=60)

    asyncio.run(main())


def test_time_stands_still_while_a_thread_works():
    async def main():
        release = threading.Event()
        async with Virtual() as clock:
            loop = asyncio.get_running_loop()
            loop.call_later(1.0, release.set)  # would fire at once if time ran away
            job = loop.run_in_executor(None, release.wait, 0.2)
            assert await job is False
            assert clock.now == 0.0
            await asyncio.sleep(2)
            assert release.is_set()

    asyncio.run(main())


def test_a_thread_that_waits_for_a_timer_gets_it_when_patience_ends():
    async def main():
        async with Virtual(patience_s=0.05) as clock:
            loop = asyncio.get_running_loop()
            release = threading.Event()
            loop.call_later(1.0, release.set)
            assert await loop.run_in_executor(None, release.wait) is True
            assert clock.now == 1.0

    asyncio.run(main())


def test_a_foreign_thread_is_waited_for_while_the_clock_is_paused():
    async def main():
        async with Virtual() as clock:
            loop = asyncio.get_running_loop()
            answer = loop.create_future()
            go = threading.Event()

            def work():
                go.wait()
                loop.call_soon_threadsafe(answer.set_result, 42)

            thread = threading.Thread(target=work)
            thread.start()
            with clock.paused():
                go.set()
                assert await asyncio.wait_for(answer, 1e-6) == 42
            assert clock.now == 0.0
            thread.join()

    asyncio.run(main())


def test_real_sockets_work():
    async def main():
        left, right = socket.socketpair()
        for end in (left, right):
            end.setblocking(False)
        async with Virtual() as clock:
            loop = asyncio.get_running_loop()
            reading = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(5)
            assert not reading.done()
            right.send(b"real")
            assert await reading == b"real"
            assert clock.now == 5.0
        left.close()
        right.close()

    asyncio.run(main())


def test_a_deadlock_is_an_error_that_says_who_waits_and_where():
    async def main():
        async with Virtual():
            await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"nothing can wake: Task-\d+ at .*test_testing_clock.py:\d+"):
        asyncio.run(main())


def test_a_deadlock_reaches_a_test_whose_clock_another_task_installed():
    async def main():
        async def fixture():
            clock = Clock()
            clock.install(asyncio.current_task())

        await asyncio.create_task(fixture())
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match="deadlock"):
        asyncio.run(main())


def test_timers_that_re_arm_for_ever_do_not_hide_a_deadlock():
    async def main():
        async with Virtual(limit_s=1000):
            loop = asyncio.get_running_loop()

            def tick():
                loop.call_later(7.5, tick)

            tick()
            await asyncio.Event().wait()

    with pytest.raises(DeadlockError, match=r"1000 s of virtual time"):
        asyncio.run(main())


def test_a_cancellation_that_is_no_deadlock_stays_one():
    async def main():
        async def body():
            async with Virtual():
                await asyncio.sleep(10**6)

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_loop_that_is_not_asyncios_own_is_told_what_to_do():
    uvloop = pytest.importorskip("uvloop", reason="pip install uvloop to run this test")

    async def main():
        Clock().install()

    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(RuntimeError, match=r"asyncio\.run"),
    ):
        runner.run(main())


def test_two_clocks_on_one_loop_are_refused():
    async def main():
        async with Virtual():
            with pytest.raises(RuntimeError, match="virtual already"):
                Clock().install()

    asyncio.run(main())


class UnderUnittest(unittest.IsolatedAsyncioTestCase):
    async def test_virtual_time_works_in_an_isolated_test_case(self):
        async with Virtual() as clock:
            await asyncio.sleep(3600)
            self.assertEqual(clock.now, 3600.0)


@pytest.mark.asyncio
async def test_virtual_time_works_under_pytest_asyncio():
    async with Virtual() as clock:
        await asyncio.sleep(3600)
        assert clock.now == 3600.0
