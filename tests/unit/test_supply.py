"""Samples and weights between workers and a collector that is written down, without Ray and without models."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from policy_examples import collected

from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.supply import Supply
from vlgenrm_ray.policy.worker_context import WorkerContext

_T = TypeVar("_T")


class Alone(WorkerContext):
    """The only worker."""

    def broadcast_from_rank0(self, ask: Callable[[], _T]) -> _T:
        return ask()


class StrawLine:
    """Lacks the weights as often as `losses` says."""

    def __init__(self, losses: int = 0) -> None:
        self.losses = losses
        self.broken = 0
        self.heard: list[tuple[Any, ...]] = []

    def ask(self, what: str, step: int, version: int) -> None:
        self.heard.append(("ask", what, step, version))

    def told(self, what: str, step: int, version: int) -> Collected | None:
        self.heard.append(("told", what, step, version))
        if self.losses:
            self.losses -= 1
            return None
        return collected(step=step)

    def send(self, weights: Iterator[Any], version: int) -> bool:
        self.heard.append(("send", version, list(weights)))
        self.broken -= 1
        return self.broken < 0


@pytest.fixture
def line() -> StrawLine:
    return StrawLine()


@pytest.fixture
def supply(line: StrawLine) -> Supply:
    return Supply(Alone(rank=0, world_size=1), line, lambda: iter(["w"]))


def test_the_first_samples_are_by_weights_that_were_sent(supply: Supply, line: StrawLine) -> None:
    assert supply.take("step", 3).step == 3
    assert line.heard == [("send", 3, ["w"]), ("told", "step", 3, 3)]


def test_weights_are_sent_once_a_version(supply: Supply, line: StrawLine) -> None:
    for version in (0, 0, 1, 1):
        supply.send(version)
    assert line.heard == [("send", 0, ["w"]), ("send", 1, ["w"])]


def test_a_transfer_that_breaks_off_is_done_once_more(supply: Supply, line: StrawLine) -> None:
    line.broken = 2
    supply.send(4)
    supply.send(4)
    assert line.heard == [("send", 4, ["w"])] * 3


def test_what_is_asked_ahead_is_by_the_weights_sent_last(supply: Supply, line: StrawLine) -> None:
    supply.send(4)
    supply.ask(5)
    supply.take("step", 5)
    assert line.heard[1:] == [("ask", "step", 5, 4), ("told", "step", 5, 4)]


def test_a_collector_that_lost_the_weights_gets_the_present_ones(supply: Supply, line: StrawLine) -> None:
    supply.send(4)
    line.losses = 2
    supply.take("step", 5)
    assert line.heard[1:] == [
        ("told", "step", 5, 4),
        ("send", 5, ["w"]),
        ("told", "step", 5, 5),
        ("send", 5, ["w"]),
        ("told", "step", 5, 5),
    ]


def test_the_other_workers_take_part_in_gathering_and_speak_with_nobody() -> None:
    gathered = []

    def weights() -> Iterator[Any]:
        gathered.append("w")
        yield "w"

    class Told(WorkerContext):
        def broadcast_from_rank0(self, ask: Callable[[], _T]) -> _T:
            return collected(step=1)  # type: ignore[return-value]

    supply = Supply(Told(rank=1, world_size=2), None, weights)
    supply.send(1)
    supply.ask(2)
    assert supply.take("step", 1).step == 1
    assert gathered == ["w"]
