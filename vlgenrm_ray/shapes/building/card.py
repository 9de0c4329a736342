"""The pack's model card: figures as JSON, and the same for a person to read."""

import json
from collections.abc import Mapping
from typing import Any

from vlgenrm_ray.shapes import pack_path

FILE = pack_path("card.json")
_HEAD = """\
# The pack: tiny models of the embedded world

Made from nothing but this world's train split, by the code that `python jobs/build_shapes.py` runs.
All figures are on held-out scenes, none of which is in the train split; intervals are 95 %.
"""
_VLM = """
## vlm: policy and base GenRM in one

A Qwen3-VL of {parameters:,} parameters with its own byte-level BPE tokenizer. {steps} steps of {batch} examples (seed
{seed}), of a course laid out for {horizon}, over {scenes} scenes: exercises in seeing, and questions of five kinds.
{misled:.0%} of the answers it was taught are wrong in one fact, so it sees better than it speaks. Of judging it has
seen {judge_examples} reference critiques, each also as a bare verdict, again and again the same; so it knows the
judge's format and judges poorly, which is what the loop is there to mend.

| as | figure | value | interval | n |
|--|--|--|--|--|
"""
_EXPERT = """
## {name}

| figure | value |
|--|--|
"""


def write(figures: Mapping[str, Any]) -> None:
    """Write `card.json` and `README.md` into the pack. `figures` is keyed by model."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(figures, indent=1) + "\n")
    FILE.with_name("README.md").write_text(page(figures))


def page(figures: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    text = _HEAD
    if "vlm" in figures:
        text += _VLM.format(**figures["vlm"]) + "\n".join(_vlm_rows(figures["vlm"])) + "\n"
    for name in ("detector", "matcher"):
        if name in figures:
            rows = (f"| {figure} | {_shown(value)} |" for figure, value in figures[name].items())
            text += _EXPERT.format(name=name) + "\n".join(rows) + "\n"
    return text


def _vlm_rows(figures: Mapping[str, Any]) -> list[str]:
    answers = figures["answers"]
    rows = [_row("policy", "true answers at temperature 1", answers)]
    rows += [_row("", kind, estimate) for kind, estimate in answers["by_kind"].items()]
    for key, name in (("judge", "judge, 4 critiques"), ("judge_direct", "judge, bare verdict")):
        judge = figures[key]
        accuracy = {"value": judge["pairwise_accuracy"], "ci95": judge["ci95"], "num": judge["num_pairs"]}
        rows.append(_row(name, "true answer ranked above the false", accuracy))
        rows += [_row("", kind, estimate) for kind, estimate in judge["by_kind"].items()]
        rows.append(f"| | share of responses with a readable verdict | {_shown(judge['verdict_coverage'])} | | |")
    return rows


def _row(role: str, figure: str, estimate: Mapping[str, Any]) -> str:
    low, high = estimate["ci95"]
    return f"| {role} | {figure} | {estimate['value']:.3f} | {low:.3f} to {high:.3f} | {estimate['num']} |"


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
