"""Hard negatives by co-occurrence, and repairs that remove a phrase instead of its sentence."""

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from factories import detection, image, question, response
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.curation.edits import remove_phrase, split_statements
from vlgenrm_ray.curation.evidence import EvidenceConfig, EvidenceIndex, QuestionEvidence
from vlgenrm_ray.curation.hard_negatives import Cooccurrence, _CountShards
from vlgenrm_ray.curation.pair_builders import BalanceConfig, edited_pairs, repaired_pairs
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import extract_claims
from vlgenrm_ray.experts.evidence import ImageEvidence
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import CheckedResponse

COCO = load_vocabulary("coco")
TABLE = [("fork", "knife", "cup"), ("fork", "knife", "bowl"), ("fork", "spoon"), ("giraffe", "zebra")]
TOGETHER = Cooccurrence.of_images(TABLE)


def question_evidence(text: str, *nouns: str, seed: int = 0) -> QuestionEvidence:
    """A response about an image in which two detectors find the nouns, one of each, side by side."""
    seen = tuple(detection(n, "", x0=10.0 + 40 * i, x1=40.0 + 40 * i) for i, n in enumerate(nouns))
    ref = image(width=640, height=240)
    evidence = ImageEvidence(640, 240, seen, (), frozenset(COCO.nouns))
    findings = tuple(check_claim(c, evidence, COCO, Thresholds()) for c in extract_claims(text, COCO))
    checked = CheckedResponse(
        id="q0/r0",
        response=response("q0/r0", question=question(image=ref, text="What do you see?"), text=text),
        findings=findings,
        detections=seen,
        nouns_searched_twice=tuple(COCO.nouns),
    )
    index = EvidenceIndex([checked], COCO, Thresholds(), TOGETHER)
    return QuestionEvidence.from_responses([checked], index, EvidenceConfig(), seed)


# -- co-occurrence -----------------------------------------------------------------------------------------------------


def test_pairs_of_an_image_are_counted_once() -> None:
    assert TOGETHER.num_together(["fork"], "knife") == 2
    assert TOGETHER.num_together(["fork", "knife"], "cup") == 2
    assert TOGETHER.num_together(["fork"], "giraffe") == 0
    assert Cooccurrence.of_images([("dog", "dog", "cat")]).num_together(["dog"], "cat") == 1


@given(st.integers(0, 1000))
def test_an_order_has_every_noun_once_and_depends_on_the_seed_alone(seed: int) -> None:
    others = ["cup", "bowl", "giraffe"]
    order = TOGETHER.shuffle(others, ["fork"], random.Random(seed))
    assert sorted(order) == sorted(others)
    assert order == TOGETHER.shuffle(others, ["fork"], random.Random(seed))


def test_nouns_come_first_in_proportion_to_how_often_they_occur_together() -> None:
    rng = random.Random(0)
    firsts = Counter(TOGETHER.shuffle(["knife", "giraffe"], ["fork"], rng)[0] for _ in range(4000))
    assert firsts["knife"] / 4000 == pytest.approx(3 / 4, abs=0.03)


def test_wrong_objects_of_edits_tend_to_occur_with_those_of_the_image() -> None:
    together = Cooccurrence.of_images([("fork", "knife")] * 400)
    objects: Counter[str] = Counter()
    for seed in range(60):
        evidence = question_evidence("There is a fork.", "fork", seed=seed)
        evidence.index.cooccurrence = together
        for pair in edited_pairs(evidence, BalanceConfig()):
            objects.update(n for n in COCO.nouns if n != "fork" and f" {n}." in pair.rejected)
    assert objects["knife"] > 0.7 * objects.total() > 0


def test_an_object_that_is_in_the_image_is_no_negative() -> None:
    for seed in range(30):
        for pair in edited_pairs(question_evidence("There is a fork.", "fork", "knife", seed=seed), BalanceConfig()):
            assert "knife" not in pair.rejected


def test_nouns_are_counted_from_the_detections_of_a_stage(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "experts")
    folder.begin("test", {})
    checked = [
        CheckedResponse(
            id=f"q{i}/r{k}",
            response=response(f"q{i}/r{k}", question=question(f"q{i}", image=image(sha256=str(i)))),
            findings=(),
            detections=(*(detection(noun, score=0.9) for noun in nouns), detection("bus", score=0.2)),
        )
        for i, nouns in enumerate(TABLE)
        for k in range(2)
    ]
    units = [Unit(id=a.id, records=(a, b)) for a, b in zip(checked[::2], checked[1::2], strict=True)]
    write_units(folder, CheckedResponse, units[:1])
    write_units(folder, CheckedResponse, units[1:])
    folder.finish(seconds=0.0)
    paths = pa.table({"path": [str(path) for path in folder.shards()]})
    total: Counter[tuple[str, str]] = Counter()
    for table in _CountShards(folder)(paths):
        total.update({(row["noun"], row["other"]): row["images"] for row in table.to_pylist()})
    assert paths.num_rows == 2
    assert total == TOGETHER.pairs, "each image once, without weak boxes"


# -- repairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("A dog, a cat and a bus.", "a cat", "A dog and a bus."),
        ("A dog, a cat and a bus.", "A dog", "A cat and a bus."),
        ("A dog, a cat and a bus.", "a bus", "A dog and a cat."),
        ("A dog, a cat, and a bus.", "a cat", "A dog and a bus."),
        ("A dog and a cat.", "a cat", "A dog."),
        ("A dog with a cat.", "a cat", "A dog."),
        ("There are a dog and a cat.", "a cat", "There is a dog."),
        ("A dog and a cat sit on a bench.", "A dog", "A cat sits on a bench."),
        ("Look! A dog and a cat.", "A dog", "Look! A cat."),
    ],
)
def test_a_phrase_is_removed_from_its_list(text: str, phrase: str, expected: str) -> None:
    statements = {text[s.start : s.end]: s for s in split_statements(text, COCO)}
    assert next(remove_phrase(text, statements[phrase])) == expected


def test_a_phrase_that_carries_others_is_not_cut_out() -> None:
    text = "There is a dog. A cat sits on a bench."
    for statement in split_statements(text, COCO):
        assert list(remove_phrase(text, statement)) == []


def test_a_repair_removes_the_wrong_item_and_keeps_the_rest_of_its_sentence() -> None:
    (pair,) = repaired_pairs(question_evidence("A fork, a giraffe and a bowl.", "fork", "bowl"), BalanceConfig())
    assert pair.rejected == "A fork, a giraffe and a bowl."
    assert pair.chosen == "A fork and a bowl."
