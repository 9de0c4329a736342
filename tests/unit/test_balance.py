"""Yes and No count alike."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.records import ExampleKind
from vlgenrm_ray.reward.balance import Entry, Labelled, entries

critiques = st.builds(
    Labelled,
    kind=st.sampled_from([ExampleKind.CRITIQUE, ExampleKind.DIRECT]),
    label=st.sampled_from(["yes", "no"]),
    weight=st.floats(0.1, 2.0),
)
answers = st.builds(Labelled, kind=st.just(ExampleKind.ANSWER), label=st.just(""), weight=st.floats(0.1, 2.0))
examples = st.lists(st.one_of(critiques, answers), max_size=40)


def total(given: list[Labelled], made: list[Entry], kind: ExampleKind, label: str) -> float:
    return sum(e.weight for e in made if given[e.index].kind is kind and given[e.index].label == label)


@given(examples)
def test_weights_are_equal_by_label_and_unchanged_in_sum(given: list[Labelled]) -> None:
    made = entries(given, "weights", seed=0, epoch=0)
    assert [e.index for e in made] == list(range(len(given)))
    for kind in ExampleKind:
        before = sum(e.weight for e in given if e.kind is kind)
        assert sum(e.weight for e in made if given[e.index].kind is kind) == pytest.approx(before)
        labels = {e.label for e in given if e.kind is kind}
        if len(labels) == 2:
            assert total(given, made, kind, "yes") == pytest.approx(total(given, made, kind, "no"))


@given(examples, st.integers(0, 3))
def test_resampling_keeps_everything_and_evens_the_counts(given: list[Labelled], epoch: int) -> None:
    made = entries(given, "resample", seed=0, epoch=epoch)
    assert len(made) == len(entries(given, "resample", seed=0, epoch=0))
    times = Counter(e.index for e in made)
    assert set(times) == set(range(len(given)))
    for kind in (ExampleKind.CRITIQUE, ExampleKind.DIRECT):
        counts = Counter(given[e.index].label for e in made if given[e.index].kind is kind)
        assert len(counts) < 2 or counts["yes"] == counts["no"]


def test_resampling_repeats_evenly_and_others_in_each_epoch() -> None:
    given = [Labelled(ExampleKind.CRITIQUE, "yes", 1.0)] * 4 + [Labelled(ExampleKind.CRITIQUE, "no", 1.0)] * 10
    turns = [Counter(e.index for e in entries(given, "resample", seed=0, epoch=i)) for i in range(8)]
    assert all(sorted(t[i] for i in range(4)) == [2, 2, 3, 3] for t in turns)
    assert len({tuple(sorted(t.items())) for t in turns}) > 1


def test_none_and_single_labels_leave_examples_alone() -> None:
    given = [Labelled(ExampleKind.CRITIQUE, "yes", 1.0)] * 3 + [Labelled(ExampleKind.ANSWER, "", 0.5)]
    plain = [Entry(0, 1.0), Entry(1, 1.0), Entry(2, 1.0), Entry(3, 0.5)]
    assert entries(given, "weights", seed=0, epoch=0) == plain
    assert entries(given, "resample", seed=0, epoch=0) == plain
    assert entries([*given, Labelled(ExampleKind.CRITIQUE, "no", 1.0)], "none", seed=0, epoch=0)[4] == Entry(4, 1.0)


def labelled(label: str, stratum: str, times: int) -> list[Labelled]:
    return [Labelled(ExampleKind.CRITIQUE, label, 1.0, stratum)] * times


def test_within_a_stratum_yes_and_no_count_alike_too() -> None:
    given = [
        *labelled("yes", "count 1", 6),
        *labelled("no", "count 1", 2),
        *labelled("yes", "count 3", 2),
        *labelled("no", "count 3", 6),
    ]
    by_label = entries(given, "weights", seed=0, epoch=0)
    assert {e.weight for e in by_label} == {1.0}, "all in all there are as many of both"
    made = entries(given, "strata", seed=0, epoch=0)
    assert [e.weight for e in made] == pytest.approx([4 / 6] * 6 + [2.0] * 2 + [2.0] * 2 + [4 / 6] * 6)


def test_few_examples_never_stand_for_a_whole_stratum() -> None:
    given = labelled("yes", "count 1", 99) + labelled("no", "count 1", 1) + labelled("no", "", 98)
    made = entries(given, "strata", seed=0, epoch=0)
    rare, most, other = made[99].weight, made[0].weight, made[100].weight
    assert rare / other == pytest.approx(4.0)
    assert most < 1.0
    assert sum(e.weight for e in made[:99]) == pytest.approx(sum(e.weight for e in made[99:]))


def test_a_stratum_of_one_label_and_what_is_in_none_are_balanced_by_label_alone() -> None:
    given = labelled("yes", "count 1", 3) + labelled("no", "count 2", 1) + labelled("yes", "", 1)
    assert entries(given, "strata", seed=0, epoch=0) == entries(given, "weights", seed=0, epoch=0)
