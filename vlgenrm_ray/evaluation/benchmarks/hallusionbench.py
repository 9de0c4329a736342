"""HallusionBench (arXiv 2310.14566): yes/no questions about figures, with and without the figure, and edited figures.

Official rule (`utils.py` of tianyi-lab/HallusionBench): a question is right if its answer is checked as correct ("1");
without a figure (category VS, figure 0) an unclear answer ("2") is right as well. aAcc is the share of right questions;
fAcc the share of figures all of whose questions are right, VS figure 0 left out; qAcc the share of questions that are
right for every figure. Easy questions are those about figure 0, hard ones those about edited figures.

The official script lets GPT-4 check answers against the reference. Without its checks in the answers file, answers are
read by words, and one without a yes or no is unclear; the report says so. lmms-eval and VLMEvalKit use the questions
with a figure only; there an answer with "yes" anywhere is yes and else no, here one of yes and no is among the words.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import (
    ImageResolver,
    Row,
    binary_labels,
    match_answers,
    read_rows,
    text_of,
    value_of,
)
from vlgenrm_ray.evaluation.benchmarks.yes_no_questions import (
    YesNoBenchmark,
    YesNoPrediction,
    YesNoQuestion,
    credits,
    read_like_vlmevalkit,
    read_plainly,
    yes_no_baselines,
    yes_no_counts,
)
from vlgenrm_ray.evaluation.metrics import Array, clustered_interval

_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
_CHECKS = ("gpt4v_output_gpt_check", "check", "correctness")
_ANSWERS = ("model_prediction", "prediction", "text", "answer")


class HallusionBench(YesNoBenchmark):
    """HallusionBench: aAcc, fAcc, qAcc.

    Data: the official array. Answers: rows with `category`, `subcategory`, `set_id`, `figure_id`, `question_id` and
    `model_prediction`, and `gpt4v_output_gpt_check` ("0", "1", "2") if they were checked.
    """

    def read(self, data: Path, images: ImageResolver) -> list[YesNoQuestion]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        labels = binary_labels([str(value_of(row, ("gt_answer",), data)) for row in rows], "1", "0", data)
        return [_read_item(row, is_yes, images, data) for row, is_yes in zip(rows, labels, strict=True)]

    def read_answers(self, answers: Path, items: Sequence[YesNoQuestion]) -> list[YesNoPrediction | None]:
        """See `Benchmark.read_answers`."""
        matched = match_answers(
            read_rows(answers), [item.keys for item in items], lambda row: _keys(row, answers), answers
        )
        return [None if row is None else _read_answer(row, answers) for row in matched]

    def score(self, items: Sequence[YesNoQuestion], predictions: Sequence[YesNoPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        texts = [p.text for p in predictions]
        clusters = [item.cluster for item in items]
        has_figure = [item.keys[3] != "0" or item.keys[0] == "VD" for item in items]
        official = np.array([_is_right(item, p) for item, p in zip(items, predictions, strict=True)], dtype=np.float64)
        by_rule: dict[str, tuple[Array, list[bool]]] = {
            OFFICIAL: (official, [True] * len(items)),
            LMMS_EVAL: (_agree(items, ["yes" in text.lower() for text in texts]), has_figure),
            VLMEVALKIT: (_agree(items, [read_like_vlmevalkit(text) for text in texts]), has_figure),
        }
        ours = credits(items, texts)

        def row(name: str, unit: Callable[[YesNoQuestion], Any], is_used: Sequence[bool]) -> MetricRow:
            """Return the share of units all of whose questions are right."""
            rules = {
                rule: _share(_by_unit(items, right, unit, [u and v for u, v in zip(is_used, own, strict=True)]))
                for rule, (right, own) in by_rule.items()
            }
            units = _by_unit(items, ours, unit, is_used)
            cluster_of = {unit(item): cluster for item, cluster in zip(items, clusters, strict=True)}
            products = np.array([np.prod(values) for values in units.values()])
            return MetricRow(name=name, rules=rules, ours=clustered_interval(products, [cluster_of[u] for u in units]))

        everything = [True] * len(items)
        figure_zero = [item.keys[3] == "0" for item in items]
        metrics = [
            row("aAcc", lambda item: item.keys, everything),
            row("fAcc", lambda item: item.keys[:4], has_figure),
            row("qAcc", lambda item: (*item.keys[:3], item.keys[4]), everything),
        ]
        for name, is_used in (("easy", figure_zero), ("hard", [not flag for flag in figure_zero])):
            if any(is_used):
                metrics.append(row(f"{name} questions", lambda item: (*item.keys[:3], item.keys[4]), is_used))
        num_checked = sum(p.check != "" for p in predictions)
        note = (
            "the official check by GPT-4 is not in the answers: `official` reads answers by words, unclear without one"
        )
        return BenchmarkReport(
            metrics=tuple(metrics),
            groups=tuple(
                row(f"aAcc {name}", lambda item: item.keys, [item.group == name for item in items])
                for name in sorted({item.group for item in items})
            ),
            baselines=yes_no_baselines(items, predictions),
            counts=yes_no_counts(predictions) | {"checked": num_checked},
            notes=() if num_checked == len(predictions) else (note,),
        )


def _keys(row: Row, path: Path) -> tuple[str, ...]:
    return tuple(str(value_of(row, (name,), path)) for name in _KEYS)


def _read_item(row: Row, is_yes: bool, images: ImageResolver, path: Path) -> YesNoQuestion:
    keys = _keys(row, path)
    return YesNoQuestion(
        id="_".join(keys),
        question=text_of(row, ("question",), path),
        images=images.resolve(row.get("filename")),
        is_yes=is_yes,
        cluster="_".join(keys[:3]),
        group=keys[0],
        keys=keys,
    )


def _read_answer(row: Row, path: Path) -> YesNoPrediction:
    check = next((str(row[name]) for name in _CHECKS if row.get(name) is not None), "")
    if check not in ("", "0", "1", "2"):
        raise InputError(f"{path}: check {check!r}; expected 0 (wrong), 1 (right) or 2 (unclear)")
    text = str(row.get("model_prediction", "")) if check else str(value_of(row, _ANSWERS, path))
    return YesNoPrediction(text=text, check=check)


def _is_right(item: YesNoQuestion, prediction: YesNoPrediction) -> bool:
    check = prediction.check
    if not check:
        reading = read_plainly(prediction.text)
        check = "2" if reading is None else "1" if reading == item.is_yes else "0"
    has_no_figure = item.keys[0] == "VS" and item.keys[3] == "0"
    return check == "1" or (check == "2" and has_no_figure)


def _agree(items: Sequence[YesNoQuestion], readings: Iterable[bool | None]) -> Array:
    return np.array([float(reading == item.is_yes) for item, reading in zip(items, readings, strict=True)])


def _by_unit(
    items: Sequence[YesNoQuestion], values: Array, unit: Callable[[YesNoQuestion], Any], is_used: Sequence[bool]
) -> dict[Any, list[float]]:
    units: dict[Any, list[float]] = defaultdict(list)
    for item, value, flag in zip(items, values.tolist(), is_used, strict=True):
        if flag:
            units[unit(item)].append(value)
    return units


def _share(units: dict[Any, list[float]]) -> float | None:
    return sum(all(value == 1 for value in values) for values in units.values()) / len(units) if units else None
