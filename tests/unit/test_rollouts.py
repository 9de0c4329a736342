import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.policy.rollouts import RolloutsConfig, replacement_indices, sampling_seed, step_indices


@given(num=st.integers(1, 40), per_step=st.integers(1, 12), seed=st.integers(0, 99))
def test_an_epoch_visits_every_question_at_most_once(num: int, per_step: int, seed: int) -> None:
    if num < per_step:
        with pytest.raises(ConfigError, match=f"questions_per_step is {per_step}, and the pool has {num} questions"):
            step_indices(num, per_step, seed=seed, step=0)
        return
    steps = num // per_step
    indices = [i for step in range(steps) for i in step_indices(num, per_step, seed=seed, step=step)]
    assert len(indices) == len(set(indices)) == steps * per_step
    assert set(indices) <= set(range(num))


@given(step=st.integers(0, 50), seed=st.integers(0, 9))
def test_replacements_are_all_questions_outside_the_step(step: int, seed: int) -> None:
    own, rest = (indices(23, 5, seed=seed, step=step) for indices in (step_indices, replacement_indices))
    assert sorted(own + rest) == list(range(23))


def test_epochs_seeds_and_steps_differ() -> None:
    first, second, other = (step_indices(64, 64, seed=s, step=t) for s, t in ((0, 0), (0, 1), (1, 0)))
    assert first != second
    assert first != other
    # Pinned: a resumed run must continue with the same order under any version of Python.
    assert step_indices(8, 4, seed=0, step=3) == [0, 4, 1, 2]
    seeds = {sampling_seed(s, t, q) for s in (0, 1) for t in (0, 1) for q in ("q0", "q1")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_nucleus_sampling_is_for_training_only() -> None:
    config = RolloutsConfig(top_p=0.9, evaluation_temperature=1.0)
    assert (config.training_sampling().top_p, config.evaluation_sampling().top_p) == (0.9, 1.0)


def test_the_engine_returns_the_logprobs_of_sampled_tokens() -> None:
    assert RolloutsConfig().engine_config("/model").logprobs == "sampled"
    with pytest.raises(ValidationError, match="top_k"):
        RolloutsConfig.model_validate({"top_k": 5})


def test_old_names_of_settings_are_read_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'actors' is now 'num_engines'"):
        config = RolloutsConfig.model_validate({"actors": 2, "restarts": 1})
    assert (config.num_engines, config.max_restarts) == (2, 1)
