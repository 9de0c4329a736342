"""Base of the benchmarks of reward models: items are pairs of responses, one of them better.

A judge that rewards single responses gives one vote per pair, which does not depend on an order. A pairwise judge is
shown both responses in some order, so its votes state which of them came first; with votes in both orders, the report
shows how much the position matters. The official rules of each benchmark are in its own file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
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
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, Row
from vlgenrm_ray.evaluation.metrics import Array, clustered_interval
from vlgenrm_ray.evaluation.pairs import is_in_share
from vlgenrm_ray.judge.tournament import combine_orders

NO_IMAGE = "/no-image"
"""Suffix of the requests of the baseline without image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsePair:
    """Two responses to one question, in the order of the file."""

    id: str
    """Unique in the benchmark."""
    key: str
    """The file's own id, which several items may share."""
    question: str
    images: tuple[str, ...]
    responses: tuple[str, str]
    better: int
    """Index of the better response, 0 or 1."""
    group: str
    """Category of the benchmark."""
    cluster: str
    """Image or id that dependent items share."""


class Outcome(Enum):
    """Outcome of one vote on a pair."""

    RIGHT = "right"
    WRONG = "wrong"
    TIE = "tie"
    UNREADABLE = "unreadable"

    @property
    def credit(self) -> float:
        """1 if right, 0 if wrong, 1/2 without a decision: our value of a vote."""
        return {Outcome.RIGHT: 1.0, Outcome.WRONG: 0.0}.get(self, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One decision of a judge on a pair."""

    outcome: Outcome
    first: int | None = None
    """Index of the response that was shown first; None if each response was rewarded by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPrediction:
    """Votes of a judge on one pair, at least one."""

    votes: tuple[Vote, ...]
    without_image: tuple[Vote, ...] = ()
    """Votes of the baseline without image, if it was asked."""
    averaged: Outcome | None = None
    """Outcome of a pairwise judge's probability averaged over both orders, by which we count it; None for others."""
    lines: tuple[int, ...] = field(default=())
    """Line of each vote in the answers file, for rules that depend on the order of the file."""


class PairBenchmark(ABC):
    """Reading of replies and answers, and the parts of the report that all pair benchmarks share."""

    roles: ClassVar[tuple[BenchmarkRole, ...]] = (BenchmarkRole.JUDGE, BenchmarkRole.PAIRWISE_JUDGE)

    @abstractmethod
    def read(self, data: Path, images: ImageResolver) -> list[ResponsePair]:
        """See `Benchmark.read`."""

    @abstractmethod
    def read_answers(self, answers: Path, items: Sequence[ResponsePair]) -> list[PairPrediction | None]:
        """See `Benchmark.read_answers`."""

    @abstractmethod
    def score(self, items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""

    def requests(
        self, items: Sequence[ResponsePair], role: BenchmarkRole, no_image_share: float
    ) -> list[BenchmarkRequest]:
        """See `Benchmark.requests`: each response by itself, or for a pairwise judge the pair in both orders."""
        return [
            BenchmarkRequest(
                id=f"{item.id}/{index}{suffix}",
                images=item.images,
                question=item.question,
                response=item.responses[index],
                other=item.responses[1 - index] if role is BenchmarkRole.PAIRWISE_JUDGE else None,
                is_blank=bool(suffix),
            )
            for item in items
            for suffix in ablation_suffixes(item.id, item.images, no_image_share)
            for index in (0, 1)
        ]

    def predictions(
        self, items: Sequence[ResponsePair], role: BenchmarkRole, replies: Mapping[str, BenchmarkReply]
    ) -> list[PairPrediction]:
        """See `Benchmark.predictions`."""
        pairwise = role is BenchmarkRole.PAIRWISE_JUDGE
        read_votes = _pairwise_votes if pairwise else _pointwise_votes
        return [
            PairPrediction(
                votes=read_votes(item, replies, ""),
                without_image=read_votes(item, replies, NO_IMAGE),
                averaged=_averaged_outcome(item, replies) if pairwise else None,
            )
            for item in items
        ]


def ablation_suffixes(id: str, images: Sequence[str], no_image_share: float) -> tuple[str, ...]:
    """Return the suffixes of an item's requests: with its image and, for a share of the items, without it."""
    return ("", NO_IMAGE) if images and is_in_share(id, no_image_share) else ("",)


def _pointwise_votes(item: ResponsePair, replies: Mapping[str, BenchmarkReply], suffix: str) -> tuple[Vote, ...]:
    rewards = [replies[id].reward for index in (0, 1) if (id := f"{item.id}/{index}{suffix}") in replies]
    return (Vote(outcome=outcome_of_rewards(item, rewards)),) if len(rewards) == 2 else ()


def _pairwise_votes(item: ResponsePair, replies: Mapping[str, BenchmarkReply], suffix: str) -> tuple[Vote, ...]:
    votes = []
    for first in (0, 1):
        if (reply := replies.get(f"{item.id}/{first}{suffix}")) is not None:
            p_first = reply.reward
            rewards = (p_first, None if p_first is None else 1 - p_first)
            votes.append(Vote(outcome=outcome_of_rewards(item, rewards if first == 0 else rewards[::-1]), first=first))
    return tuple(votes)


def _averaged_outcome(item: ResponsePair, replies: Mapping[str, BenchmarkReply]) -> Outcome:
    """Return the outcome of p(first response better) averaged over both orders; a tie at 1/2."""
    p_first = combine_orders(replies[f"{item.id}/0"].reward, replies[f"{item.id}/1"].reward)
    return outcome_of_rewards(item, (p_first, None if p_first is None else 1 - p_first))


def outcome_of_rewards(item: ResponsePair, rewards: Sequence[float | None]) -> Outcome:
    """Compare the rewards of both responses, in the order of the file."""
    better, worse = rewards[item.better], rewards[1 - item.better]
    if better is None or worse is None:
        return Outcome.UNREADABLE
    return Outcome.TIE if better == worse else Outcome.RIGHT if better > worse else Outcome.WRONG


def outcome_of_choice(item: ResponsePair, choice: int | None) -> Outcome:
    """Return the outcome of choosing a response by its index in the file; None: no choice could be read."""
    if choice is None:
        return Outcome.UNREADABLE
    return Outcome.RIGHT if choice == item.better else Outcome.WRONG


def read_plain_votes(row: Row, item: ResponsePair, path: Path) -> tuple[Vote, ...]:
    """Read votes from a row of our own form.

    The row has `rewards`, the two rewards in the order of the file (null: unreadable), or `choice`, 1 or 2 for the
    better response in the order of the file (null: unreadable), with `first`, the response that was shown first (1 or
    2) if it is known. `choice` and `first` may be lists, for several votes.

    Raises:
        InputError: The row has neither, or a value is no number.
    """
    if "rewards" in row:
        rewards = row["rewards"]
        if not isinstance(rewards, list) or len(rewards) != 2 or not all(_is_reward(reward) for reward in rewards):
            raise InputError(
                f"{path}: rewards {rewards!r} of {item.key}; give two numbers, or null where there is none"
            )
        return (Vote(outcome=outcome_of_rewards(item, rewards)),)
    if "choice" in row:
        choices = row["choice"] if isinstance(row["choice"], list) else [row["choice"]]
        orders = row.get("first")
        orders = orders if isinstance(orders, list) else [orders] * len(choices)
        if len(orders) != len(choices) or any(choice not in (1, 2, None) for choice in (*choices, *orders)):
            raise InputError(f"{path}: choice {choices!r}, first {orders!r} of {item.key}; give 1, 2 or null for each")
        return tuple(
            Vote(
                outcome=outcome_of_choice(item, None if choice is None else choice - 1),
                first=None if order is None else order - 1,
            )
            for choice, order in zip(choices, orders, strict=True)
        )
    raise InputError(f"{path}: the row of {item.key} has neither rewards nor choice; its keys are {', '.join(row)}")


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value == value)


def vote_in_order(prediction: PairPrediction, first: int) -> Outcome | None:
    """Return the outcome of the first vote that was shown response `first` first, or depends on no order."""
    return next((vote.outcome for vote in prediction.votes if vote.first in (first, None)), None)


def values(predictions: Sequence[PairPrediction]) -> Array:
    """Return our value (N,) of each prediction: the mean over its votes of 1 right, 0 wrong, 1/2 undecided.

    Of a pairwise judge that was asked in both orders, it is the value of the averaged decision.
    """
    return np.array([_mean_value(p.votes) if p.averaged is None else p.averaged.credit for p in predictions])


def _mean_value(votes: Sequence[Vote]) -> float:
    return float(np.mean([vote.outcome.credit for vote in votes]))


def share_right(outcomes: Iterable[Outcome]) -> float | None:
    """Return the share of right outcomes among all; None if there is none."""
    flags = [outcome is Outcome.RIGHT for outcome in outcomes]
    return sum(flags) / len(flags) if flags else None


def order_rows(items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> tuple[MetricRow, ...]:
    """Return the accuracy with the better response shown first and second, and how often both orders agree.

    Empty for a judge that rewards each response by itself.
    """
    by_position: dict[int, list[tuple[float, str]]] = {0: [], 1: []}
    agreements: list[tuple[float, str]] = []
    for item, prediction in zip(items, predictions, strict=True):
        outcomes: dict[int, set[Outcome]] = {0: set(), 1: set()}
        for vote in prediction.votes:
            if vote.first is not None:
                position = 0 if vote.first == item.better else 1
                by_position[position].append((vote.outcome.credit, item.cluster))
                outcomes[position].add(vote.outcome)
        if outcomes[0] and outcomes[1]:
            agreements.append((float(len(outcomes[0] | outcomes[1]) == 1), item.cluster))
    named = (("better first", by_position[0]), ("better second", by_position[1]), ("both orders agree", agreements))
    return tuple(_row(name, observations) for name, observations in named if observations)


def pair_baselines(items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> tuple[MetricRow, ...]:
    """Return the accuracy of rules that look at lengths or positions alone, and of the judge without the image."""
    clusters = [item.cluster for item in items]
    lengths = np.array([[len(item.responses[item.better]), len(item.responses[1 - item.better])] for item in items])
    shorter = (np.sign(lengths[:, 1] - lengths[:, 0]) + 1) / 2
    rows = [
        MetricRow(name="shorter", ours=clustered_interval(shorter, clusters)),
        MetricRow(name="longer", ours=clustered_interval(1 - shorter, clusters)),
        MetricRow(
            name="first in the file",
            ours=clustered_interval(np.array([float(item.better == 0) for item in items]), clusters),
        ),
    ]
    blind = [(_mean_value(p.without_image), c) for p, c in zip(predictions, clusters, strict=True) if p.without_image]
    return (*rows, *((_row("no image", blind),) if blind else ()))


def _row(name: str, observations: Sequence[tuple[float, str]]) -> MetricRow:
    numbers = np.array([value for value, _ in observations])
    return MetricRow(name=name, ours=clustered_interval(numbers, [cluster for _, cluster in observations]))


def pair_counts(predictions: Sequence[PairPrediction]) -> dict[str, int]:
    """Count votes by their outcome."""
    outcomes = [vote.outcome for prediction in predictions for vote in prediction.votes]
    return {
        "items": len(predictions),
        "votes": len(outcomes),
        "ties": outcomes.count(Outcome.TIE),
        "unreadable": outcomes.count(Outcome.UNREADABLE),
    }
