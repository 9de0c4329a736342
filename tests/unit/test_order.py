import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.policy import order


@given(num=st.integers(1, 40), per_step=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_pass_asks_every_question_at_most_once(num: int, per_step: int, seed: int) -> None:
    if num < per_step:
        with pytest.raises(ConfigError, match=f"asks {per_step} questions and the pool has {num}"):
            order.asked(num, per_step, seed=seed, step=0)
        return
    steps = num // per_step
    places = [p for step in range(steps) for p in order.asked(num, per_step, seed=seed, step=step)]
    assert len(places) == len(set(places)) == steps * per_step
    assert set(places) <= set(range(num))


@given(step=st.integers(0, 50), seed=st.integers(0, 9))
def test_replacements_are_all_that_the_step_does_not_ask(step: int, seed: int) -> None:
    own, rest = (ask(23, 5, seed=seed, step=step) for ask in (order.asked, order.others))
    assert sorted(own + rest) == list(range(23))


def test_passes_seeds_and_steps_differ() -> None:
    first, second, other = (order.asked(64, 64, seed=s, step=t) for s, t in ((0, 0), (0, 1), (1, 0)))
    assert first != second
    assert first != other
    # A run goes on with the order it began with, by whatever version of Python.
    assert order.asked(8, 4, seed=0, step=3) == [0, 4, 1, 2]
    seeds = {order.seed_of(s, t, q) for s in (0, 1) for t in (0, 1) for q in ("q0", "q1")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
