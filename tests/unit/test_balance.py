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
