"""Multimodal RewardBench (arXiv 2502.14191): which of two outputs is better?

Official rule (`2_get_accuracy.py` of facebookresearch/multimodal_rewardbench): A is `Output1`, B `Output2`. `[[A]]` is
searched first, so it wins if a judgement has both; without either, a coin decides, drawn by `random.seed(123)` set once
and used in the order of the answers file. `safety` is split into bias and toxicity, `reasoning` into math and coding,
by the id. Overall is the share of right rows. For rewards, a tie is wrong. lmms-eval sets the seed for every row, so
its coin always falls on A.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import (
    ImageResolver,
    Row,
    match_answers,
    read_rows,
    text_of,
    unique_ids,
    value_of,
)
from vlgenrm_ray.evaluation.benchmarks.response_pairs import (
    Outcome,
    PairBenchmark,
    PairPrediction,
    ResponsePair,
    Vote,
    order_rows,
    outcome_of_choice,
    pair_baselines,
    pair_counts,
    read_plain_votes,
    values,
    vote_in_order,
)
from vlgenrm_ray.evaluation.metrics import clustered_interval

_OFFICIAL_SEED = 123
_BETTER = {"Output1": 0, "Output2": 1, "A": 0, "B": 1}


class MultimodalRewardBench(PairBenchmark):
    """Multimodal RewardBench: accuracy, overall and by category.

    Data: the official file, or the official script's output itself, which holds labels and categories.
    Answers: rows with `ID` and `output`, the judgement's text, as the official script writes them, or rows with `ID`
    and `rewards` or `choice` (1: Output1).
    """

    def read(self, data: Path, images: ImageResolver) -> list[ResponsePair]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        keys = [str(value_of(row, ("ID",), data)) for row in rows]
        return [
            _read_item(row, id, key, images, data) for row, id, key in zip(rows, unique_ids(keys), keys, strict=True)
        ]

    def read_answers(self, answers: Path, items: Sequence[ResponsePair]) -> list[PairPrediction | None]:
        """See `Benchmark.read_answers`."""
        rows = read_rows(answers)
        lines = {id(row): line for line, row in enumerate(rows)}
        matched = match_answers(
            rows, [item.key for item in items], lambda row: str(value_of(row, ("ID", "id"), answers)), answers
        )
        return [
            None
            if row is None
            else PairPrediction(
                votes=(_read_text(row, item),) if "output" in row else read_plain_votes(row, item, answers),
                lines=(lines[id(row)],),
            )
            for item, row in zip(items, matched, strict=True)
        ]

    def score(self, items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        outcomes = [vote_in_order(p, 0) or Outcome.UNREADABLE for p in predictions]
        order = sorted(range(len(items)), key=lambda i: predictions[i].lines or (i,))
        generator = random.Random(_OFFICIAL_SEED)
        official, lmms_eval = np.zeros(len(items)), np.zeros(len(items))
        for i in order:
            coin = 0
            if outcomes[i] is Outcome.UNREADABLE:
                coin = 0 if generator.random() < 0.5 else 1
            official[i] = _value(items[i], outcomes[i], coin)
            lmms_eval[i] = _value(items[i], outcomes[i], coin=0)
        ours, clusters = values(predictions), [item.cluster for item in items]

        def row(name: str, indices: list[int]) -> MetricRow:
            return MetricRow(
                name=name,
                rules={OFFICIAL: float(official[indices].mean()), LMMS_EVAL: float(lmms_eval[indices].mean())},
                ours=clustered_interval(ours[indices], [clusters[i] for i in indices]),
            )

        groups = sorted({item.group for item in items})
        return BenchmarkReport(
            metrics=(row("accuracy", list(range(len(items)))),),
            groups=tuple(row(group, [i for i, item in enumerate(items) if item.group == group]) for group in groups),
            orders=order_rows(items, predictions),
            baselines=pair_baselines(items, predictions),
            counts=pair_counts(predictions),
        )


def _value(item: ResponsePair, outcome: Outcome, coin: int) -> float:
    if outcome is Outcome.UNREADABLE:
        return float(coin == item.better)
    return float(outcome is Outcome.RIGHT)


def _read_item(row: Row, id: str, key: str, images: ImageResolver, path: Path) -> ResponsePair:
    better = str(value_of(row, ("Better", "Label"), path))
    if better not in _BETTER:
        raise InputError(f"{path}: {key} has Better {better!r}; expected Output1 or Output2")
    uris = images.resolve(row.get("Image"))
    return ResponsePair(
        id=id,
        key=key,
        # The official output has no texts; it is data as well as answers.
        question="" if "output" in row else text_of(row, ("Text",), path),
        images=uris,
        responses=(str(row.get("Output1")), str(row.get("Output2"))),
        better=_BETTER[better],
        group=_category(str(value_of(row.get("Meta", row), ("Category",), path)), key),
        cluster=uris[0] if uris else key,
    )


def _category(category: str, key: str) -> str:
    if category == "safety":
        return "safety/bias" if key.lower().startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if key.lower().startswith("math") else "reasoning/coding"
    return category


def _read_text(row: Row, item: ResponsePair) -> Vote:
    text = str(row["output"])
    choice = 0 if "[[A]]" in text else 1 if "[[B]]" in text else None
    return Vote(outcome=outcome_of_choice(item, choice), first=0)
