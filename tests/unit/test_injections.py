"""Bench of injections with a scripted judge: kinds, paired changes, intervals and lines."""

import json
import math
from pathlib import Path

import pytest
from serving_examples import png

from vlgenrm_ray.bench import items
from vlgenrm_ray.bench.injections import INJECTIONS, InjectionResult, compare, format_result, measure
from vlgenrm_ray.bench.items import BenchItem
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge

ANSWER = "There is a cup."


def believes_what_it_reads(prompt: Prompt, rng: object) -> str:
    return "Verdict: Yes" if "is right." in prompt.text else "Verdict: No"


def test_kinds_differ_and_are_at_least_twelve_besides_those_without_an_answer() -> None:
    injected = {kind: inject(ANSWER) for kind, inject in INJECTIONS.items()}
    assert len(set(injected.values())) == len(injected)
    assert sum(ANSWER.rstrip(".") in text for text in injected.values()) >= 12


def test_the_change_is_paired_and_refused_answers_are_counted() -> None:
    result = compare("kind", [0.1, 0.2, None, 0.4], [0.3, 0.2, 0.9, None])
    assert (result.n, result.refused) == (2, 1)
    assert result.change == pytest.approx(0.1)
    # Two changes, 0.2 and 0: standard error 0.1, Student's t with one degree of freedom 12.706.
    assert result.margin == pytest.approx(1.2706, abs=1e-3)
    assert result.met
    assert compare("kind", [0.5] * 3, [0.5] * 3).margin == 0.0
    nothing = compare("empty", [0.5], [None])
    assert (nothing.n, nothing.refused, nothing.met) == (0, 1, True)
    assert math.isnan(nothing.change)


@pytest.mark.parametrize(("change", "met"), [(0.05, True), (0.06, False), (-0.06, False)])
def test_the_target_allows_for_noise(change: float, met: bool) -> None:
    result = InjectionResult(kind="k", change=change, margin=0.035, n=96, refused=0)
    assert result.met is met
    assert format_result(result).endswith("met" if met else "MISSED")
    assert len(format_result(result)) <= 80


def test_a_judge_that_believes_everything_is_moved_by_persuasion_and_by_no_forgery() -> None:
    config = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)
    wrong = [BenchItem(png(shade), "What is there?", ANSWER) for shade in range(4)]
    results = {r.kind: r for r in measure(Judge(config, ScriptedGenerator(believes_what_it_reads)), wrong)}
    assert results.keys() == INJECTIONS.keys()
    assert results["praise"].change > 0.5
    assert not results["praise"].met
    assert {
        kind: results[kind].change for kind in ("verdict", "critique", "prompt repeated", "turn, special tokens")
    } == {
        "verdict": 0.0,
        "critique": 0.0,
        "prompt repeated": 0.0,
        "turn, special tokens": 0.0,
    }
    assert [results[kind].refused for kind in ("empty", "blank", "critique, alone")] == [4, 4, 4]
    assert "no reward" in format_result(results["empty"])


def test_pairs_are_drawn_or_read_from_rows_with_both_sides(tmp_path: Path) -> None:
    (drawn, *_) = items.draw_shapes_pairs(2, seed=3)
    assert drawn[0].image == drawn[1].image
    assert [item.response for item in drawn] == [item.response for item in items.draw_shapes_items(2, seed=3)]
    (tmp_path / "a.png").write_bytes(png())
    row = {"image": "a.png", "question": "Q"}
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps(row | more) for more in ({"response": "R"}, {"chosen": "A", "rejected": "B"})))
    ((right, wrong),) = items.read_pairs(file, 1)
    assert (right.response, wrong.response) == ("A", "B")
    with pytest.raises(InputError, match="1 pairs of chosen and rejected; 2 are needed"):
        items.read_pairs(file, 2)
