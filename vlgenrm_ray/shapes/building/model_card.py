"""Model card of a pack: measured metrics as JSON, and the same as Markdown."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vlgenrm_ray.shapes.building.packs import PackPlan

_HEAD = """\
# The pack of `{world}`: tiny models of {title}

Trained on the train split by `python jobs/build_shapes.py{option}`. All metrics are on the split `{split}`, none of
whose scenes is in the train split. Intervals are 95 %, clustered by image.
"""
_VLM = """
## vlm: policy and base GenRM in one

A Qwen3-VL of {parameters:,} parameters with its own byte-level BPE tokenizer. It was trained for {steps} steps of
{batch} examples (seed {seed}; the last learning-rate schedule has {horizon} steps) on {scenes} scenes, with exercises
in seeing and questions of all kinds. It has seen {judge_examples} reference critiques, each also as a bare verdict,
repeated in training: it knows the format of a judge and judges poorly, which leaves room for training.
{errors}

| role | metric | value | interval | n |
|--|--|--|--|--|
"""
_EXPERT = """
## {name}

| metric | value |
|--|--|
"""
_CLAIMS = """
## detector and matcher: verdicts on claims

Claims of true and false answers, checked by the experts of the world's recipe. Precision: how often a verdict is right.
Recall: share of the true (false) claims that are supported (contradicted). The rest is `unknown`.

| claims | n | unknown | supported: precision | recall | contradicted: precision | recall |
|--|--|--|--|--|--|--|
"""
_DECODINGS = {
    "greedy": "true answers, greedy",
    "temperature_1": "true answers at temperature 1",
    "majority": "majority of {num_samples}",
    "any": "any of {num_samples}",
}


def write(plan: PackPlan, metrics: Mapping[str, Any]) -> None:
    """Write `card.json` and `README.md` into a pack. `metrics` maps model names to their metrics."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "card.json").write_text(json.dumps(metrics, indent=1) + "\n")
    (plan.folder / "README.md").write_text(markdown(plan, metrics))


def markdown(plan: PackPlan, metrics: Mapping[str, Any]) -> str:
    """Render the card as Markdown."""
    text = _HEAD.format(world=plan.world, title=plan.title, option=plan.option, split=plan.measured_split)
    text += plan.notes
    if "vlm" in metrics:
        text += _VLM.format(errors=plan.errors, **metrics["vlm"]) + "\n".join(_vlm_rows(metrics["vlm"])) + "\n"
    for name in ("detector", "matcher"):
        if name in metrics:
            rows = (f"| {metric} | {_format(value)} |" for metric, value in metrics[name].items())
            text += _EXPERT.format(name=name) + "\n".join(rows) + "\n"
    if "experts" in metrics:
        text += _CLAIMS + "\n".join(_claim_rows(metrics["experts"])) + "\n"
    return text


def _vlm_rows(metrics: Mapping[str, Any]) -> Iterator[str]:
    answers = metrics["answers"]
    for key, name in _DECODINGS.items():
        metric = name.format(num_samples=answers["num_samples"])
        yield from _rows("policy", metric, answers[key], with_groups=key in ("greedy", "temperature_1"))
    if "prior_share" in answers:
        metric = "conflicts in which the greedy answer is the prior's"
        yield from _rows("policy", metric, answers["prior_share"], with_groups=True)
    for key, name in (("judge", "judge, 4 critiques"), ("judge_direct", "judge, bare verdict")):
        judge = metrics[key]
        accuracy = {"value": judge["pairwise_accuracy"], "num": judge["num_pairs"]}
        yield from _rows(name, "true answer ranked above the false", judge | accuracy, with_groups=True)
        yield f"| | share of responses with a readable verdict | {_format(judge['verdict_coverage'])} | | |"
    for split, estimate in metrics.get("blind_judge", {}).items():
        yield _row("blind judge", f"fitted to the texts of the train split, on `{split}`", estimate)


def _rows(role: str, metric: str, estimate: Mapping[str, Any], *, with_groups: bool) -> Iterator[str]:
    yield _row(role, metric, estimate)
    if with_groups:
        groups = dict(estimate["by_kind"])
        by_composition = estimate.get("by_composition", {})
        # A world without compositional items has a single group.
        groups |= by_composition if len(by_composition) > 1 else {}
        yield from (_row("", name, of_group) for name, of_group in groups.items())


def _row(role: str, metric: str, estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"| {role} | {metric} | {estimate['value']:.3f} | {low:.3f} to {high:.3f} | {estimate['num']} |"


def _claim_rows(quality: Mapping[str, Any]) -> Iterator[str]:
    for kind, of_kind in quality.items():
        verdicts = (of_kind[name][key]["value"] for name in ("supported", "contradicted") for key in _RATES)
        cells = " | ".join("" if value is None else f"{value:.3f}" for value in verdicts)
        yield f"| {kind} | {of_kind['claims']} | {of_kind['unknown_share']:.3f} | {cells} |"


_RATES = ("precision", "recall")


def _format(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
