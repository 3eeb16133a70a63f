"""RateLimiter: the arithmetic of who waits for whom, without a replay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.rate_limiter import RateLimiter


def a_limiter(pending=None, **config):
    return RateLimiter(ReplayConfig(**{"batch_size": 4, "buffer_size": 100, "reuse": 2.0, **config}), pending)


def test_an_inserted_session_is_owed_its_samples_until_they_are_drawn():
    limiter = a_limiter()
    for _ in range(3):
        limiter.inserted += 1
    assert (limiter.inserted, limiter.sampled, limiter.deficit, limiter.missing) == (3, 0, 6, 0)
    limiter.drawn += 4
    assert (limiter.sampled, limiter.deficit) == (4, 2)
    assert limiter.missing == 1  # (4 - 2) / 2 sessions until the next batch of 4


@pytest.mark.parametrize(("reuse", "missing"), [(0.1, 40), (0.3, 14), (1.0, 4), (3.0, 2), (8.0, 1)])
def test_missing_sessions_are_whole_ones(reuse, missing):
    limiter = a_limiter(reuse=reuse)
    assert limiter.missing == missing
    for _ in range(missing):
        assert limiter.missing > 0
        limiter.inserted += 1
    assert limiter.missing == 0


def test_what_is_written_off_is_owed_nothing():
    limiter = a_limiter()
    limiter.inserted += 1
    limiter.write_off(5)
    assert (limiter.inserted, limiter.sampled, limiter.deficit) == (6, 10, 2)


def test_what_the_kept_cannot_carry_is_forgiven():
    limiter = a_limiter()
    for _ in range(10):
        limiter.inserted += 1
    limiter.forgive(kept=10)
    assert limiter.deficit == 20
    limiter.forgive(kept=3)
    assert limiter.deficit == 6
    limiter.forgive(kept=1)
    assert limiter.deficit == 4  # a batch may always be saved up for
    limiter.forgive(kept=0)
    assert limiter.deficit == 0
    limiter.forgive(kept=10)
    assert limiter.deficit == 0  # and it does not come back


def test_without_reuse_nobody_waits_and_nothing_is_forgiven():
    limiter = a_limiter(reuse=None)
    limiter.drawn += 400
    limiter.forgive(kept=0)
    assert (limiter.missing, limiter.sampled, limiter.deficit) == (0, 400, -400)
    assert limiter.config.max_ahead is None


def test_where_the_sampler_says_how_often_all_but_the_waiting_count_as_sampled():
    waiting = [3]
    limiter = a_limiter(lambda: waiting[0], reuse=1.0)
    for _ in range(8):
        limiter.inserted += 1
    assert (limiter.sampled, limiter.deficit, limiter.missing) == (5, 3, 0)
    waiting[0] = 0
    assert limiter.deficit == 0


def test_after_a_restart_only_a_restored_memory_is_owed_anything():
    limiter = a_limiter()
    for _ in range(10):
        limiter.inserted += 1
    limiter.drawn += 6
    state, again, fresh = limiter.state_dict(), a_limiter(), a_limiter()
    again.load_state_dict(state, reuse=2.0)
    again.restart(inserted=50, kept=10)
    assert (again.inserted, again.deficit) == (50, 14)
    again.restart(inserted=50, kept=10)  # the run began anew: no longer
    assert again.deficit == 0
    fresh.restart(inserted=50, kept=10)
    assert (fresh.inserted, fresh.deficit) == (50, 0)
    other = a_limiter(reuse=3.0)
    other.load_state_dict(state, reuse=2.0)
    other.restart(inserted=50, kept=10)
    assert other.deficit == 0


@given(
    some.floats(0.1, 8), some.integers(1, 16), some.lists(some.sampled_from(["insert", "lost", "draw"]), max_size=200)
)
def test_the_deficit_is_bounded_and_a_batch_is_drawn_only_when_it_is_owed(reuse, batch, events):
    limiter, kept = a_limiter(reuse=reuse, batch_size=batch, buffer_size=20), 0
    for event in events:
        if event == "insert":
            limiter.inserted += 1
            kept = min(kept + 1, 20)
        elif event == "lost":
            limiter.write_off()
        elif limiter.missing == 0:
            assert limiter.deficit >= batch - 1e-9
            limiter.drawn += batch
        limiter.forgive(kept)
        assert -1e-9 <= limiter.deficit <= max(reuse * kept, batch) + 1e-9
