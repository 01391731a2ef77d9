"""Lines during long work, with a clock that the tests move."""

import io
import time

import pytest

from fedta_app.progress import Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporter(clock: Clock) -> Reporter:
    return Reporter(clock, watched=False)


def pass_seconds(reporter: Reporter, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        reporter.look()


def test_a_quick_phase_is_silent(reporter: Reporter, clock: Clock) -> None:
    stream = io.StringIO()
    for _ in range(20):
        with reporter.phase("head round 1", stream):
            pass_seconds(reporter, clock, 9)
    pass_seconds(reporter, clock, 100)
    assert stream.getvalue() == ""


def test_a_long_phase_says_how_far_it_is_every_ten_seconds(
    reporter: Reporter, clock: Clock
) -> None:
    stream = io.StringIO()
    with reporter.phase("head round 3", stream), reporter.counting("clients", 100) as done:
        for _ in range(30):
            pass_seconds(reporter, clock, 1)
            done.add()
    assert stream.getvalue().splitlines() == [
        "head round 3: 9 of 100 clients, 0:01:41 left",
        "head round 3: 19 of 100 clients, 0:01:25 left",
        "head round 3: 29 of 100 clients, 0:01:13 left",
    ]


def test_work_that_cannot_be_counted_says_its_time(reporter: Reporter, clock: Clock) -> None:
    stream = io.StringIO()
    with reporter.phase("waiting for Ray", stream):
        pass_seconds(reporter, clock, 10)
        with reporter.counting("clients", 2):
            pass_seconds(reporter, clock, 10)
        pass_seconds(reporter, clock, 10)
    assert stream.getvalue().splitlines() == [
        "waiting for Ray: 0:00:10 so far",
        "waiting for Ray: 0 of 2 clients, 0:00:20 so far",
        "waiting for Ray: 0:00:30 so far",
    ]


def test_the_outer_phase_and_the_outer_count_are_shown(reporter: Reporter, clock: Clock) -> None:
    stream = io.StringIO()
    with (
        reporter.phase("train round 1", stream),
        reporter.phase("inner", stream),
        reporter.counting("clients", 4) as clients,
    ):
        clients.add()
        with reporter.counting("steps", 50) as steps:
            steps.add(7)
            pass_seconds(reporter, clock, 10)
    assert stream.getvalue() == "train round 1: 1 of 4 clients, 0:00:30 left\n"


def test_what_is_counted_outside_of_a_phase_is_silent(
    reporter: Reporter, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with reporter.counting("images", 4) as done:
        pass_seconds(reporter, clock, 100)
        done.add()
    assert capsys.readouterr() == ("", "")


def test_a_phase_that_fails_is_over(reporter: Reporter, clock: Clock) -> None:
    stream = io.StringIO()
    with pytest.raises(OSError), reporter.phase("one", stream), reporter.counting("images", 4):
        raise OSError
    pass_seconds(reporter, clock, 60)
    with reporter.phase("two", stream):
        pass_seconds(reporter, clock, 10)
    assert stream.getvalue() == "two: 0:00:10 so far\n"


def test_a_stream_that_nobody_reads_stops_nothing(reporter: Reporter, clock: Clock) -> None:
    stream = io.StringIO()
    stream.close()
    with reporter.phase("one", stream):
        pass_seconds(reporter, clock, 30)


def test_more_than_was_announced_is_no_negative_time(reporter: Reporter, clock: Clock) -> None:
    stream = io.StringIO()
    with reporter.phase("one", stream), reporter.counting("images", 4) as done:
        done.add(9)
        pass_seconds(reporter, clock, 10)
    assert stream.getvalue() == "one: 4 of 4 images, 0:00:00 left\n"


def test_a_watched_phase_reports_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """The thread looks once a second: a clock that runs a hundred times faster must be seen."""
    began = time.monotonic()
    reporter = Reporter(lambda: 100 * (time.monotonic() - began), watched=True)
    with reporter.phase("waiting"):
        printed = ""
        while not printed and time.monotonic() < began + 30:  # a busy machine wakes it up late
            time.sleep(0.1)
            printed = capsys.readouterr().out
    assert printed.startswith("waiting: ")
