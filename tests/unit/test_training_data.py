"""The plan of a training depends only on data and settings."""

import pytest
from factories import example

from vlgenrm_ray.records import ExampleKind
from vlgenrm_ray.reward.balance import ExampleTraits
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.reward.training_data import (
    MeasuredExample,
    plan_steps,
    probe_prefix,
    steps_per_epoch,
    token_weight,
    total_steps,
)


def measured(count: int) -> list[MeasuredExample]:
    traits = [ExampleTraits(ExampleKind.CRITIQUE, "yes" if i % 4 else "no", 1.0) for i in range(count)]
    return [MeasuredExample(i, 20 + i % 5, 5 + i % 3, t) for i, t in enumerate(traits)]


CONFIG = TrainingConfig(workers=2, epochs=3, examples_per_step=8, tokens_per_batch=100)


def test_resuming_gives_the_steps_that_were_left() -> None:
    data = measured(30)
    whole = list(plan_steps(data, CONFIG, 0))
    assert [s.number for s in whole] == list(range(total_steps(data, CONFIG))) == list(range(12))
    for start in (0, 1, 3, 4, 7, 11, 12):
        assert list(plan_steps(data, CONFIG, start)) == whole[start:]


def test_max_steps_cuts_the_training_short() -> None:
    data = measured(30)
    short = CONFIG.model_copy(update={"max_steps": 5})
    assert list(plan_steps(data, short, 0)) == list(plan_steps(data, CONFIG, 0))[:5]
    assert steps_per_epoch(data, short) == 4


def test_epochs_differ_in_order_and_contain_all_examples() -> None:
    data = measured(30)
    steps = list(plan_steps(data, CONFIG, 0))
    members_of_epochs = [[m for s in steps if s.epoch == epoch for m in s.plan.members()] for epoch in range(3)]
    assert [sorted(e) for e in members_of_epochs] == [list(range(30))] * 3
    assert members_of_epochs[0] != members_of_epochs[1]


@pytest.mark.parametrize("normalise", ["tokens", "examples"])
def test_the_denominator_is_the_weight_of_the_whole_step(normalise: str) -> None:
    data = measured(30)
    config = CONFIG.model_copy(update={"normalise": normalise})
    for step in plan_steps(data, config, 0):
        members = [step.epoch_examples[m] for m in step.plan.members()]
        if normalise == "tokens":
            expected = sum(e.weight * data[e.index].num_targets for e in members)
        else:
            expected = sum(e.weight for e in members)
        assert step.denominator == pytest.approx(expected)
        per_token = sum(token_weight(e, data, config) * data[e.index].num_targets for e in members)
        assert per_token == pytest.approx(expected)


def test_a_probe_ends_before_the_verdict() -> None:
    assert probe_prefix(example()) == "Claim: a red circle. Image: a red circle. Right.\nVerdict:"
    assert probe_prefix(example(kind=ExampleKind.DIRECT, completion="No", label="no")) == ""
    assert probe_prefix(example(kind=ExampleKind.ANSWER, completion="Yes, there is.", label="")) is None
    assert probe_prefix(example(completion="Verdict: Yes, surely")) is None
