"""Yes and No count alike: a judge trained on more of one learns to say that one. Pure.

So they should of each kind of thing a response can say. Selection keeps what a judge can tell already: if that is "one"
where there is one, and "three" where there are not three, it soon says Yes to any "one", without a look at the image.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlgenrm_ray.records import ExampleKind

Balance = Literal["weights", "strata", "resample", "none"]

_MOST = 4.0
"""Largest factor by which a stratum's rarer label is made to weigh more: a few examples must not stand for all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One turn of an example in an epoch."""

    index: int
    """Which example."""
    weight: float


@dataclass(frozen=True, slots=True)
class Labelled:
    """What balancing looks at in an example."""

    kind: ExampleKind
    label: str
    weight: float
    stratum: str = ""


def entries(examples: Sequence[Labelled], how: Balance, *, seed: int, epoch: int) -> list[Entry]:
    """The epoch's entries, as many in every epoch.

    Critiques and direct verdicts are balanced each among themselves; answers, and kinds of which only one label is
    there, stay as they are. `weights` scales both labels to the same total weight and keeps the kind's total; `strata`
    does so within each stratum before, by a factor of 4 at most; `resample` repeats examples of the rarer label, others
    in each epoch, until both have as many.
    """
    made = [Entry(i, e.weight) for i, e in enumerate(examples)]
    for kind in ExampleKind:
        by_label: defaultdict[str, list[int]] = defaultdict(list)
        for i, e in enumerate(examples):
            if e.kind is kind and e.label:
                by_label[e.label].append(i)
        if len(by_label) < 2:
            continue
        if how == "strata":
            _reweigh_strata(made, list(by_label.values()), [e.stratum for e in examples])
        if how in ("weights", "strata"):
            _reweigh(made, list(by_label.values()))
        elif how == "resample":
            made += _repeats(made, by_label, random.Random(f"{seed}/{epoch}/{kind.value}"))
    return made


def _reweigh_strata(made: list[Entry], groups: Sequence[Sequence[int]], strata: Sequence[str]) -> None:
    for stratum in sorted({strata[i] for group in groups for i in group} - {""}):
        parts = [[i for i in group if strata[i] == stratum] for group in groups]
        if all(parts):
            _reweigh(made, parts, most=_MOST)


def _reweigh(made: list[Entry], groups: Sequence[Sequence[int]], most: float = math.inf) -> None:
    totals = [sum(made[i].weight for i in group) for group in groups]
    share = sum(totals) / len(groups)
    for group, total in zip(groups, totals, strict=True):
        for i in group:
            made[i] = Entry(i, made[i].weight * min(share / total, most))


def _repeats(made: Sequence[Entry], by_label: dict[str, list[int]], chance: random.Random) -> list[Entry]:
    most = max(len(group) for group in by_label.values())
    more: list[Entry] = []
    for label in sorted(by_label):
        group = by_label[label]
        copies, rest = divmod(most - len(group), len(group))
        more += [made[i] for i in group * copies + chance.sample(group, rest)]
    return more
