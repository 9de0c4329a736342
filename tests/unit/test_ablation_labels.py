"""Labels by the judge and by the truth, equal examples, and the stages around them."""

from functools import partial
from pathlib import Path

import factories
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.ablation import examples, labels
from vlgenrm_ray.ablation.critique_dpo import critique_pairs
from vlgenrm_ray.ablation.examples import draw, draw_examples
from vlgenrm_ray.ablation.labels import PairLabel, flip, flip_critique, label_by_judge, label_by_truth, measure_labels
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.records import Critique, Dropped, Example, Preference, Question, Side


def pair(index: int) -> Preference:
    return factories.preference(f"q{index}/p0", chosen_id="r0", rejected_id="r0/e", edit_start=3, edit_end=5)


def critiques(preference: Preference, chosen: list[float | None], rejected: list[float | None]) -> tuple[Critique, ...]:
    return tuple(
        factories.critique(
            f"{preference.id}/{side.value}/c{k}",
            preference_id=preference.id,
            side=side,
            p_yes=p_yes,
            text=f"{side} {k}",
        )
        for side, values in ((Side.CHOSEN, chosen), (Side.REJECTED, rejected))
        for k, p_yes in enumerate(values)
    )


def test_the_judge_prefers_the_larger_mean_over_readable_critiques() -> None:
    preference = pair(0)
    kept_label = label_by_judge(preference, critiques(preference, [0.9, None, 0.5], [0.6, 0.7]))
    assert isinstance(kept_label, PairLabel)
    assert not kept_label.is_flipped
    flipped = label_by_judge(preference, critiques(preference, [0.2, 0.4], [0.5]))
    assert isinstance(flipped, PairLabel)
    assert flipped.is_flipped


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [([0.5], [0.5], "tie"), ([None], [0.5], "unreadable_verdict"), ([0.5], [], "unreadable_verdict")],
)
def test_a_pair_that_the_judge_cannot_decide_is_dropped(
    chosen: list[float | None], rejected: list[float | None], reason: str
) -> None:
    preference = pair(0)
    decision = label_by_judge(preference, critiques(preference, chosen, rejected))
    assert isinstance(decision, Dropped)
    assert (decision.id, decision.reason) == (preference.id, reason)


@pytest.mark.parametrize(
    ("chosen", "rejected", "flipped"),
    [(True, False, False), (False, True, True), (True, True, None), (None, True, None)],
)
def test_the_truth_decides_only_where_one_response_is_true(
    chosen: bool | None, rejected: bool | None, flipped: bool | None
) -> None:
    preference = pair(0)
    values = {preference.chosen: chosen, preference.rejected: rejected}
    decision = label_by_truth(lambda question, text: values[text])(preference, ())
    assert (decision.is_flipped if isinstance(decision, PairLabel) else None) == flipped


def test_flipping_exchanges_the_sides_and_twice_gives_the_texts_back() -> None:
    preference = pair(0)
    flipped = flip(preference)
    assert (flipped.chosen, flipped.rejected) == (preference.rejected, preference.chosen)
    assert (flipped.chosen_id, flipped.rejected_id) == ("r0/e", "r0")
    assert (flipped.edit_start, flipped.edit_end) == (-1, -1)
    assert (flip(flipped).chosen, flip(flipped).rejected) == (preference.chosen, preference.rejected)
    (critique, _) = critiques(preference, [0.9], [0.1])
    moved = flip_critique(critique)
    assert (moved.id, moved.side, moved.text) == (f"{preference.id}/rejected/c0", Side.REJECTED, critique.text)
    assert flip_critique(moved) == critique


def stage(path: Path, cls: type, units: list[Unit]) -> StageFolder:  # type: ignore[type-arg]
    folder = StageFolder(path)
    folder.begin("test", {})
    write_units(folder, cls, units)
    folder.finish(seconds=0.0)
    return folder


def test_the_stage_moves_critiques_with_their_pairs_and_accounts_for_every_pair(tmp_path: Path) -> None:
    pairs = [pair(i) for i in range(3)]
    written = [
        critiques(pairs[0], [0.9], [0.1]),
        critiques(pairs[1], [0.1], [0.9]),
        critiques(pairs[2], [0.5], [0.5]),
    ]
    preferences = stage(tmp_path / "p", Preference, [Unit(id=p.id, records=(p,)) for p in pairs])
    source = stage(tmp_path / "c", Critique, [Unit(id=p.id, records=c) for p, c in zip(pairs, written, strict=True)])
    target, moved = StageFolder(tmp_path / "labels"), StageFolder(tmp_path / "moved")
    manifest, moved_manifest = labels.run(
        label_by_judge,
        fingerprint="self",
        preferences=preferences,
        critiques=source,
        target=target,
        target_critiques=moved,
    )
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (3, 2, {"tie": 1})
    assert manifest.metrics == {"num_flipped": 1}
    labelled = {p.id: p for p in target.records(Preference)}
    assert labelled["q0/p0"].chosen == pairs[0].chosen
    assert labelled["q1/p0"].chosen == pairs[1].rejected
    # A critique stays with the text that it is about.
    texts = {(c.preference_id, c.side): c.text for c in moved.records(Critique)}
    assert texts["q0/p0", Side.CHOSEN] == "chosen 0"
    assert texts["q1/p0", Side.CHOSEN] == "rejected 0"
    assert moved_manifest.inputs == {"preferences": manifest.data_hash}, "the selection asks for these pairs"


def test_labels_are_compared_with_the_truth_where_it_decides(tmp_path: Path) -> None:
    pairs = [pair(i) for i in range(4)]
    folder = stage(tmp_path / "p", Preference, [Unit(id=p.id, records=(p,)) for p in pairs])
    truths = {"q0": (True, False), "q1": (False, True), "q2": (True, True), "q3": (None, False)}
    numbered = [factories.preference(p.id, question=factories.question(p.id.split("/")[0])) for p in pairs]
    folder = stage(tmp_path / "n", Preference, [Unit(id=p.id, records=(p,)) for p in numbered])

    def truth(question: Question, text: str) -> bool | None:
        return truths[question.id][text != factories.preference().chosen]

    assert measure_labels(folder, truth) == {"num_pairs": 4, "num_known": 2, "num_wrong": 1, "wrong_share": 0.5}


@given(st.sets(st.text(max_size=4), max_size=20), st.integers(0, 20), st.integers(0, 3))
def test_a_smaller_draw_is_part_of_a_larger_one(ids: set[str], count: int, seed: int) -> None:
    drawn = draw(ids, count, seed)
    assert len(drawn) == min(count, len(ids))
    assert drawn <= draw(ids, count + 1, seed) <= ids
    assert draw(ids, None, seed) == ids


def selection_units(num_pairs: int = 10, num_examples: int = 4) -> list[Unit[Example]]:
    return [
        Unit(id=f"q{i}/p0", records=tuple(factories.example(f"q{i}/p0/c{k}/example") for k in range(num_examples)))
        for i in range(num_pairs)
    ]


def test_every_cell_gets_the_same_number_of_examples_if_it_has_them() -> None:
    for units in (selection_units(), selection_units(num_examples=20), list(reversed(selection_units(30, 1)))):
        drawn = draw_examples(units, num_examples=24, num_pairs=None, seed=0)
        assert sum(len(unit.records) for unit in drawn) == 24
        assert {unit.id for unit in drawn} == {unit.id for unit in units}
        assert all(unit.records or unit.dropped for unit in drawn)
    few = draw_examples(selection_units(3, 2), num_examples=24, num_pairs=None, seed=0)
    assert sum(len(unit.records) for unit in few) == 6


def test_examples_are_drawn_from_a_limited_number_of_pairs() -> None:
    drawn = draw_examples(selection_units(), num_examples=1000, num_pairs=3, seed=1)
    assert [len(unit.records) for unit in drawn if unit.records] == [4, 4, 4]
    more = draw_examples(selection_units(), num_examples=1000, num_pairs=5, seed=1)
    assert {u.id for u in drawn if u.records} < {u.id for u in more if u.records}


def test_the_examples_stage_says_how_many_there_were(tmp_path: Path) -> None:
    source = stage(tmp_path / "selection", Example, selection_units())  # type: ignore[arg-type]
    target = StageFolder(tmp_path / "examples")
    manifest = examples.run(num_examples=24, num_pairs=None, seed=0, source=source, target=target)
    assert manifest.metrics == {"num_available": 40, "num_examples": 24}
    assert manifest.rows_out == len(list(target.records(Example))) == 24


def test_a_judge_that_learns_from_pairs_gets_half_as_many(tmp_path: Path) -> None:
    pairs = [pair(i) for i in range(10)]
    source = stage(tmp_path / "p", Preference, [Unit(id=p.id, records=(p,)) for p in pairs])
    target = StageFolder(tmp_path / "pairs")
    manifest = examples.run_pairs(num_examples=8, num_pairs=None, seed=0, source=source, target=target)
    assert (manifest.rows_out, manifest.metrics) == (4, {"num_available": 20, "num_examples": 8})
    assert all(p in pairs for p in target.records(Preference))


def test_dpo_prefers_selected_critiques_to_wrong_ones_of_the_same_response() -> None:
    preference = pair(0)
    wrong = partial(factories.critique, preference_id=preference.id, verdict="no")
    written = [
        *critiques(preference, [0.9, 0.8, 0.2], [0.1]),
        wrong("q0/p0/chosen/c9", p_yes=0.4, text="x\nVerdict: No"),
        wrong("q0/p0/chosen/c8", p_yes=0.1, text="y\nVerdict: No!"),
    ]
    selected = [factories.example(f"{c.id}/example", completion=c.text) for c in written[:2]]
    preferences = critique_pairs([*selected, factories.example("q0/p0/chosen/direct")], written)
    # The surest wrong critique first, then the next; each is cut after its verdict.
    assert [(p.chosen, p.rejected) for p in preferences] == [
        ("chosen 0", "y\nVerdict: No"),
        ("chosen 1", "x\nVerdict: No"),
    ]
    assert {p.question.text for p in preferences} == {selected[0].prompt}
    assert critique_pairs(selected, written[:2]) == [], "without a wrong critique there is no pair"
