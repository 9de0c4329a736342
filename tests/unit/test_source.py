"""The line to a collector that is written down: what it says, and when it is lost."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from policy_examples import collected

from vlgenrm_ray.errors import RemoteError, StageError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy import collector, source
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.source import Source

Answer = Callable[[], Collected]


class StrawMethod:
    def __init__(self, name: str, straw: "StrawCollector") -> None:
        self.name = name
        self.straw = straw

    def remote(self, step: int, version: int) -> Answer:
        self.straw.asked.append((self.name, step, version))
        return self.straw.answers.pop(0) if self.straw.answers else lambda: collected(step=step)


class StrawCollector:
    """Gives its answers in order, then what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.answers: list[Answer] = []
        self.step, self.evaluate = StrawMethod("step", self), StrawMethod("evaluate", self)


@pytest.fixture
def straw(monkeypatch: pytest.MonkeyPatch) -> StrawCollector:
    import ray

    made = StrawCollector()
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: made)
    monkeypatch.setattr(ray, "get", lambda answer: answer())
    monkeypatch.setattr(source, "_PAUSE_S", 0.0)
    return made


def lost() -> Collected:
    from ray.exceptions import RayActorError

    raise RayActorError


def raising(error: Exception) -> Answer:
    """As Ray raises what an actor raised."""
    from ray.exceptions import RayTaskError

    def answer() -> Collected:
        raise RayTaskError("step", "traceback", error)

    return answer


def test_what_was_asked_ahead_is_not_asked_again(straw: StrawCollector) -> None:
    line = Source("c", retries=0)
    line.ask("step", 3, 2)
    told = line.told("step", 3, 3)
    assert told is not None
    assert told.step == 3
    assert straw.asked == [("step", 3, 2)]
    line.told("step", 4, 3)
    assert straw.asked[1:] == [("step", 4, 3)]


def test_an_evaluation_comes_between_a_step_and_what_was_asked_ahead_for_it(straw: StrawCollector) -> None:
    line = Source("c", retries=0)
    line.ask("step", 3, 2)
    line.told("evaluate", 3, 3)
    line.told("step", 3, 3)
    assert straw.asked == [("step", 3, 2), ("evaluate", 3, 3)]


@pytest.mark.parametrize("answer", [lost, raising(WeightSyncError("have weights of version 0"))])
def test_a_collector_that_was_lost_or_lacks_the_weights_must_be_given_them(
    straw: StrawCollector, answer: Answer
) -> None:
    straw.answers = [answer]
    line = Source("c", retries=1)
    assert line.told("step", 3, 3) is None
    assert line.told("step", 3, 3) is not None
    assert straw.asked == [("step", 3, 3)] * 2


def test_lost_in_a_row_it_is_an_error_and_a_success_between_starts_the_count_anew(straw: StrawCollector) -> None:
    line = Source("c", retries=1)
    straw.answers = [lost, lambda: collected(step=1), lost]
    assert [line.told("step", 1, 1) is None for _ in range(3)] == [True, False, True]
    straw.answers = [lost]
    with pytest.raises(StageError, match="the collector was lost 2 times in a row"):
        line.told("step", 1, 1)


def test_what_the_collector_raises_is_raised(straw: StrawCollector) -> None:
    straw.answers = [raising(RemoteError("no reward for 300 s"))]
    with pytest.raises(RemoteError, match="no reward for 300 s"):
        Source("c", retries=9).told("step", 1, 1)


def sending(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> list[Any]:
    """Weights that are still to be gathered once sending them ended as `answer` says."""

    def send(handle: Any, weights: Iterator[str], version: int) -> None:
        next(weights)
        answer()

    monkeypatch.setattr(collector, "send", send)
    return ["a", "b", "c"]


def test_weights_are_gathered_to_the_end_even_if_the_collector_is_lost(
    straw: StrawCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = iter(sending(monkeypatch, lost))
    Source("c", retries=1).send(weights, 4)
    assert list(weights) == []


def test_weights_that_an_engine_does_not_take_are_an_error(
    straw: StrawCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = iter(sending(monkeypatch, raising(WeightSyncError("engine 0 hangs"))))
    with pytest.raises(WeightSyncError, match="engine 0 hangs"):
        Source("c", retries=1).send(weights, 4)
    assert list(weights) == []


def test_a_transfer_that_breaks_off_must_be_done_once_more_and_not_for_ever(straw: StrawCollector) -> None:
    class Sender:
        def send(self, weights: Iterator[str], version: int) -> None:
            next(weights)
            raise TransferBrokenError("engine 1 was lost in the broadcast")

    line = Source("c", retries=1, sender=lambda actor: Sender())
    weights = iter(["a", "b"])
    assert not line.send(weights, 4)
    assert list(weights) == []
    with pytest.raises(StageError, match="a transfer of weights was lost 2 times in a row: engine 1 was lost"):
        line.send(iter(["a"]), 4)
