"""Balancing of Yes and No examples, overall and within strata.

A judge trained on more examples of one verdict learns to prefer that verdict. The same happens within each kind of
statement. For example, if most selected statements with "one" are true and most with "three" are false, the judge soon
says Yes to any "one" without looking at the image.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlgenrm_ray.records import ExampleKind

Balance = Literal["weights", "strata", "resample", "none"]

_MAX_STRATUM_FACTOR = 4.0
"""Largest factor on the weight of a stratum's rarer label: a few examples must not stand for a whole stratum."""


@dataclass(frozen=True, slots=True)
class WeightedExample:
    """One occurrence of an example in an epoch, with its weight."""

    index: int
    """Position of the example in the list that was balanced."""
    weight: float


@dataclass(frozen=True, slots=True)
class ExampleTraits:
    """Fields of an example that balancing depends on."""

    kind: ExampleKind
    label: str
    weight: float
    stratum: str = ""


def balance_examples(
    examples: Sequence[ExampleTraits], method: Balance, *, seed: int, epoch: int
) -> list[WeightedExample]:
    """List the examples of one epoch with their balanced weights; the number is the same in every epoch.

    Critiques and direct verdicts are balanced separately; answers, and kinds with a single label, are unchanged.

    Args:
        examples: All examples that fit.
        method: `weights` scales both labels to the same total weight and keeps the kind's total; `strata` first does
            so within each stratum, by a factor of 4 at most; `resample` repeats examples of the rarer label, different
            ones in each epoch, until both labels are equally frequent; `none` changes nothing.
        seed: Seed of `resample`.
        epoch: Number of the epoch, from 0.
    """
    balanced = [WeightedExample(i, e.weight) for i, e in enumerate(examples)]
    for kind in ExampleKind:
        by_label: defaultdict[str, list[int]] = defaultdict(list)
        for i, e in enumerate(examples):
            if e.kind is kind and e.label:
                by_label[e.label].append(i)
        if len(by_label) < 2:
            continue
        if method == "strata":
            _equalise_strata(balanced, list(by_label.values()), [e.stratum for e in examples])
        if method in ("weights", "strata"):
            _equalise_weights(balanced, list(by_label.values()))
        elif method == "resample":
            balanced += _resample(balanced, by_label, random.Random(f"{seed}/{epoch}/{kind.value}"))
    return balanced


def _equalise_strata(balanced: list[WeightedExample], groups: Sequence[Sequence[int]], strata: Sequence[str]) -> None:
    for stratum in sorted({strata[i] for group in groups for i in group} - {""}):
        parts = [[i for i in group if strata[i] == stratum] for group in groups]
        if all(parts):
            _equalise_weights(balanced, parts, max_factor=_MAX_STRATUM_FACTOR)


def _equalise_weights(
    balanced: list[WeightedExample], groups: Sequence[Sequence[int]], max_factor: float = math.inf
) -> None:
    totals = [sum(balanced[i].weight for i in group) for group in groups]
    share = sum(totals) / len(groups)
    for group, total in zip(groups, totals, strict=True):
        for i in group:
            balanced[i] = WeightedExample(i, balanced[i].weight * min(share / total, max_factor))


def _resample(
    balanced: Sequence[WeightedExample], by_label: dict[str, list[int]], rng: random.Random
) -> list[WeightedExample]:
    largest = max(len(group) for group in by_label.values())
    repeats: list[WeightedExample] = []
    for label in sorted(by_label):
        group = by_label[label]
        copies, rest = divmod(largest - len(group), len(group))
        repeats += [balanced[i] for i in group * copies + rng.sample(group, rest)]
    return repeats
