"""The trace of a record in a small run folder made by hand."""

from pathlib import Path
from typing import Any

import factories
import pytest

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import (
    CheckedResponse,
    Checkpoint,
    Critique,
    Dropped,
    Example,
    Finding,
    Judgement,
    Origin,
    PairResult,
    Preference,
    Question,
    Response,
    Side,
    Truth,
)
from vlgenrm_ray.report.trace import trace

QUESTION = factories.question("q/1", text="How many circles are there?", kind="count", reference="There is one circle.")
OTHER_QUESTION = factories.question("q/10")
PAIR = factories.preference(
    "q/1/p0",
    question=QUESTION,
    chosen="There is one circle.",
    rejected="There are two circles.",
    origin=Origin.EDITED,
    kind="count",
    evidence="one circle detected, two claimed",
    edit_start=10,
    edit_end=13,
    chosen_id="q/1/r0",
    rejected_id="q/1/r0/e",
)
FAILED_PAIR = factories.preference("q/1/p1", question=QUESTION, chosen_id="q/1/r0", rejected_id="q/1/r3")
HELDOUT_PAIR = factories.preference("h1/gold", question=factories.question("h1"), origin=Origin.GOLD, kind="count")


def stage(path: Path, cls: type, *units: Unit[Any]) -> None:
    folder = StageFolder(path)
    folder.begin("settings", {})
    for unit in units:
        write_units(folder, cls, [unit])


def response(id: str, question: Question, text: str) -> Response:
    return factories.response(id, question=question, text=text, sampler="base", seed=12, num_tokens=5)


def critique(side: Side, index: int, p_yes: float | None) -> Critique:
    word = None if p_yes is None else "yes" if p_yes > 0.5 else "no"
    id = f"q/1/p0/{side.value}/c{index}"
    text = f"Claim: {index} of {side.value}. Image: one circle. Right.\nVerdict: {word or '...'}"
    return factories.critique(id, preference_id=PAIR.id, side=side, text=text, verdict=word, p_yes=p_yes)


def example(id: str, label: str = "yes") -> Example:
    return factories.example(id, image=QUESTION.image, label=label)


def drop(stage: str, id: str, reason: str, detail: str = "") -> Dropped:
    return Dropped(stage=stage, id=id, reason=reason, detail=detail)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    stage(run / "pool", Question, Unit(id="row 1", records=(QUESTION,)), Unit(id="row 2", records=(OTHER_QUESTION,)))
    responses = [
        response("q/1/r0", QUESTION, "There is one circle."),
        response("q/1/r1", QUESTION, "There are five circles."),
    ]
    same = drop("responses", "q/1/r2", "duplicate_text", "same as q/1/r0")
    elsewhere = response("q/10/r0", OTHER_QUESTION, "No, there is no red circle.")
    stage(
        run / "responses",
        Response,
        Unit(id="q/1", records=tuple(responses), dropped=(same,)),
        Unit(id="q/10", records=(elsewhere,)),
    )
    claim = factories.claim(subject="circle", text="There is one circle")
    finding = Finding(claim=claim, truth=Truth.SUPPORTED, expert="detector", score=0.93, boxes=(factories.box(),))
    checked = [
        CheckedResponse(
            id=r.id, response=r, findings=(finding,) if r is responses[0] else (), detections=(factories.detection(),)
        )
        for r in (*responses, elsewhere)
    ]
    stage(run / "experts", CheckedResponse, Unit(id="image", records=tuple(checked)))
    stage(run / "preferences", Preference, Unit(id="image", records=(PAIR, FAILED_PAIR)))
    stage(run / "heldout", Preference, Unit(id="h1", records=(HELDOUT_PAIR,)))
    critiques = [critique(Side.CHOSEN, 0, 0.9), critique(Side.CHOSEN, 1, 0.3), critique(Side.REJECTED, 0, 0.2)]
    critiques.append(critique(Side.REJECTED, 1, None))
    wrong = factories.critique(f"{FAILED_PAIR.id}/chosen/c0", preference_id=FAILED_PAIR.id, verdict="no", p_yes=0.1)
    criticised = Unit(id=PAIR.id, records=tuple(critiques))
    stage(run / "round-1" / "critiques", Critique, criticised, Unit(id=FAILED_PAIR.id, records=(wrong,)))
    dropped = (
        drop("selection", critiques[1].id, "wrong_verdict", "the verdict is wrong"),
        drop("selection", critiques[3].id, "unreadable_verdict", "no verdict to read"),
    )
    examples = (example(f"{critiques[0].id}/example"), example(f"{critiques[2].id}/example", "no"))
    failed = drop("selection", FAILED_PAIR.id, "wrong_verdict", "none of 2 critiques selected")
    selected = Unit(id=PAIR.id, records=examples, dropped=dropped)
    stage(run / "round-1" / "selection", Example, selected, Unit(id=FAILED_PAIR.id, dropped=(failed,)))
    checkpoint = Checkpoint(uri="/run/round-1/training/model", round=1, parent="/pack/vlm", metrics={})
    too_long = drop("training", examples[1].id, "example_too_long", "9000 tokens")
    stage(run / "round-1" / "training", Checkpoint, Unit(id="round-1", records=(checkpoint,), dropped=(too_long,)))
    chosen = Judgement(id="x", reward=0.75, status="ok", critiques=(factories.judge_critique("A.\nVerdict: Yes"),))
    unreadable = Judgement(id="y", reward=None, status="unreadable_verdict")
    result = PairResult(
        id=HELDOUT_PAIR.id, preference_id=HELDOUT_PAIR.id, kind="count", chosen=chosen, rejected=unreadable
    )
    stage(run / "round-1" / "evaluation", PairResult, Unit(id=HELDOUT_PAIR.id, records=(result,)))
    return run


def test_an_example_is_traced_to_its_image_and_to_all_dropped_critiques(run: Path) -> None:
    text = trace(run, "q/1/p0/chosen/c0/example")
    order = [
        "QUESTION q/1",
        "image /nowhere.png (240 x 240",
        "q/1/r0  sampler base, seed 12, 5 tokens",
        'supported     existence  "There is one circle" detector 0.93',
        "circle 0.90 (10, 10)-(70, 70)",
        "q/1/p0  edited, count",
        'edited   "two"',
        "one circle detected, two claimed",
        "ROUND 1",
        "critique q/1/p0/chosen/c0  yes, p(Yes) 0.90; selected",
        "critique q/1/p0/chosen/c1  no, p(Yes) 0.30; wrong_verdict",
        "critique q/1/p0/rejected/c1  unreadable; unreadable_verdict",
        ">   example q/1/p0/chosen/c0/example  critique (yes), weight 1",
        "trained /run/round-1/training/model, from /pack/vlm",
        "example_too_long: 9000",
    ]
    positions = [text.find(part) for part in order]
    assert -1 not in positions, order[positions.index(-1)]
    assert positions == sorted(positions)
    assert "q/1/r1" not in text, "a response without pairs does not belong to this trace"


def test_a_question_shows_all_its_records_and_no_others(run: Path) -> None:
    text = trace(run, "q/1")
    assert text.startswith("> QUESTION q/1")
    for part in ("q/1/r0", "q/1/r1", "q/1/r2  by responses, duplicate_text: same as q/1/r0", "q/1/p0", "ROUND 1"):
        assert part in text
    assert "q/10" not in text


def test_a_response_shows_its_pairs(run: Path) -> None:
    assert "q/1/p0/chosen/c0" in trace(run, "q/1/r0")
    without_pairs = trace(run, "q/1/r1")
    assert "There are five circles." in without_pairs
    assert "PREFERENCES" not in without_pairs


def test_a_pair_without_examples_shows_its_reason(run: Path) -> None:
    text = trace(run, "q/1/p1")
    assert "pair q/1/p1  dropped, wrong_verdict: none of 2 critiques selected" in text
    assert "example" not in text


def test_a_held_out_pair_shows_its_judgements(run: Path) -> None:
    text = trace(run, "h1/gold")
    assert "judged h1/gold  chosen 0.750, rejected unreadable_verdict" in text
    assert "chosen: A. / Verdict: Yes" in text


def test_a_dropped_row_can_be_traced(run: Path) -> None:
    assert ">   q/1/r2  by responses, duplicate_text: same as q/1/r0" in trace(run, "q/1/r2")


@pytest.mark.parametrize("id", ["q/1", "q/1/p0", "q/1/p0/rejected/c0/example", "h1/gold", "q/1/r2"])
@pytest.mark.parametrize("width", [80, 60])
def test_lines_fit_and_the_record_is_marked(run: Path, id: str, width: int) -> None:
    lines = trace(run, id, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith(">") for line in lines)


@pytest.mark.parametrize(
    ("id", "near"), [("q/2", "q/1"), ("q/1/r7", "q/1/r0"), ("q/1/p0/chosen/c9", "q/1/p0/chosen/c0"), ("gold", "h1")]
)
def test_an_unknown_id_is_refused_with_the_nearest_ones(run: Path, id: str, near: str) -> None:
    with pytest.raises(InputError, match=f"{id}: no such id in .*nearest: .*{near}"):
        trace(run, id)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        trace(tmp_path, "q/1")


def test_all_images_of_a_question_are_listed(tmp_path: Path) -> None:
    others = tuple(factories.image(uri=f"/other{i}.png", width=10 + i) for i in range(2))
    question = factories.question("m1", more_images=others)
    stage(tmp_path / "pool", Question, Unit(id="row", records=(question,)))
    page = trace(tmp_path, "m1")
    assert "image 1 of 3 /nowhere.png (240 x 240" in page
    assert "image 3 of 3 /other1.png (11 x 240" in page
