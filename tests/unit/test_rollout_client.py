"""The rollout client with a fake orchestrator: batches, weights, and processes that are lost."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from fake_rollouts import rollout_batch

from vlgenrm_ray.errors import RemoteError, StageError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy import client as client_module
from vlgenrm_ray.policy.client import RolloutClient
from vlgenrm_ray.policy.rollouts import RolloutBatch
from vlgenrm_ray.policy.worker_context import WorkerContext

_T = TypeVar("_T")
Answer = Callable[[], RolloutBatch]


class SingleWorker(WorkerContext):
    """The context of the only worker."""

    def broadcast_from_rank0(self, compute: Callable[[], _T]) -> _T:
        return compute()


class FakeMethod:
    def __init__(self, name: str, orchestrator: "FakeOrchestrator") -> None:
        self.name = name
        self.orchestrator = orchestrator

    def remote(self, step: int, version: int) -> Answer:
        self.orchestrator.calls.append((self.name, step, version))
        answers = self.orchestrator.answers
        return answers.pop(0) if answers else lambda: rollout_batch(step=step)


class FakeOrchestrator:
    """Gives its answers in order, then empty batches. Also the sender of weights."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: list[Answer] = []
        self.send_errors: list[Callable[[], object]] = []
        """Raised by the next transfers, after one weight."""
        self.collect_step = FakeMethod("step", self)
        self.collect_evaluation = FakeMethod("evaluation", self)
        self.collect_decoding = FakeMethod("decoding", self)

    def send(self, weights: Iterator[str], version: int) -> None:
        if self.send_errors:
            next(weights)
            self.calls.append(("send", version, "failed"))
            self.send_errors.pop(0)()
        self.calls.append(("send", version, list(weights)))


@pytest.fixture
def orchestrator(monkeypatch: pytest.MonkeyPatch) -> FakeOrchestrator:
    import ray

    fake = FakeOrchestrator()
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: fake)
    monkeypatch.setattr(ray, "get", lambda answer: answer())
    monkeypatch.setattr(client_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(client_module, "create_sender", lambda backend, actor, specs, timeout_s: actor.send)
    return fake


class Weights:
    """The weights of a worker; counts how many were gathered."""

    def __init__(self) -> None:
        self.num_gathered = 0

    def __call__(self) -> Iterator[Any]:
        for name in ("a", "b"):
            self.num_gathered += 1
            yield name


def connect(retries: int = 0, weights: Weights | None = None, context: WorkerContext | None = None) -> RolloutClient:
    return RolloutClient(
        context or SingleWorker(rank=0, world_size=1),
        "orchestrator",
        weights or Weights(),
        lambda: [],
        backend="object_store",
        sync_timeout_s=1.0,
        retries=retries,
    )


def died() -> RolloutBatch:
    from ray.exceptions import RayActorError

    raise RayActorError


def raising(error: Exception) -> Answer:
    """Raise an error as Ray raises the error of an actor."""
    from ray.exceptions import RayTaskError

    def answer() -> RolloutBatch:
        raise RayTaskError("step", "traceback", error)

    return answer


SENT = ["a", "b"]


def test_the_first_rollouts_are_sampled_from_weights_that_were_sent(orchestrator: FakeOrchestrator) -> None:
    assert connect().fetch("step", 3).step == 3
    assert orchestrator.calls == [("send", 3, SENT), ("step", 3, 3)]


def test_a_version_is_sent_once(orchestrator: FakeOrchestrator) -> None:
    client = connect()
    for version in (0, 0, 1, 1):
        client.send_weights(version)
    assert orchestrator.calls == [("send", 0, SENT), ("send", 1, SENT)]


def test_a_submitted_step_is_not_requested_again(orchestrator: FakeOrchestrator) -> None:
    client = connect()
    client.send_weights(2)
    client.submit(3)
    assert client.fetch("step", 3).step == 3
    assert orchestrator.calls == [("send", 2, SENT), ("step", 3, 2)]
    client.fetch("step", 4)
    assert orchestrator.calls[2:] == [("step", 4, 2)]


def test_an_evaluation_may_come_between_submit_and_fetch(orchestrator: FakeOrchestrator) -> None:
    client = connect()
    client.send_weights(2)
    client.submit(3)
    client.send_weights(3)
    client.fetch("evaluation", 3)
    client.fetch("step", 3)
    assert [call for call in orchestrator.calls if call[0] != "send"] == [("step", 3, 2), ("evaluation", 3, 3)]


def test_answers_by_two_ways_of_decoding_are_sampled_with_the_current_weights(orchestrator: FakeOrchestrator) -> None:
    client = connect()
    client.fetch_decoding(5)
    assert orchestrator.calls == [("send", 5, SENT), ("decoding", 5, 5)]


@pytest.mark.parametrize("answer", [died, raising(WeightSyncError("have weights of version 0"))])
def test_an_orchestrator_that_lost_the_weights_is_sent_the_current_ones(
    orchestrator: FakeOrchestrator, answer: Answer
) -> None:
    client = connect(retries=2)
    client.send_weights(4)
    orchestrator.answers = [answer, answer]
    assert client.fetch("step", 5).step == 5
    assert orchestrator.calls[1:] == [
        ("step", 5, 4),
        ("send", 5, SENT),
        ("step", 5, 5),
        ("send", 5, SENT),
        ("step", 5, 5),
    ]


def test_too_many_losses_in_a_row_are_an_error_and_a_success_resets_the_count(orchestrator: FakeOrchestrator) -> None:
    client = connect(retries=1)
    orchestrator.answers = [died, lambda: rollout_batch(step=1), died, lambda: rollout_batch(step=1)]
    for _ in range(2):
        client.fetch("step", 1)
    orchestrator.answers = [died, died]
    with pytest.raises(StageError, match="the rollout orchestrator was lost 2 times in a row"):
        client.fetch("step", 1)


def test_an_error_of_the_orchestrator_is_raised(orchestrator: FakeOrchestrator) -> None:
    orchestrator.answers = [raising(RemoteError("no reward for 300 s"))]
    with pytest.raises(RemoteError, match="no reward for 300 s"):
        connect(retries=9).fetch("step", 1)


def test_weights_are_gathered_to_the_end_even_if_the_orchestrator_dies(orchestrator: FakeOrchestrator) -> None:
    orchestrator.send_errors, weights = [died], Weights()
    connect(retries=1, weights=weights).send_weights(4)
    assert weights.num_gathered == 2
    assert orchestrator.calls == [("send", 4, "failed")]


def test_weights_that_an_engine_refuses_are_an_error(orchestrator: FakeOrchestrator) -> None:
    orchestrator.send_errors, weights = [raising(WeightSyncError("engine 0 hangs"))], Weights()
    with pytest.raises(WeightSyncError, match="engine 0 hangs"):
        connect(retries=1, weights=weights).send_weights(4)
    assert weights.num_gathered == 2


def test_a_broken_transfer_is_repeated_up_to_a_limit(orchestrator: FakeOrchestrator) -> None:
    def broken() -> None:
        raise TransferBrokenError("engine 1 was lost in the receive phase")

    client = connect(retries=2)
    orchestrator.send_errors = [broken, broken]
    client.send_weights(4)
    assert orchestrator.calls == [("send", 4, "failed")] * 2 + [("send", 4, SENT)]
    client.fetch("step", 4)
    orchestrator.send_errors, weights = [broken] * 3, Weights()
    client = connect(retries=1, weights=weights)
    with pytest.raises(StageError, match="a transfer of weights was lost 2 times in a row: engine 1 was lost"):
        client.send_weights(5)
    assert weights.num_gathered == 4


def test_other_workers_gather_weights_and_do_not_call_the_orchestrator(orchestrator: FakeOrchestrator) -> None:
    class OtherWorker(WorkerContext):
        def broadcast_from_rank0(self, compute: Callable[[], _T]) -> _T:
            return rollout_batch(step=1)  # type: ignore[return-value]

    weights = Weights()
    client = connect(weights=weights, context=OtherWorker(rank=1, world_size=2))
    client.send_weights(1)
    client.submit(2)
    assert client.fetch("step", 1).step == 1
    assert weights.num_gathered == 2
    assert orchestrator.calls == []
