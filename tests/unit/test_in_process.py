"""`InProcessEngine`: started by the first call, restarted after a loss, awaited by calls in between."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from serving_examples import JUDGE

from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.engine import ScoreTask
from vlgenrm_ray.serving.in_process import InProcessEngine
from vlgenrm_ray.serving.model_version import ModelVersion

MODEL = ModelVersion(number=0, folder="/first", name="first-0")
TASK = ScoreTask(images=(), question="What is there?", response="A star.", config=JUDGE, deadline_s=10.0)
_T = TypeVar("_T")


class FakeWorker:
    """A worker that judges until `alive` is set to False."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False
        self.deadlines: list[float] = []

    async def judge(self, tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        if not self.alive:
            raise EngineLostError("gone")
        self.deadlines += [task.deadline_s for task in tasks]
        return model.name, [Judgement(id="q", reward=0.5, status="ok") for _ in tasks]

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        return CanaryResult(problem="", margin=0.5, change=0.25)

    def close(self) -> None:
        self.closed = True


class FakeStarter:
    """Starts fake workers; the first `num_failures` starts fail."""

    def __init__(self, *, num_failures: int = 0, seconds: float = 0.0) -> None:
        self.workers: list[FakeWorker] = []
        self.engine = InProcessEngine(self._start)  # type: ignore[arg-type]
        self._num_failures = num_failures
        self._seconds = seconds

    async def _start(self) -> FakeWorker:
        await asyncio.sleep(self._seconds)
        if self._num_failures:
            self._num_failures -= 1
            raise EngineLostError("did not come up")
        self.workers.append(FakeWorker())
        return self.workers[-1]


def run(starter: FakeStarter, use: Callable[[InProcessEngine], Awaitable[_T]]) -> _T:
    async def call() -> _T:
        return await use(starter.engine)

    return asyncio.run(call())


def test_concurrent_calls_start_one_worker() -> None:
    starter = FakeStarter(seconds=0.01)

    async def use(engine: InProcessEngine) -> list[tuple[str, list[Judgement]]]:
        assert not engine.alive
        return await asyncio.gather(*(engine.judge([TASK], MODEL) for _ in range(5)))

    results = run(starter, use)
    assert [judgements[0].reward for _, judgements in results] == [0.5] * 5
    assert len(starter.workers) == 1
    assert starter.engine.alive


def test_a_lost_worker_is_closed_and_another_started() -> None:
    starter = FakeStarter()

    async def use(engine: InProcessEngine) -> tuple[str, list[Judgement]]:
        await engine.judge([TASK], MODEL)
        starter.workers[0].alive = False
        assert not engine.alive
        return await engine.judge([TASK], MODEL)

    _, (judgement,) = run(starter, use)
    assert judgement.status == "ok"
    assert [worker.closed for worker in starter.workers] == [True, False]


def test_a_worker_lost_during_a_call_is_a_loss() -> None:
    starter = FakeStarter()

    async def use(engine: InProcessEngine) -> None:
        worker = await engine.worker()
        starter.workers[0].alive = False
        await worker.judge([TASK], MODEL)

    with pytest.raises(EngineLostError) as lost:
        run(starter, use)
    assert starter.engine.is_loss(lost.value)
    assert not starter.engine.is_loss(ValueError("a bug"))


def test_a_failed_start_raises_and_the_next_call_starts_again() -> None:
    starter = FakeStarter(num_failures=1)

    async def use(engine: InProcessEngine) -> CanaryResult:
        with pytest.raises(EngineLostError, match="did not come up"):
            await engine.try_model(MODEL)
        assert not engine.alive
        return await engine.try_model(MODEL)

    assert run(starter, use).margin == 0.5


def test_a_cancelled_call_does_not_cancel_the_start() -> None:
    starter = FakeStarter(seconds=0.05)

    async def use(engine: InProcessEngine) -> tuple[str, list[Judgement]]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.judge([TASK], MODEL), 0.01)
        return await engine.judge([TASK], MODEL)

    assert run(starter, use)
    assert len(starter.workers) == 1


def test_deadlines_run_while_the_worker_starts() -> None:
    starter = FakeStarter(seconds=0.05)
    run(starter, lambda engine: engine.judge([TASK], MODEL))
    (left_s,) = starter.workers[0].deadlines
    assert 0 < left_s <= TASK.deadline_s - 0.05
