"""Model card of the pack: measured metrics as JSON, and the same as Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from vlgenrm_ray.shapes import pack_path

PATH = pack_path("card.json")
_HEAD = """\
# The pack: tiny models of the embedded world

Trained on the train split of the embedded world by `python jobs/build_shapes.py`. All metrics are on held-out scenes,
none of which is in the train split. Intervals are 95 %.
"""
_VLM = """
## vlm: policy and base GenRM in one

A Qwen3-VL of {parameters:,} parameters with its own byte-level BPE tokenizer. It was trained for {steps} steps of
{batch} examples (seed {seed}; learning-rate schedule of {horizon} steps) on {scenes} scenes, with exercises in
seeing and questions of five kinds. {wrong_answer_share:.0%} of its training answers have one wrong fact, so it sees
better than it answers. It has seen {judge_examples} reference critiques, each also as a bare verdict, repeated
throughout training: it knows the format of a judge and judges poorly, which leaves room for training.

| role | metric | value | interval | n |
|--|--|--|--|--|
"""
_EXPERT = """
## {name}

| metric | value |
|--|--|
"""


def write(metrics: Mapping[str, Any]) -> None:
    """Write `card.json` and `README.md` into the pack. `metrics` maps model names to their metrics."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(json.dumps(metrics, indent=1) + "\n")
    PATH.with_name("README.md").write_text(markdown(metrics))


def markdown(metrics: Mapping[str, Any]) -> str:
    """Render the card as Markdown."""
    text = _HEAD
    if "vlm" in metrics:
        text += _VLM.format(**metrics["vlm"]) + "\n".join(_vlm_rows(metrics["vlm"])) + "\n"
    for name in ("detector", "matcher"):
        if name in metrics:
            rows = (f"| {metric} | {_format(value)} |" for metric, value in metrics[name].items())
            text += _EXPERT.format(name=name) + "\n".join(rows) + "\n"
    return text


def _vlm_rows(metrics: Mapping[str, Any]) -> list[str]:
    answers = metrics["answers"]
    rows = [_row("policy", "true answers at temperature 1", answers)]
    rows += [_row("", kind, estimate) for kind, estimate in answers["by_kind"].items()]
    for key, name in (("judge", "judge, 4 critiques"), ("judge_direct", "judge, bare verdict")):
        judge = metrics[key]
        accuracy = {"value": judge["pairwise_accuracy"], "ci95": judge["ci95"], "num": judge["num_pairs"]}
        rows.append(_row(name, "true answer ranked above the false", accuracy))
        rows += [_row("", kind, estimate) for kind, estimate in judge["by_kind"].items()]
        rows.append(f"| | share of responses with a readable verdict | {_format(judge['verdict_coverage'])} | | |")
    return rows


def _row(role: str, metric: str, estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"| {role} | {metric} | {estimate['value']:.3f} | {low:.3f} to {high:.3f} | {estimate['num']} |"


def _format(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
