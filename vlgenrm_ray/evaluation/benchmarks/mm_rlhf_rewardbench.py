"""MM-RLHF-RewardBench (arXiv 2502.10391): is the chosen response rewarded more than the rejected one?

Official rule (`get_acc.py` of yfzhang114/r1_reward): a row is right if the reward of `chosen` is strictly greater. ACC
is the share of right rows, ACC+ the share of ids all of whose rows are right. A row without a reward is wrong. The
category is the first of `mcq`, `long`, `short`, `safety`, `video` in the path of the image or video.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import OFFICIAL, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, match_answers, read_rows, text_of, unique_ids
from vlgenrm_ray.evaluation.benchmarks.response_pairs import (
    Outcome,
    PairBenchmark,
    PairPrediction,
    ResponsePair,
    order_rows,
    pair_baselines,
    pair_counts,
    read_plain_votes,
    share_right,
    values,
    vote_in_order,
)
from vlgenrm_ray.evaluation.metrics import clustered_interval, wilson_interval

_CATEGORIES = ("mcq", "long", "short", "safety", "video")


class MmRlhfRewardBench(PairBenchmark):
    """MM-RLHF-RewardBench: ACC and ACC+.

    Answers: the rows of the benchmark with `rewards` ([chosen, rejected]), as `r1_reward.py` writes them, or rows with
    `id` and `rewards` or `choice` (1: chosen) in the order of the benchmark's rows of that id.
    """

    def read(self, data: Path, images: ImageResolver) -> list[ResponsePair]:
        """See `Benchmark.read`. A video is represented by frames, if its path is a folder of frames."""
        rows = read_rows(data)
        keys = [text_of(row, ("id",), data) for row in rows]
        items = []
        for row, id, key in zip(rows, unique_ids(keys), keys, strict=True):
            path = str(row.get("image") or row.get("video") or "")
            category = next((category for category in _CATEGORIES if category in path), None)
            if category is None:
                raise InputError(f"{data}: {key} has the image {path!r}; a path names one of {', '.join(_CATEGORIES)}")
            items.append(
                ResponsePair(
                    id=id,
                    key=key,
                    question=text_of(row, ("prompt",), data),
                    images=images.resolve(row["image"]) if row.get("image") else images.frames(row["video"]),
                    responses=(str(row.get("chosen")), str(row.get("rejected"))),
                    better=0,
                    group=category,
                    cluster=key,
                )
            )
        return items

    def read_answers(self, answers: Path, items: Sequence[ResponsePair]) -> list[PairPrediction | None]:
        """See `Benchmark.read_answers`."""
        rows = read_rows(answers)
        if "chosen" in rows[0]:
            keys: list[tuple[str, ...]] = [(item.key, *item.responses) for item in items]
            matched = match_answers(
                rows, keys, lambda row: (str(row.get("id")), str(row.get("chosen")), str(row.get("rejected"))), answers
            )
        else:
            matched = match_answers(rows, [item.key for item in items], lambda row: str(row.get("id")), answers)
        return [
            None if row is None else PairPrediction(votes=read_plain_votes(row, item, answers))
            for item, row in zip(items, matched, strict=True)
        ]

    def score(self, items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        official = [vote_in_order(p, 0) or Outcome.UNREADABLE for p in predictions]
        ours = values(predictions)
        groups = {name: [i for i, item in enumerate(items) if item.group == name] for name in _CATEGORIES}
        everything = list(range(len(items)))

        def rows(suffix: str, indices: Sequence[int]) -> tuple[MetricRow, MetricRow]:
            keys = [items[i].key for i in indices]
            all_right: dict[str, list[bool]] = defaultdict(list)
            ours_by_id: dict[str, list[float]] = defaultdict(list)
            for i, key in zip(indices, keys, strict=True):
                all_right[key].append(official[i] is Outcome.RIGHT)
                ours_by_id[key].append(ours[i])
            # An id is right if all of its rows are; undecided rows count as the product of halves.
            products = np.array([np.prod(own) for own in ours_by_id.values()])
            return (
                MetricRow(
                    name=f"ACC{suffix}",
                    rules={OFFICIAL: share_right([official[i] for i in indices])},
                    ours=clustered_interval(ours[list(indices)], keys),
                ),
                MetricRow(
                    name=f"ACC+{suffix}",
                    rules={OFFICIAL: sum(map(all, all_right.values())) / len(all_right)},
                    ours=wilson_interval(products),
                ),
            )

        return BenchmarkReport(
            metrics=rows("", everything),
            groups=tuple(row for name, indices in groups.items() if indices for row in rows(f" {name}", indices)),
            orders=order_rows(items, predictions),
            baselines=pair_baselines(items, predictions) + _acc_plus_by_length(items),
            counts=pair_counts(predictions) | {"ids": len({item.key for item in items})},
        )


def _acc_plus_by_length(items: Sequence[ResponsePair]) -> tuple[MetricRow, ...]:
    rows = []
    for name, sign in (("shorter", -1), ("longer", 1)):
        by_id: dict[str, bool] = {}
        for item in items:
            is_right = sign * (len(item.responses[0]) - len(item.responses[1])) > 0
            by_id[item.key] = by_id.get(item.key, True) and is_right
        flags = np.array([float(flag) for flag in by_id.values()])
        rows.append(MetricRow(name=f"{name} (ACC+)", ours=wilson_interval(flags)))
    return tuple(rows)
