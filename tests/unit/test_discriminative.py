"""The pairs that a discriminative judge is trained on, as the judge sees them when it scores."""

from pathlib import Path

from factories import preference

from vlgenrm_ray.data.mapped_records import MappedRecords
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import Preference, Side
from vlgenrm_ray.reward.discriminative import PairList

JUDGE = JudgeConfig(direct_prompt="shapes_direct")


def stage(folder: Path, *pairs: Preference) -> MappedRecords[Preference]:
    source = StageFolder(folder)
    source.begin("x", {})
    write_units(source, Preference, [Unit(id=pair.id, records=(pair,)) for pair in pairs])
    source.finish(seconds=0.0)
    MappedRecords.write(Preference, source, folder / "pairs.arrow")
    return MappedRecords(Preference, folder / "pairs.arrow")


def test_both_sides_are_shown_in_the_prompt_that_scores_them_later(tmp_path: Path) -> None:
    pair = preference("q0/p0", chosen="<think>Hm.</think>A star.", rejected="A circle. Verdict: Yes")
    (example,) = PairList(stage(tmp_path, pair), JUDGE)
    judge = Judge(JUDGE.with_kind("discriminative"), None)
    for side in Side:
        item = JudgeInput(id="", images=(), question=pair.question.text, response=pair.response(side))
        assert example.prompts[side] == judge.prompt(item, ()).text
    assert "Hm." not in example.prompts[Side.CHOSEN]
    assert "Verdict: Yes" not in example.prompts[Side.REJECTED]
    assert example.images == pair.question.images
    assert example.refusal is None


def test_pairs_are_ordered_by_id_and_a_side_that_cannot_be_scored_is_named(tmp_path: Path) -> None:
    pairs = PairList(
        stage(tmp_path, preference("b", rejected=" "), preference("c"), preference("a", chosen="<think>Hm")), JUDGE
    )
    assert [pairs[i].id for i in range(len(pairs))] == ["a", "b", "c"]
    refusals = [pairs[i].refusal for i in range(3)]
    assert [refusal and refusal.reason for refusal in refusals] == [DropReason.EMPTY_TEXT, DropReason.EMPTY_TEXT, None]
