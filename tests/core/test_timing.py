"""Timing: against a clock of our own, so that nothing waits."""

import pytest

from tinyverse.core import timing


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        perf_counter = monotonic

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_stages_are_shares_of_wall_time(clock):
    stages = timing.Stages()
    for seconds in (1.0, 2.0):
        with stages("act"):
            clock.now += seconds
    with stages("environment"):
        clock.now += 5.0
    clock.now += 2.0
    assert stages.take() == pytest.approx({"act": 0.3, "environment": 0.5})
    assert stages.take() == {}


def test_a_stage_that_raises_counts_too(clock):
    stages = timing.Stages()

    def act():
        with stages("act"):
            clock.now += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        act()
    assert stages.take() == {"act": 1.0}


def test_rate_over_a_window(clock):
    rate = timing.Rate(window=10.0)
    assert rate.per_second() == 0.0
    for _ in range(100):
        clock.now += 1.0
        rate.add(5)
    assert rate.per_second() == pytest.approx(5.0, rel=0.01)
    for _ in range(30):
        clock.now += 1.0
        rate.add(1)
    assert rate.per_second() == pytest.approx(1.0, rel=0.01) and rate.total == 530


def test_a_rate_fades_when_nothing_comes_and_never_divides_by_zero(clock):
    rate = timing.Rate()
    rate.add(10)
    assert rate.per_second() < 1e6
    clock.now += 100.0
    assert rate.per_second() == pytest.approx(0.1)


def test_waiting_counts_from_when_it_began(clock):
    waiting = timing.Waiting()
    assert (waiting.reason, waiting.seconds) == ("", 0.0)
    clock.now += 5.0
    waiting.set("3 of 5 sessions")
    clock.now += 2.0
    waiting.set("4 of 5 sessions")
    assert (waiting.reason, waiting.seconds) == ("4 of 5 sessions", 2.0)
    waiting.set("")
    assert waiting.seconds == 0.0
    clock.now += 1.0
    waiting.set("weights")
    assert waiting.seconds == 0.0


def test_ticker(clock):
    now, later = timing.Ticker(10.0), timing.Ticker(10.0, later=True)
    assert now.due() and not now.due() and not later.due()
    clock.now += 10.0
    assert now.due() and later.due() and not now.due() and not later.due()
