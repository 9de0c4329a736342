"""Quality of a pack: its VLM as policy and as judge, a blind judge, and its experts' verdicts, against the truth."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlgenrm_ray import config
from vlgenrm_ray.data.images import ImageLimits, read
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.evaluation.evidence_quality import expert_quality
from vlgenrm_ray.evaluation.metrics import (
    clustered_interval,
    estimate_as_json,
    judge_metrics,
    outcomes,
    reward_arrays,
    wilson_interval,
)
from vlgenrm_ray.experts.pipeline import ExpertPipeline
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.records import CheckedResponse, PairResult, Preference, Question, Response
from vlgenrm_ray.shapes.building.blind_judge import blind_outcomes
from vlgenrm_ray.shapes.building.packs import PackPlan
from vlgenrm_ray.shapes.building.vlm_evaluation import evaluate_judge, evaluate_policy, policy_outcomes
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.world import claim_is_true, is_compositional

SEED, COUNT = 1, 1000
"""Seed and number of the questions and pairs."""
NUM_SAMPLES = 16
"""Answers to each question at temperature 1."""
EXPERT_COUNT = 400
"""Pairs whose claims the experts are measured on."""


def measure_vlm(plan: PackPlan) -> dict[str, Any]:
    """Measure the VLM as policy and as judge, with vLLM."""
    engine = VllmGenerator(VllmConfig(model=str(plan.folder / "vlm"), max_model_len=512))
    items: dict[str, Any] = {"world": plan.world, "split": plan.measured_split, "seed": SEED, "count": COUNT}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        answers = evaluate_policy(engine, images, num_samples=NUM_SAMPLES, **items)
        cot = Judge(JudgeConfig(prompt="shapes_cot", max_tokens=192), engine)
        direct = Judge(JudgeConfig(mode="direct", direct_prompt="shapes_direct"), engine)
        metrics = {
            "answers": {name: estimate_groups(values) for name, values in policy_outcomes(answers).items() if values},
            "judge": describe_judge(evaluate_judge(cot, images, **items)),
            "judge_direct": describe_judge(evaluate_judge(direct, images, **items)),
        }
    engine.close()
    metrics["answers"]["num_samples"] = NUM_SAMPLES
    blind = blind_outcomes(plan.world, split=plan.measured_split, seed=SEED, count=COUNT)
    return metrics | {"blind_judge": {split: estimate_as_json(wilson_interval(won)) for split, won in blind.items()}}


def describe_judge(judged: Sequence[tuple[Preference, PairResult]]) -> dict[str, Any]:
    """Compute the metrics of a judge, with intervals clustered by image, and its accuracy by composition."""
    results = [result for _, result in judged]
    won = outcomes(*reward_arrays(results)).tolist()
    groups = estimate_groups([(pair.question, value) for (pair, _), value in zip(judged, won, strict=True)])
    return judge_metrics(results) | {"ci95": groups["ci95"], **{k: groups[k] for k in ("by_kind", "by_composition")}}


def estimate_groups(values: Sequence[tuple[Question, float]]) -> dict[str, Any]:
    """Compute the mean of values in [0, 1], also by kind and by composition, with intervals clustered by image."""

    def estimate(part: Iterable[tuple[Question, float]]) -> dict[str, Any]:
        rows = list(part)
        clusters = [question.image.sha256 for question, _ in rows]
        return estimate_as_json(clustered_interval(np.array([value for _, value in rows]), clusters))

    kinds = sorted({question.kind for question, _ in values})
    compositions = {q.id: "compositional" if is_compositional(q.id) else "seen" for q, _ in values}
    return estimate(values) | {
        "by_kind": {kind: estimate(v for v in values if v[0].kind == kind) for kind in kinds},
        "by_composition": {
            name: estimate(v for v in values if compositions[v[0].id] == name)
            for name in sorted(set(compositions.values()))
        },
    }


def measure_experts(plan: PackPlan) -> dict[str, Any]:
    """Measure the experts of the world's recipe on the claims of true and false answers."""
    pipeline = ExpertPipeline.build(config.load(shipped_recipe(plan.recipe)).experts)
    checked = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = gold_pairs(Path(folder), seed=SEED, split=plan.measured_split, count=EXPERT_COUNT, world=plan.world)
        for pair in pairs:
            texts = (pair.chosen, pair.rejected)
            report = pipeline.report(read(pair.question.image, ImageLimits()), texts, [pair.question.text] * 2)
            for side, text, findings in zip(("chosen", "rejected"), texts, report.findings, strict=True):
                response = Response(id=f"{pair.id}/{side}", question=pair.question, text=text, sampler="gold")
                checked.append(CheckedResponse(id=response.id, response=response, findings=findings))
    return expert_quality(checked, claim_is_true)
