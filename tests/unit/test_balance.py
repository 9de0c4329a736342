"""Balancing of Yes and No examples."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.records import ExampleKind
from vlgenrm_ray.reward.balance import ExampleTraits, WeightedExample, balance_examples

critiques = st.builds(
    ExampleTraits,
    kind=st.sampled_from([ExampleKind.CRITIQUE, ExampleKind.DIRECT]),
    label=st.sampled_from(["yes", "no"]),
    weight=st.floats(0.1, 2.0),
)
answers = st.builds(ExampleTraits, kind=st.just(ExampleKind.ANSWER), label=st.just(""), weight=st.floats(0.1, 2.0))
examples = st.lists(st.one_of(critiques, answers), max_size=40)


def total_weight(traits: list[ExampleTraits], balanced: list[WeightedExample], kind: ExampleKind, label: str) -> float:
    return sum(e.weight for e in balanced if traits[e.index].kind is kind and traits[e.index].label == label)


@given(examples)
def test_weights_are_equal_by_label_and_unchanged_in_sum(traits: list[ExampleTraits]) -> None:
    balanced = balance_examples(traits, "weights", seed=0, epoch=0)
    assert [e.index for e in balanced] == list(range(len(traits)))
    for kind in ExampleKind:
        before = sum(e.weight for e in traits if e.kind is kind)
        assert sum(e.weight for e in balanced if traits[e.index].kind is kind) == pytest.approx(before)
        labels = {e.label for e in traits if e.kind is kind}
        if len(labels) == 2:
            assert total_weight(traits, balanced, kind, "yes") == pytest.approx(
                total_weight(traits, balanced, kind, "no")
            )


@given(examples, st.integers(0, 3))
def test_resampling_keeps_everything_and_evens_the_counts(traits: list[ExampleTraits], epoch: int) -> None:
    balanced = balance_examples(traits, "resample", seed=0, epoch=epoch)
    assert len(balanced) == len(balance_examples(traits, "resample", seed=0, epoch=0))
    times = Counter(e.index for e in balanced)
    assert set(times) == set(range(len(traits)))
    for kind in (ExampleKind.CRITIQUE, ExampleKind.DIRECT):
        counts = Counter(traits[e.index].label for e in balanced if traits[e.index].kind is kind)
        assert len(counts) < 2 or counts["yes"] == counts["no"]


def test_resampling_repeats_evenly_and_differs_by_epoch() -> None:
    traits = [ExampleTraits(ExampleKind.CRITIQUE, "yes", 1.0)] * 4 + [
        ExampleTraits(ExampleKind.CRITIQUE, "no", 1.0)
    ] * 10
    epochs = [Counter(e.index for e in balance_examples(traits, "resample", seed=0, epoch=i)) for i in range(8)]
    assert all(sorted(t[i] for i in range(4)) == [2, 2, 3, 3] for t in epochs)
    assert len({tuple(sorted(t.items())) for t in epochs}) > 1


def test_none_and_single_labels_change_nothing() -> None:
    traits = [ExampleTraits(ExampleKind.CRITIQUE, "yes", 1.0)] * 3 + [ExampleTraits(ExampleKind.ANSWER, "", 0.5)]
    plain = [WeightedExample(0, 1.0), WeightedExample(1, 1.0), WeightedExample(2, 1.0), WeightedExample(3, 0.5)]
    assert balance_examples(traits, "weights", seed=0, epoch=0) == plain
    assert balance_examples(traits, "resample", seed=0, epoch=0) == plain
    assert balance_examples([*traits, ExampleTraits(ExampleKind.CRITIQUE, "no", 1.0)], "none", seed=0, epoch=0)[
        4
    ] == WeightedExample(4, 1.0)


def labelled(label: str, stratum: str, times: int) -> list[ExampleTraits]:
    return [ExampleTraits(ExampleKind.CRITIQUE, label, 1.0, stratum)] * times


def test_strata_balances_yes_and_no_within_a_stratum() -> None:
    traits = [
        *labelled("yes", "count 1", 6),
        *labelled("no", "count 1", 2),
        *labelled("yes", "count 3", 2),
        *labelled("no", "count 3", 6),
    ]
    by_label = balance_examples(traits, "weights", seed=0, epoch=0)
    assert {e.weight for e in by_label} == {1.0}, "overall, both labels are equally frequent"
    balanced = balance_examples(traits, "strata", seed=0, epoch=0)
    assert [e.weight for e in balanced] == pytest.approx([4 / 6] * 6 + [2.0] * 2 + [2.0] * 2 + [4 / 6] * 6)


def test_the_factor_of_a_stratum_is_limited() -> None:
    traits = labelled("yes", "count 1", 99) + labelled("no", "count 1", 1) + labelled("no", "", 98)
    balanced = balance_examples(traits, "strata", seed=0, epoch=0)
    rare, most, other = balanced[99].weight, balanced[0].weight, balanced[100].weight
    assert rare / other == pytest.approx(4.0)
    assert most < 1.0
    assert sum(e.weight for e in balanced[:99]) == pytest.approx(sum(e.weight for e in balanced[99:]))


def test_strata_with_one_label_and_examples_without_stratum_are_balanced_by_label() -> None:
    traits = labelled("yes", "count 1", 3) + labelled("no", "count 2", 1) + labelled("yes", "", 1)
    assert balance_examples(traits, "strata", seed=0, epoch=0) == balance_examples(traits, "weights", seed=0, epoch=0)
