"""Best-of-N on the user's candidates: curves up to n = 64, against an oracle and a random pick.

There is no official rule. Rows of the data have `image`, `question`, `candidates` (or `responses`: texts), `scores`
(the true score of each), and optionally `id`. Stored answers are rows with `id` and `rewards`, one per candidate.

With N candidates of a question the estimate for n <= N averages over all subsets of n candidates, in closed form: the
candidate with the i-th highest reward (i from 0) is the pick of C(N - 1 - i, n - 1) of the C(N, n) subsets. It is
unbiased for the expected true score of the pick among n independent samples, unlike the pick among the first n, whose
variance is larger, or among n drawn with replacement, which repeats candidates.

A pairwise judge has no rewards. Its candidates meet in a tournament (`judge/tournament.py`), each distinct text against
all others, or against 8 if there are more than 9, and the reward of a candidate is its mean probability of winning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import (
    BenchmarkReply,
    BenchmarkReport,
    BenchmarkRequest,
    BenchmarkRole,
    MetricRow,
)
from vlgenrm_ray.evaluation.benchmarks.files import (
    ImageResolver,
    Row,
    match_answers,
    read_rows,
    text_of,
    unique_ids,
    value_of,
)
from vlgenrm_ray.evaluation.benchmarks.reviews import mean_estimate
from vlgenrm_ray.evaluation.metrics import Array
from vlgenrm_ray.judge import tournament
from vlgenrm_ray.judge.tournament import combine_orders

MAX_N = 64
"""Largest n of a curve."""
ORACLE = "oracle"
RANDOM = "random"

Rewards = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """The candidates of one question, with their true scores."""

    id: str
    question: str
    images: tuple[str, ...]
    candidates: tuple[str, ...]
    scores: tuple[float, ...]
    """True score of each candidate; higher is better."""
    cluster: str
    """Image that dependent questions share."""


class BestOfN:
    """True score of the pick by reward for n = 1, 2, 4 ... 64, and its regret to the oracle."""

    roles: ClassVar[tuple[BenchmarkRole, ...]] = (BenchmarkRole.JUDGE, BenchmarkRole.PAIRWISE_JUDGE)

    def read(self, data: Path, images: ImageResolver) -> list[CandidateSet]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        ids = unique_ids([str(row.get("id", line)) for line, row in enumerate(rows)])
        return [_read_item(row, id, images, data) for row, id in zip(rows, ids, strict=True)]

    def requests(
        self, items: Sequence[CandidateSet], role: BenchmarkRole, no_image_share: float
    ) -> list[BenchmarkRequest]:
        """See `Benchmark.requests`. There is no baseline without image: it would double the cost of N candidates."""
        if role is BenchmarkRole.PAIRWISE_JUDGE:
            return [
                BenchmarkRequest(
                    id=f"{item.id}/{i}-{j}",
                    images=item.images,
                    question=item.question,
                    response=item.candidates[i],
                    other=item.candidates[j],
                )
                for item in items
                for pair in tournament.comparisons(item.candidates)
                for i, j in (pair, pair[::-1])
            ]
        return [
            BenchmarkRequest(id=f"{item.id}/{index}", images=item.images, question=item.question, response=candidate)
            for item in items
            for index, candidate in enumerate(item.candidates)
        ]

    def predictions(
        self, items: Sequence[CandidateSet], role: BenchmarkRole, replies: Mapping[str, BenchmarkReply]
    ) -> list[Rewards]:
        """See `Benchmark.predictions`: the reward of each candidate."""
        if role is BenchmarkRole.PAIRWISE_JUDGE:
            return [_tournament_rewards(item, replies) for item in items]
        return [tuple(replies[f"{item.id}/{i}"].reward for i in range(len(item.candidates))) for item in items]

    def read_answers(self, answers: Path, items: Sequence[CandidateSet]) -> list[Rewards | None]:
        """See `Benchmark.read_answers`."""
        rows = read_rows(answers)
        ids = unique_ids([str(row.get("id", line)) for line, row in enumerate(rows)])
        named = [{"id": id, "rewards": row.get("rewards")} for row, id in zip(rows, ids, strict=True)]
        matched = match_answers(named, [item.id for item in items], lambda row: row["id"], answers)
        predictions: list[Rewards | None] = []
        for item, row in zip(items, matched, strict=True):
            rewards = None if row is None else row["rewards"]
            if rewards is not None and (not isinstance(rewards, list) or len(rewards) != len(item.candidates)):
                raise InputError(f"{answers}: {item.id} has {len(item.candidates)} candidates; give a reward for each")
            predictions.append(None if rewards is None else tuple(None if r is None else float(r) for r in rewards))
        return predictions

    def score(self, items: Sequence[CandidateSet], predictions: Sequence[Rewards]) -> BenchmarkReport:
        """See `Benchmark.score`. The estimate for n is over the questions with at least n candidates."""
        largest = max(len(item.candidates) for item in items)
        lengths: list[Rewards] = [tuple(float(len(c)) for c in item.candidates) for item in items]
        curve, regrets = [], []
        for n in reversed(curve_sizes(largest)):
            own = [i for i, item in enumerate(items) if len(item.candidates) >= n]
            clusters = [items[i].cluster for i in own]
            picks = np.array([expected_pick(predictions[i], items[i].scores, n) for i in own])
            best = np.array([expected_best(items[i].scores, n) for i in own])
            mean = float(np.mean([np.mean(items[i].scores) for i in own]))
            curve.append(
                MetricRow(
                    name=f"best of {n}",
                    rules={ORACLE: float(best.mean()), RANDOM: mean},
                    ours=mean_estimate(picks, clusters),
                )
            )
            regrets.append(MetricRow(name=f"regret of {n}", ours=mean_estimate(best - picks, clusters)))
        own = [i for i, item in enumerate(items) if len(item.candidates) >= curve_sizes(largest)[-1]]
        n = curve_sizes(largest)[-1]
        baselines = [
            MetricRow(
                name=f"{name} of {n}",
                ours=mean_estimate(
                    np.array([expected_pick([sign * (v or 0.0) for v in lengths[i]], items[i].scores, n) for i in own]),
                    [items[i].cluster for i in own],
                ),
            )
            for name, sign in (("longest", 1.0), ("shortest", -1.0))
        ]
        num_missing = sum(reward is None for rewards in predictions for reward in rewards)
        counts = {
            "questions": len(items),
            "candidates": sum(len(item.candidates) for item in items),
            "fewest": min(len(item.candidates) for item in items),
            "unreadable": num_missing,
        }
        return BenchmarkReport(metrics=tuple(curve), groups=tuple(regrets), baselines=tuple(baselines), counts=counts)


def _tournament_rewards(item: CandidateSet, replies: Mapping[str, BenchmarkReply]) -> Rewards:
    p_first = {
        (i, j): combine_orders(replies[f"{item.id}/{i}-{j}"].reward, replies[f"{item.id}/{j}-{i}"].reward)
        for i, j in tournament.comparisons(item.candidates)
    }
    return tuple(tournament.win_rates(item.candidates, p_first))


def _read_item(row: Row, id: str, images: ImageResolver, path: Path) -> CandidateSet:
    candidates: Any = value_of(row, ("candidates", "responses"), path)
    scores: Any = value_of(row, ("scores",), path)
    if not isinstance(candidates, list) or not candidates or not isinstance(scores, list):
        raise InputError(f"{path}: {id} needs `candidates` and `scores`, two lists of the same length")
    if len(candidates) != len(scores):
        raise InputError(f"{path}: {id} has {len(candidates)} candidates and {len(scores)} scores; give one for each")
    uris = images.resolve(row.get("image", row.get("images")))
    return CandidateSet(
        id=id,
        question=text_of(row, ("question", "prompt", "query"), path),
        images=uris,
        candidates=tuple(map(str, candidates)),
        scores=tuple(map(float, scores)),
        cluster=uris[0] if uris else id,
    )


def curve_sizes(num_candidates: int) -> list[int]:
    """Return the n of a curve: powers of two up to `MAX_N` and the number of candidates, and that number itself."""
    largest = min(num_candidates, MAX_N)
    sizes = [2**k for k in range(largest.bit_length()) if 2**k <= largest]
    return sizes if sizes and sizes[-1] == largest else [*sizes, largest]


def pick_probabilities(rewards: Sequence[float | None], n: int) -> Array:
    """Compute the probability (N,) that each candidate has the highest reward in a random subset of n of them.

    Ties are broken at random. A candidate without a reward is picked only among others without one.

    Args:
        rewards: Reward of each of the N candidates; None where there is none.
        n: Size of the subsets, 1 ... N.
    """
    total = len(rewards)
    values = np.array([-np.inf if reward is None else reward for reward in rewards], dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    probabilities = np.zeros(total)
    start = 0
    while start < total:
        end = start + 1
        while end < total and values[order[end]] == values[order[start]]:
            end += 1
        # Subsets without the `start` better ones, minus those without this block of ties either.
        share = (comb(total - start, n) - comb(total - end, n)) / comb(total, n)
        probabilities[order[start:end]] = share / (end - start)
        start = end
    return probabilities


def expected_pick(rewards: Sequence[float | None], scores: Sequence[float], n: int) -> float:
    """Compute the expected true score of the pick by reward among n of the candidates; see `pick_probabilities`."""
    return float(pick_probabilities(rewards, n) @ np.asarray(scores, dtype=np.float64))


def expected_best(scores: Sequence[float], n: int) -> float:
    """Compute the expected highest true score among n of the candidates: the pick of an oracle."""
    return expected_pick(scores, scores, n)
