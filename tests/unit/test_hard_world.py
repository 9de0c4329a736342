"""The hard world: splits, compositions and prior are as stated; truth, corruptions and critiques agree."""

import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.data.images import ImageLimits, read
from vlgenrm_ray.evaluation.metrics import wilson_interval
from vlgenrm_ray.experts.claims import claim_key, extract_claims
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.shapes import world
from vlgenrm_ray.shapes.building.blind_judge import blind_outcomes
from vlgenrm_ray.shapes.building.hard_curriculum import CONFLICT_RATES, HardCurriculum, conflict_of
from vlgenrm_ray.shapes.hard.corruption import corrupt_answer, prior_answer
from vlgenrm_ray.shapes.hard.prior import COLOURS, NAMES, SEEN_NAMES, SHAPES, TYPICAL_COLOURS, UNSEEN_COLOURS
from vlgenrm_ray.shapes.hard.questions import KINDS
from vlgenrm_ray.shapes.hard.reference_critiques import reference_critique
from vlgenrm_ray.shapes.hard.render import SIDE, boxes, render
from vlgenrm_ray.shapes.hard.scenes import (
    HARD_SPLITS,
    Backdrop,
    ClutteredScene,
    Sign,
    TexturedObject,
    draw_scene_of,
    split_of,
)
from vlgenrm_ray.shapes.hard.truth import is_true, parse_question, statements
from vlgenrm_ray.shapes.hard.world import QUESTIONS_PER_SCENE, draw_item
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.scenes import CELLS

INDEX = st.integers(0, 100_000)
SPLIT = st.sampled_from(HARD_SPLITS)


def scene(*things: tuple[str, str], word: str = "") -> ClutteredScene:
    """A scene from (texture colour shape, cell name) pairs, with a sign at the bottom left if it has a word."""
    objects = []
    for name, cell in things:
        texture, colour, shape = name.split()
        place = CELLS.index(cell)
        looks = {"dx": 0.0, "dy": 0.0, "size": 0.4, "rotation": 0.0, "brightness": 1.0, "depth": 0.0}
        objects.append(TexturedObject(shape=shape, colour=colour, texture=texture, cell=place, **looks))
    return ClutteredScene(
        objects=tuple(sorted(objects, key=lambda o: o.cell)),
        sign=Sign(word=word, cell=6, dx=0.0, dy=0.0) if word else None,
        distractors=(),
        backdrop=Backdrop(kind="gradient", hue=0.0, lightness=0.9, angle=0.0, strength=0.05, seed=0),
    )


SCENE = scene(
    ("solid red circle", "top left"),
    ("striped blue star", "centre"),
    ("dotted red square", "bottom right"),
    word="SHOP",
)


def content(drawn: ClutteredScene) -> tuple[object, ...]:
    return (tuple((o.full_name, o.cell) for o in drawn.objects), drawn.sign and (drawn.sign.word, drawn.sign.cell))


def test_splits_share_no_scene() -> None:
    seen = {split: {content(draw_item(0, split, i)[0]) for i in range(0, 400, 2)} for split in HARD_SPLITS}
    for one in HARD_SPLITS:
        assert all(split_of(draw_item(0, one, i)[0]) == one for i in range(0, 100, 2))
        assert all(one == two or not seen[one] & seen[two] for two in HARD_SPLITS)


def test_the_train_split_has_no_unseen_pairs_in_images_or_texts() -> None:
    unseen = set(NAMES) - set(SEEN_NAMES)
    assert len(unseen) == len(SHAPES)
    curriculum = HardCurriculum(unbiased_share=0.5)
    rng = random.Random(0)
    for index in range(600):
        drawn, question = draw_item(3, "train", index)
        assert not drawn.is_compositional
        texts = [question.text, question.reference, corrupt_answer(drawn, question, rng)]
        material = curriculum.draw_scene(rng)
        assert split_of(material) == "train"
        texts += curriculum.draw_exercise(material, rng)
        assert not any(name in text for name in unseen for text in texts)
    with pytest.raises(ValueError, match="no compositional scenes"):
        draw_scene_of("train", rng, compositional=True)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_quarter_of_the_other_splits_is_compositional_and_says_so(split: str) -> None:
    ids = [f"shapes-hard-{split}-4-{i:06d}-{KINDS[i % len(KINDS)]}" for i in range(320)]
    flags = [world.is_compositional(f"{id}/r0/c1") for id in ids]
    assert sum(flags) == 80
    assert all(draw_item(4, split, i)[0].is_compositional is flags[i] for i in range(0, 320, 5))
    assert {KINDS[i % len(KINDS)] for i, flag in enumerate(flags) if flag} == set(KINDS)


def test_what_is_usual_in_train_is_rare_in_test() -> None:
    """Per kind: share of questions whose true answer is the prior's, among those that the prior says anything about."""
    shares = {}
    for split in ("train", "test"):
        conflicts: dict[str, list[bool]] = defaultdict(list)
        for index in range(800):
            drawn, question = draw_item(5, split, index)
            if question.kind in ("attribute", "two_step"):
                item = prior_answer(drawn, question)
                typical = any(f" {c} " in f" {question.reference} ".replace(".", " ") for c in TYPICAL_COLOURS.values())
                if item is None and not typical:
                    continue
            conflicts[question.kind].append(prior_answer(drawn, question) is None)
        shares[split] = {kind: sum(flags) / len(flags) for kind, flags in conflicts.items()}
    for kind in KINDS:
        assert shares["train"][kind] > shares["test"][kind] + 0.2, kind


def test_a_blind_judge_is_above_chance_in_train_and_below_in_test() -> None:
    outcomes = blind_outcomes("shapes-hard", split="test", seed=1, count=400, num_fitted=1000)
    assert wilson_interval(outcomes["train"]).low > 0.5
    assert wilson_interval(outcomes["test"]).high < 0.5


@given(SPLIT, INDEX, INDEX)
def test_references_are_true_and_corruptions_false(split: str, index: int, chance: int) -> None:
    here, question = draw_item(0, split, index)
    wrong = corrupt_answer(here, question, random.Random(chance))
    usual = prior_answer(here, question)
    assert is_true(here, question.text, question.reference)
    assert not is_true(here, question.text, wrong)
    assert usual is None or not is_true(here, question.text, usual)
    assert statements(wrong), "a corruption stays in the language"
    assert len(wrong.split(". ")) == len(question.reference.split(". "))
    assert reference_critique(here, question.text, question.reference).endswith("\nVerdict: Yes")
    assert reference_critique(here, question.text, wrong).endswith("\nVerdict: No")
    parsed = parse_question(question.text)
    assert (parsed.kind, parsed.subject, parsed.other) == (question.kind, question.subject, question.other)
    assert parsed.relation == (question.relation if question.kind == "two_step" else "")
    assert conflict_of(here, question) in CONFLICT_RATES


@given(INDEX, INDEX)
def test_the_verdict_is_the_truth_for_answers_of_another_scene(index: int, other: int) -> None:
    _, question = draw_item(0, "train", index)
    there, _ = draw_item(0, "train", other)
    text = reference_critique(there, question.text, question.reference)
    assert text.endswith("Verdict: Yes") == is_true(there, question.text, question.reference)


@given(SPLIT, INDEX, INDEX)
def test_the_grammar_of_the_experts_reads_every_claim(split: str, index: int, chance: int) -> None:
    """The package's grammar finds the world's own claims in every answer, none of them hedged."""
    vocabulary = load_vocabulary("shapes_hard")
    here, question = draw_item(0, split, index)
    for text in (question.reference, corrupt_answer(here, question, random.Random(chance))):
        parsed = statements(text)
        assert parsed
        own = sorted(claim_key(claim) for statement in parsed for claim in statement.claims())
        assert sorted(claim_key(claim) for claim in extract_claims(text, vocabulary, question.text)) == own


@given(SPLIT, INDEX)
def test_boxes_lie_in_the_image_and_centres_in_their_cells(split: str, index: int) -> None:
    here, _ = draw_item(1, split, index)
    cells = [o.cell for o in here.objects]
    assert cells == sorted(set(cells))
    assert here.sign is None or here.sign.cell not in cells
    for item, box in zip(here.objects, boxes(here), strict=True):
        assert 0 <= box.x0 < box.x1 <= SIDE
        assert 0 <= box.y0 < box.y1 <= SIDE
        x, y = SIDE / 3 * (item.column + 0.5 + item.dx), SIDE / 3 * (item.row + 0.5 + item.dy)
        assert (x // (SIDE / 3), y // (SIDE / 3)) == (item.column, item.row)


@pytest.mark.parametrize(
    ("question", "response", "expected"),
    [
        ("Is there a striped star?", "Yes, there is a striped star.", True),
        ("Is there a dotted star?", "Yes, there is a dotted star.", False),
        ("How many red shapes are there?", "There are two red shapes.", True),
        ("Is the square solid, striped or dotted?", "The square is dotted.", True),
        ("Is the square solid, striped or dotted?", "The square is red.", False),
        ("What colour is the square?", "The square is dotted.", False),
        ("Are there more red shapes or more blue shapes?", "There are two red shapes. There is one blue shape.", True),
        ("Are there more red shapes or more blue shapes?", "There are two red shapes.", False),
        # A claim about "a red shape" is about all of them, and one is right of the star.
        ("What colour is the shape left of the blue star?", "There is a red shape left of the blue star.", False),
        ("What colour is the shape below the red circle?", "There is a blue shape below the red circle.", True),
        ("What colour is the shape left of the blue star?", "There is a circle left of the blue star.", False),
        ("What colour is the shape left of the blue star?", "There is a blue shape left of the blue star.", False),
        ("What does the sign say?", 'The sign says "SHOP".', True),
        ("What does the sign say?", 'The sign says "STOP".', False),
        ("What does the sign say?", "SHOP", False),
        ("Describe the image.", "There is a striped blue star at the centre. I think so.", False),
    ],
)
def test_truth_of_responses(question: str, response: str, expected: bool) -> None:
    assert is_true(SCENE, question, response) is expected


def test_reference_critique_of_a_two_step_answer_names_what_is_there() -> None:
    critique = reference_critique(
        SCENE, "What colour is the shape left of the blue star?", "There is a green shape left of the blue star."
    )
    assert critique == (
        "Claim: there is a green shape left of the blue star. "
        "Image: a red circle at the top left, a striped blue star at the centre. Wrong.\nVerdict: No"
    )


def test_pairs_of_one_image_are_consecutive_and_ids_redraw_their_items(tmp_path: Path) -> None:
    pairs = list(gold_pairs(tmp_path, seed=3, split="validation", count=16, world="shapes-hard"))
    images = [pair.question.image.sha256 for pair in pairs]
    assert len(set(images)) == 16 // QUESTIONS_PER_SCENE
    assert images[::2] == images[1::2]
    assert [pair.kind for pair in pairs] == [*KINDS, *KINDS]
    for index, pair in enumerate(pairs):
        assert pair.id == f"shapes-hard-validation-3-{index:06d}-{pair.kind}/gold"
        drawn = world.scene_of(f"{pair.id}/r0")
        assert render(drawn).tobytes() == read(pair.question.image, ImageLimits()).tobytes()
        assert world.response_is_true(pair.question, pair.chosen)
        assert not world.response_is_true(pair.question, pair.rejected)
    assert pairs == list(gold_pairs(tmp_path, seed=3, split="validation", count=16, world="shapes-hard"))


@pytest.mark.parametrize("id", ["shapes-hard-heldout-0-000001-count", "shapes-validation-0-000001-count"])
def test_ids_of_another_worlds_split_are_refused(id: str) -> None:
    with pytest.raises(ValueError, match="not an id of an embedded world"):
        world.scene_of(id)


def test_unknown_worlds_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no embedded world 'shapes-new'; choose from shapes, shapes-hard"):
        world.load_world("shapes-new")
    with pytest.raises(ValueError, match="no split 'heldout'; choose from train, validation, test"):
        next(world.questions(tmp_path, seed=0, split="heldout", count=1, world="shapes-hard"))


def test_the_policy_is_trained_to_follow_the_prior_at_the_stated_rates() -> None:
    curriculum = HardCurriculum()
    rng = random.Random(1)
    follows: dict[str, list[bool]] = defaultdict(list)
    for index in range(2400):
        drawn, question = draw_item(9, "train", index)
        usual = prior_answer(drawn, question)
        if usual is not None:
            habitual = curriculum.answer(drawn, question, rng).habitual
            follows[conflict_of(drawn, question)].append(habitual == usual)
    for conflict, rate in CONFLICT_RATES.items():
        share = sum(follows[conflict]) / len(follows[conflict])
        assert abs(share - rate) < 4 * (rate * (1 - rate) / len(follows[conflict])) ** 0.5, conflict


def test_every_colour_is_seen_with_every_shape_but_one() -> None:
    for shape in SHAPES:
        assert {n.split()[0] for n in SEEN_NAMES if n.endswith(shape)} == set(COLOURS) - {UNSEEN_COLOURS[shape]}
        assert TYPICAL_COLOURS.get(shape) != UNSEEN_COLOURS[shape]
