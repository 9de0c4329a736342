"""Training data of a pairwise judge: critiques in both orders, selection by margin, the cold start, checks, metrics."""

import random

import factories
import pytest
from PIL import Image

from vlgenrm_ray.data.images import ImageLimits, probe
from vlgenrm_ray.data.store import Unit
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.evaluation.metrics import order_metrics
from vlgenrm_ray.evaluation.pairs import judge_pairs, pair_metrics
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.records import Critique, ExampleKind, Judgement, PairResult, Preference, Side
from vlgenrm_ray.reward import critiques
from vlgenrm_ray.reward.examples import JudgeTemplates
from vlgenrm_ray.reward.rejection_sampling import is_right, margin
from vlgenrm_ray.reward.selection import SelectionConfig, select_examples
from vlgenrm_ray.reward.training_data import probe_prefix
from vlgenrm_ray.rewards.critique_checks import (
    CritiqueChecker,
    compose_sections,
    cut_before_verdict,
    follows_from_steps,
    split_sections,
)

JUDGE = JudgeConfig(kind="pairwise", prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)
TEMPLATES = JudgeTemplates.load(JUDGE)
CHECKER = CritiqueChecker.from_vocabulary("shapes", Thresholds())
RIGHT = "Claim: there is a red circle. Image: a red circle at the top left. Right."
WRONG = "Claim: there is no red circle. Image: a red circle at the top left. Wrong."
FALSE = "Claim: there is a red circle. Image: a blue star at the top left. Wrong."


@pytest.fixture
def pair(tmp_path: object) -> Preference:
    path = f"{tmp_path}/a.png"
    Image.new("RGB", (16, 16)).save(path)
    question = factories.question(image=probe(path, ImageLimits()))
    return factories.preference(question=question, detections=(factories.detection(),))


def compares(prompt: Prompt, chance: random.Random) -> str:
    """Prefer "Yes" with the right reasons."""
    yes_first = "Response A: Yes" in prompt.text
    steps = (RIGHT, WRONG) if yes_first else (WRONG, RIGHT)
    return compose_sections(*steps, "A" if yes_first else "B")


def critique(pair: Preference, side: Side, k: int, text: str, verdict: str, p: float) -> Critique:
    return factories.critique(
        f"{pair.id}/{side}/c{k}", preference_id=pair.id, side=side, text=text, verdict=verdict, p_yes=p
    )


def test_each_order_gets_k_critiques_of_both_responses(pair: Preference) -> None:
    judge = Judge(JUDGE, ScriptedGenerator(compares, confidence=0.8))
    (unit,) = critiques.write_critiques(judge, [pair], round=2, hint=False)
    assert [c.id for c in unit.records] == [f"q0/p0/{side}/c{k}" for side in Side for k in range(2)]
    assert {(c.side, c.verdict) for c in unit.records} == {(Side.CHOSEN, "a"), (Side.REJECTED, "b")}
    assert all(is_right(c) for c in unit.records)
    # The margin of both orders is that of the averaged probability: m = 2 p - 1.
    chosen_first, _, rejected_first, _ = (c.p_yes or 0.0 for c in unit.records)
    p = (chosen_first + 1 - rejected_first) / 2
    assert margin(chosen_first, rejected_first, SelectionConfig().margin) == pytest.approx(2 * p - 1)


def test_selected_critiques_become_examples_with_the_judges_own_prompts(pair: Preference) -> None:
    judge = Judge(JUDGE, ScriptedGenerator(compares, confidence=0.8))
    (unit,) = critiques.write_critiques(judge, [pair], round=2, hint=False)
    examples = select_examples(unit, pair, SelectionConfig(check_claims=True), TEMPLATES, CHECKER).records
    by_kind = {kind: [e for e in examples if e.kind is kind] for kind in ExampleKind}
    assert [(e.label, e.completion[-10:]) for e in by_kind[ExampleKind.CRITIQUE]] == [
        ("a", "Verdict: A"),
        ("b", "Verdict: B"),
    ]
    assert [(e.label, e.completion) for e in by_kind[ExampleKind.DIRECT]] == [("a", "A"), ("b", "B")]
    for example, item in zip(
        by_kind[ExampleKind.CRITIQUE], (critiques.judge_item(pair, s, pairwise=True) for s in Side), strict=True
    ):
        assert example.prompt == judge.prompt(item, ()).text, "trained on the prompt that it will be asked"
        assert probe_prefix(example) == example.completion[:-2]


@pytest.mark.parametrize(
    ("text", "verdict", "reason"),
    [
        (compose_sections(RIGHT, WRONG, "B"), "b", DropReason.WRONG_VERDICT),
        (compose_sections(RIGHT, WRONG, "C"), "tie", DropReason.WRONG_VERDICT),
        (compose_sections(FALSE, WRONG, "A"), "a", DropReason.CONTRADICTED_CRITIQUE),
        (compose_sections(RIGHT, RIGHT, "A"), "a", DropReason.UNFAITHFUL_CRITIQUE),
        (f"{RIGHT}\n{WRONG}\nVerdict: A", "a", DropReason.UNFAITHFUL_CRITIQUE),
    ],
)
def test_a_faulty_critique_of_a_pair_is_dropped_with_its_fault(
    pair: Preference, text: str, verdict: str, reason: DropReason
) -> None:
    good = critique(pair, Side.REJECTED, 0, compose_sections(WRONG, RIGHT, "B"), "b", 0.1)
    unit = Unit(id=pair.id, records=(critique(pair, Side.CHOSEN, 0, text, verdict, 0.9), good))
    config = SelectionConfig(check_claims=reason is DropReason.UNFAITHFUL_CRITIQUE)
    selected = select_examples(unit, pair, config, TEMPLATES, CHECKER)
    assert selected.records == ()
    assert {d.id: d.reason for d in selected.dropped}[f"{pair.id}/chosen/c0"] == reason


def test_the_cold_start_composes_pointwise_critiques_of_both_sides(pair: Preference) -> None:
    about_chosen = critique(pair, Side.CHOSEN, 0, f"{RIGHT}\nVerdict: Yes", "yes", 0.9)
    about_rejected = critique(pair, Side.REJECTED, 0, f"{WRONG}\nVerdict: No", "no", 0.2)
    unit = Unit(id=pair.id, records=(about_chosen, about_rejected))
    config = SelectionConfig(w_direct=0.0, lambda_answer=0.0)
    first, second = select_examples(unit, pair, config, TEMPLATES, CHECKER).records
    assert (first.id, second.id) == (f"{about_chosen.id}/example", f"{about_rejected.id}/example")
    assert first.completion == f"Response A.\n{RIGHT}\nResponse B.\n{WRONG}\nVerdict: A"
    assert second.completion == f"Response A.\n{WRONG}\nResponse B.\n{RIGHT}\nVerdict: B"
    assert (first.label, second.label) == ("a", "b")
    assert first.prompt == TEMPLATES.critique_prompt(pair, Side.CHOSEN)
    assert follows_from_steps(first.completion, "a")


def test_equal_verdicts_on_both_sides_compose_a_tie(pair: Preference) -> None:
    records = tuple(critique(pair, side, 0, f"{RIGHT}\nVerdict: Yes", "yes", 0.9) for side in Side)
    config = SelectionConfig(strategy="keep_all", check_evidence=False, w_direct=0.0, lambda_answer=0.0)
    examples = select_examples(Unit(id=pair.id, records=records), pair, config, TEMPLATES, None).records
    assert [(e.label, e.completion[-10:]) for e in examples] == [("tie", "Verdict: C")] * 2


@pytest.mark.parametrize(
    ("text", "verdict", "follows"),
    [
        (f"{RIGHT}\nVerdict: Yes", "yes", True),
        (f"{RIGHT}\nVerdict: No", "no", False),
        (f"{WRONG}\nVerdict: No", "no", True),
        (f"{WRONG}\nVerdict: Yes", "yes", False),
        ("Verdict: Yes", "yes", False),
        (compose_sections(RIGHT, WRONG, "A"), "a", True),
        (compose_sections(WRONG, f"{WRONG}\n{WRONG}", "A"), "a", True),
        (compose_sections(RIGHT, WRONG, "B"), "b", False),
        (compose_sections(RIGHT, RIGHT, "C"), "tie", True),
        (compose_sections(RIGHT, RIGHT, "A"), "a", False),
        (compose_sections(RIGHT, "", "C"), "tie", False),
        (f"Response B.\n{WRONG}\nResponse A.\n{RIGHT}\nVerdict: A", "a", False),
    ],
)
def test_a_verdict_follows_from_the_steps_of_its_critique(text: str, verdict: str, follows: bool) -> None:
    assert follows_from_steps(text, verdict) is follows


def test_sections_and_rationales_are_cut_out_of_a_critique() -> None:
    assert split_sections(compose_sections(RIGHT, WRONG, "A")) == (f"\n{RIGHT}\n", f"\n{WRONG}\nVerdict: A")
    assert split_sections(f"**Response A:**\n{RIGHT}\n### Response B\n{WRONG}") == (f"\n{RIGHT}\n", f"\n{WRONG}")
    assert split_sections(f"{RIGHT}\nVerdict: A") is None
    assert cut_before_verdict(f"{RIGHT}\n**Verdict:** Yes.") == RIGHT
    assert cut_before_verdict(RIGHT) is None


def result(id: str, chosen_first: float | None, rejected_first: float | None) -> PairResult:
    def judgement(p: float | None) -> Judgement:
        return Judgement(id=id, reward=p, status="ok" if p is not None else "timeout")

    return PairResult(
        id=id, preference_id=id, kind="", chosen=judgement(chosen_first), rejected=judgement(rejected_first)
    )


def test_a_pair_is_shown_in_both_orders_and_counted_once(pair: Preference) -> None:
    judge = Judge(JUDGE, ScriptedGenerator(compares, confidence=0.8))
    (unit,) = judge_pairs(judge, [pair], limits=ImageLimits())
    (judged,) = unit.records
    assert (judged.chosen.reward, judged.rejected.reward) == (pytest.approx(0.85), pytest.approx(0.15))
    metrics = pair_metrics([judged], [pair], pairwise=True)
    assert (metrics["pairwise_accuracy"], metrics["orders"]["both_right"]) == (1.0, 1.0)
    assert "orders" not in pair_metrics([judged], [pair])


def test_a_position_bias_is_measured_and_cancels_in_the_accuracy() -> None:
    results = [result("a", 0.9, 0.7), result("b", 0.6, 0.8), result("c", 0.8, 0.1), result("d", None, 0.5)]
    metrics = order_metrics(results)
    assert metrics["position_bias"] == pytest.approx((0.9 + 0.7 + 0.6 + 0.8 + 0.8 + 0.1) / 6 - 0.5, abs=1e-6)
    shares = [metrics[name] for name in ("both_right", "both_wrong", "first_position", "second_position")]
    assert shares == pytest.approx([1 / 3, 0.0, 2 / 3, 0.0], abs=1e-6)
    assert order_metrics([])["position_bias"] is None
