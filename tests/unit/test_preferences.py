"""Preferences without Ray: pairs by evidence, with faultless experts and with experts that know nothing."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.curation.evidence import EvidenceConfig, EvidenceIndex, QuestionEvidence, RejectedPair
from vlgenrm_ray.curation.pair_builders import (
    FLIPPED,
    BalanceConfig,
    edited_pairs,
    imported_pairs,
    repaired_pairs,
    verified_pairs,
)
from vlgenrm_ray.curation.preferences import PreferencesConfig, build_image_pairs, length_gap, select_skewing
from vlgenrm_ray.data.store import Unit
from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch, cut_windows
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import CheckedResponse, Detection, ImageRef, Origin, Preference, Question, Response
from vlgenrm_ray.shapes import basic
from vlgenrm_ray.shapes.corruption import corrupt_answer
from vlgenrm_ray.shapes.questions import ShapesQuestion
from vlgenrm_ray.shapes.render import SIDE, boxes
from vlgenrm_ray.shapes.scenes import Scene
from vlgenrm_ray.shapes.truth import is_true

VOCABULARY = load_vocabulary("shapes")
THRESHOLDS = Thresholds()
BALANCE = BalanceConfig()


def check_all(
    scene: Scene, question: Question, texts: list[tuple[str, str]], *, blind: bool = False
) -> list[CheckedResponse]:
    """Check responses, given as (sampler, text), with faultless experts, or with `blind` ones that know nothing."""
    seen = [
        Detection(box=replace(box, score=0.95), attribute=thing.colour, attribute_score=0.95)
        for thing, box in zip(scene.objects, boxes(scene), strict=True)
    ]
    claims = [c for _, text in texts for c in extract_claims(text, VOCABULARY)]
    phrases = {p for c in claims for p in (c.subject, c.other) if p}
    glances = tuple(
        WindowMatch(
            window,
            {
                p: 0.98
                if any(
                    box.intersection(window) > 0.5 * min(box.area, window.area) and thing in scene.matching(p)
                    for thing, box in zip(scene.objects, boxes(scene), strict=True)
                )
                else 0.02
                for p in phrases
            },
        )
        for window in cut_windows(SIDE, SIDE, (1, 3))
    )
    detections = () if blind else tuple(seen)
    view = ImageEvidence(SIDE, SIDE, detections, () if blind else glances)
    return [
        CheckedResponse(
            id=f"{question.id}/r{i}",
            response=Response(id=f"{question.id}/r{i}", question=question, text=text, sampler=sampler),
            findings=tuple(check_claim(c, view, VOCABULARY, THRESHOLDS) for c in extract_claims(text, VOCABULARY)),
            detections=detections,
        )
        for i, (sampler, text) in enumerate(texts)
    ]


def draw_world(index: int) -> tuple[Scene, ShapesQuestion, Question]:
    scene, item = basic.draw_item(5, "train", index)
    image = ImageRef(uri=f"{index}.png", sha256=f"{index}", width=SIDE, height=SIDE)
    return (
        scene,
        item,
        Question(id=f"q{index}", image=image, text=item.text, source="shapes", kind=item.kind),
    )


def question_evidence(
    index: int, texts: list[tuple[str, str]], *, blind: bool = False, **config: object
) -> QuestionEvidence:
    scene, _, question = draw_world(index)
    checked = check_all(scene, question, texts, blind=blind)
    evidence_index = EvidenceIndex(checked, VOCABULARY, THRESHOLDS)
    return QuestionEvidence.from_responses(checked, evidence_index, EvidenceConfig.model_validate(config), 0)


def wrong_answers(index: int, count: int) -> list[str]:
    scene, item, _ = draw_world(index)
    return [corrupt_answer(scene, item, random.Random(i)) for i in range(count)]


def right_answer(index: int) -> str:
    return draw_world(index)[1].reference


INDEX = st.integers(0, 20_000)


@settings(max_examples=40)
@given(INDEX, st.integers(0, 4), st.booleans(), st.randoms(use_true_random=False))
def test_every_label_is_true_and_every_question_has_a_pair_or_a_drop(
    index: int, num_wrong: int, with_right: bool, rng: random.Random
) -> None:
    scene, item, question = draw_world(index)
    foreign = basic.draw_item(6, "train", rng.randrange(1000))[1].reference
    texts = [
        *wrong_answers(index, num_wrong),
        *([right_answer(index)] if with_right else []),
        foreign,
        "I cannot tell.",
    ]
    rng.shuffle(texts)
    checked = check_all(scene, question, [("policy", t) for t in dict.fromkeys(texts)])
    unit = Unit(id="image", records=tuple(checked))
    config = PreferencesConfig(max_per_question=8, max_per_kind=8)
    built = build_image_pairs(unit, config, VOCABULARY, THRESHOLDS, 0)

    assert bool(built.records) != any(d.id == question.id for d in built.dropped)
    ids = [r.id for r in built.records] + [d.id for d in built.dropped]
    assert len(set(ids)) == len(ids)
    assert all(d.reason and d.detail for d in built.dropped)
    for pair in built.records:
        assert pair.chosen != pair.rejected
        assert is_true(scene, item.text, pair.chosen), pair
        assert not is_true(scene, item.text, pair.rejected), pair
        assert pair.evidence
        assert pair.detections == checked[0].detections
    backwards = Unit(id="image", records=tuple(reversed(checked)))
    assert build_image_pairs(backwards, config, VOCABULARY, THRESHOLDS, 0) == built


@settings(max_examples=40)
@given(INDEX)
def test_a_true_response_can_always_be_edited(index: int) -> None:
    (pair,) = edited_pairs(question_evidence(index, [("policy", right_answer(index))]), BALANCE)
    assert (pair.origin, pair.chosen_id, pair.rejected_id) == (Origin.EDITED, f"q{index}/r0", f"q{index}/r0/e")
    assert len(pair.chosen.split()) == len(pair.rejected.split())
    assert pair.rejected[: pair.edit_start] == pair.chosen[: pair.edit_start]
    assert pair.chosen.endswith(pair.rejected[pair.edit_end :])


def test_edits_do_not_favour_one_direction() -> None:
    """Counts go up as well as down, and every colour comes up: or the text alone would tell the sides apart."""
    more, less, colours = 0, 0, Counter[str]()
    for index in range(400):
        _, item, _ = draw_world(index)
        if item.kind not in ("count", "attribute"):
            continue
        (pair,) = edited_pairs(question_evidence(index, [("policy", item.reference)]), BALANCE)
        if item.kind == "count":
            (was,), (now,) = extract_claims(pair.chosen, VOCABULARY), extract_claims(pair.rejected, VOCABULARY)
            more, less = more + (now.value > was.value), less + (now.value < was.value)
        else:
            colours[pair.rejected.split()[-1]] += 1
    assert min(more, less) > 20
    assert len(colours) == 6
    assert max(colours.values()) < 3 * min(colours.values())


@settings(max_examples=40)
@given(INDEX)
def test_a_wrong_answer_to_a_plain_question_is_repaired(index: int) -> None:
    (wrong,) = wrong_answers(index, 1)
    _, item, _ = draw_world(index)
    pairs = list(repaired_pairs(question_evidence(index, [("policy", wrong), ("policy", item.reference)]), BALANCE))
    if item.kind == "describe":
        return  # the one wrong thing may be all there is to describe
    (pair,) = pairs
    assert (pair.rejected, pair.chosen_id, pair.rejected_id) == (wrong, f"q{index}/r0/e", f"q{index}/r0")
    assert pair.chosen == item.reference


def test_descriptions_are_repaired_or_shortened() -> None:
    repairs = Counter[str]()
    for index in range(0, 300, 5):
        scene, item, _ = draw_world(index)
        if len(scene.objects) < 2:
            continue
        (wrong,) = wrong_answers(index, 1)
        for pair in repaired_pairs(question_evidence(index, [("policy", wrong)]), BALANCE):
            assert is_true(scene, item.text, pair.chosen)
            assert pair.chosen.count(".") <= wrong.count(".")
            repairs["shortened" if pair.chosen.count(".") < wrong.count(".") else "mended"] += 1
    assert repairs["mended"] > 15


@settings(max_examples=40)
@given(INDEX)
def test_unknown_never_makes_a_negative(index: int) -> None:
    texts = [("policy", right_answer(index)), *[("policy", t) for t in wrong_answers(index, 2)]]
    checked = check_all(*draw_world(index)[::2], texts, blind=True)
    unit = build_image_pairs(Unit(id="i", records=tuple(checked)), PreferencesConfig(), VOCABULARY, THRESHOLDS, 0)
    assert not unit.records
    ((drop,),) = (unit.dropped,)
    assert (drop.id, drop.reason) == (f"q{index}", "no_evidence")


def test_a_response_below_the_score_limit_counts_as_unknown() -> None:
    texts = [("policy", right_answer(1)), ("policy", wrong_answers(1, 1)[0])]
    assert list(verified_pairs(question_evidence(1, texts), BALANCE))
    assert not list(verified_pairs(question_evidence(1, texts, min_score=1.0), BALANCE))


CHOSEN, REJECTED = "imported/chosen", "imported/rejected"


def imported_pair(
    index: int, chosen: str, rejected: str, *, blind: bool = False, **config: object
) -> Preference | RejectedPair:
    texts = [(CHOSEN, chosen), (REJECTED, rejected)]
    (built,) = imported_pairs(question_evidence(index, texts, blind=blind, **config), BALANCE)
    return built


def test_imported_pairs_are_kept_flipped_or_rejected() -> None:
    index = next(i for i in range(200) if draw_world(i)[1].kind == "count" and "two" in right_answer(i))
    noun = right_answer(index).removeprefix("There are two ").removesuffix(".")
    true, wrong, other = right_answer(index), f"There are three {noun}.", f"There are no {noun}."
    pair = imported_pair(index, true, wrong)
    assert isinstance(pair, Preference)
    assert (pair.chosen, pair.rejected, pair.kind) == (true, wrong, "count")
    assert "contradicted" in pair.evidence
    flipped = imported_pair(index, wrong, true)
    assert isinstance(flipped, Preference)
    assert (flipped.chosen, flipped.chosen_id) == (true, f"q{index}/r1")
    assert flipped.evidence.startswith(FLIPPED)
    both = imported_pair(index, wrong, other)
    assert isinstance(both, RejectedPair)
    assert both.reason == "contradicted_chosen"
    same = imported_pair(index, true, true)
    assert isinstance(same, RejectedPair)
    assert same.reason == "no_contrast"


def test_an_imported_pair_without_evidence_is_kept_only_if_configured() -> None:
    pair = imported_pair(3, "It is lovely.", "It is dull.", blind=True)
    assert isinstance(pair, Preference)
    assert (pair.chosen, pair.kind) == ("It is lovely.", "")
    rejected_pair = imported_pair(3, "It is lovely.", "It is dull.", blind=True, keep_unknown=False)
    assert isinstance(rejected_pair, RejectedPair)
    assert rejected_pair.reason == "no_evidence"


def test_a_contradicted_chosen_is_not_flipped_for_an_unknown_side() -> None:
    rejected_pair = imported_pair(1, wrong_answers(1, 1)[0], "It is lovely.")
    assert isinstance(rejected_pair, RejectedPair)
    assert rejected_pair.reason == "contradicted_chosen"


def test_limits_per_question_and_kind() -> None:
    index = next(i for i in range(200) if draw_world(i)[1].kind == "describe" and len(draw_world(i)[0].objects) > 3)
    scene, _, question = draw_world(index)
    texts = [("policy", right_answer(index)), *[("policy", t) for t in dict.fromkeys(wrong_answers(index, 12))]]
    unit = Unit(id="i", records=tuple(check_all(scene, question, texts)))
    many = build_image_pairs(unit, PreferencesConfig(max_per_question=9, max_per_kind=9), VOCABULARY, THRESHOLDS, 0)
    few = build_image_pairs(unit, PreferencesConfig(max_per_question=3, max_per_kind=1), VOCABULARY, THRESHOLDS, 0)
    assert len(many.records) > 3
    assert [p.id for p in many.records] == [f"q{index}/p{i}" for i in range(len(many.records))]
    assert max(Counter(p.kind for p in few.records).values()) == 1
    assert {d.reason for d in few.dropped} == {"over_limit"}
    assert {p.origin for p in many.records} >= {Origin.VERIFIED, Origin.EDITED, Origin.REPAIRED}


def test_pairs_of_unequal_length_are_dropped() -> None:
    index = next(i for i in range(200) if draw_world(i)[1].kind == "describe" and len(draw_world(i)[0].objects) > 4)
    scene, item, question = draw_world(index)
    short = corrupt_answer(scene, item, random.Random(0)).split(". ")
    wrong = next(s for s in short if f"{s.removesuffix('.')}." not in item.reference)
    texts = [("policy", item.reference), ("policy", f"{wrong.removesuffix('.')}.")]
    unit = Unit(id="i", records=tuple(check_all(scene, question, texts)))
    built = build_image_pairs(unit, PreferencesConfig(origins=(Origin.VERIFIED,)), VOCABULARY, THRESHOLDS, 0)
    assert [(d.id, d.reason) for d in built.dropped] == [(f"q{index}", "length_unbalanced")]


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), max_size=8))
def test_the_pairs_that_remain_have_balanced_lengths(lengths: list[tuple[int, int]]) -> None:
    _, _, question = draw_world(0)
    pairs = [
        Preference(id=str(i), question=question, chosen="x" * a, rejected="y" * b, origin=Origin.VERIFIED)
        for i, (a, b) in enumerate(lengths)
    ]
    config = BalanceConfig(max_mean_gap=0.1, free_gap=2)
    out = select_skewing(pairs, config)
    rest = [p for p in pairs if p not in out]
    assert bool(rest) == bool(pairs)
    if len(rest) > 1:
        mean = sum(map(length_gap, rest)) / len(rest)
        length = sum(len(p.chosen) + len(p.rejected) for p in rest) / 2 / len(rest)
        assert abs(mean) <= max(0.1 * length, 2)


def test_an_image_without_responses_is_dropped() -> None:
    unit = build_image_pairs(Unit(id="i"), PreferencesConfig(), VOCABULARY, THRESHOLDS, 0)
    assert [(d.id, d.reason) for d in unit.dropped] == [("i", "no_evidence")]


def test_gold_is_refused_as_an_origin_of_pairs() -> None:
    with pytest.raises(ValidationError, match="'gold' is not a way of making pairs; choose from imported, verified"):
        PreferencesConfig(origins=(Origin.GOLD,))
