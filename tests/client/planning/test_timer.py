"""Upstream seconds: blocks that add up, nest, overlap, break, and hold requests."""

from __future__ import annotations

import threading

import pytest

from carv_client._planning.timer import UpstreamTimer


class Clock:
    """Stands still unless moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def fail(self, seconds: float, error: type[BaseException]) -> None:
        self.now += seconds
        raise error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timer(clock: Clock) -> UpstreamTimer:
    """With its first steps behind it."""
    timer = UpstreamTimer(clock)
    for expected in (None, 1.0):
        with timer.block():
            clock.pass_by(1.0)
        assert timer.flush() == expected
    return timer


def test_the_blocks_of_a_step_add_up(timer: UpstreamTimer, clock: Clock) -> None:
    for seconds in (1.0, 2.0):
        with timer.block():
            clock.pass_by(seconds)
        clock.pass_by(50.0)  # the caller's own business
    assert timer.flush() == 3.0
    assert timer.flush() == 0.0, "a step without upstream work"


def test_inner_blocks_count_once(timer: UpstreamTimer, clock: Clock) -> None:
    with timer.block():
        clock.pass_by(1.0)
        with timer.block():
            clock.pass_by(2.0)
        clock.pass_by(4.0)
    assert timer.flush() == 7.0


def test_a_request_inside_a_block_does_not_count(timer: UpstreamTimer, clock: Clock) -> None:
    with timer.block():
        clock.pass_by(1.0)
        with timer.wait():
            clock.pass_by(30.0)
        clock.pass_by(2.0)
    assert timer.flush() == 3.0


def test_a_flush_inside_a_block_cuts_it(timer: UpstreamTimer, clock: Clock) -> None:
    with timer.block():
        clock.pass_by(1.0)
        assert timer.flush() == 1.0
        clock.pass_by(2.0)
    assert timer.flush() == 2.0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_its_step_out(
    timer: UpstreamTimer, clock: Clock, error: type[BaseException]
) -> None:
    with pytest.raises(error), timer.block(), timer.block():
        clock.fail(1.0, error)
    with timer.block():
        clock.pass_by(5.0)
    assert timer.flush() is None
    with timer.block():
        clock.pass_by(2.0)
    assert timer.flush() == 2.0, "the next step is measured again"


def test_a_request_that_fails_is_still_a_wait(timer: UpstreamTimer, clock: Clock) -> None:
    with timer.block():
        clock.pass_by(1.0)
        with pytest.raises(ConnectionError), timer.wait():
            clock.fail(9.0, ConnectionError)
    assert timer.flush() == 1.0


def test_overlapping_threads_count_as_their_union(timer: UpstreamTimer, clock: Clock) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with timer.block():
            entered.set()
            assert leave.wait(10)

    thread = threading.Thread(target=other)
    with timer.block():
        clock.pass_by(1.0)
        thread.start()
        assert entered.wait(10)
        clock.pass_by(2.0)
    clock.pass_by(4.0)  # the other alone
    leave.set()
    thread.join()
    assert timer.flush() == 7.0


def test_the_first_step_is_left_out() -> None:
    """Its backward pass comes after the reply that ends it."""
    clock = Clock()
    timer = UpstreamTimer(clock)
    for expected in (None, 3.0, 3.0):
        with timer.block():
            clock.pass_by(2.0)
        with timer.wait():
            clock.pass_by(10.0)
        assert timer.flush() == expected
        with timer.block():
            clock.pass_by(1.0)


def test_many_requests_in_flight_share_what_was_done_before_them() -> None:
    clock = Clock()
    timer = UpstreamTimer(clock)
    for expected in ([None, None, None], [6.0, 0.0, 0.0]):
        with timer.block():
            clock.pass_by(6.0)
        assert [timer.flush() for _ in range(3)] == expected


def test_without_blocks_upstream_is_the_time_between_reply_and_request() -> None:
    clock = Clock()
    timer = UpstreamTimer(clock)
    for expected in (None, 3.0, 3.0):
        with timer.wait():
            clock.pass_by(10.0)
        assert timer.flush() == expected
        clock.pass_by(3.0)
    assert timer.flush() is None, "no request in this step"


def test_without_blocks_overlapping_requests_tell_nothing() -> None:
    clock = Clock()
    timer = UpstreamTimer(clock)
    with timer.wait():
        clock.pass_by(1.0)
    timer.flush()
    with timer.wait(), timer.wait():
        clock.pass_by(1.0)
    assert timer.flush() is None
