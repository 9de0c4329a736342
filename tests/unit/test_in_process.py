"""A lone engine in the gate's process: started when asked, started again when lost, waited for by whoever asks."""

import asyncio
from collections.abc import Callable

import pytest
from serving_examples import JUDGE

from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.in_process import EngineWithin
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

MODEL = Model(number=0, folder="/first", version="first-0")
TASK = Task(images=(), question="What is there?", response="A star.", config=JUDGE, deadline_s=10.0)


class Straw:
    """An engine that answers, until it is told to die."""

    def __init__(self) -> None:
        self.alive = True
        self.closed = False
        self.deadlines: list[float] = []

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        if not self.alive:
            raise EngineLostError("gone")
        self.deadlines += [task.deadline_s for task in tasks]
        return [Outcome(reward=0.5, status=Status.OK, version=wanted.version) for _ in tasks]

    async def trial(self, wanted: Model) -> Finding:
        return Finding(problem="", margin=0.5, change=0.25)

    def close(self) -> None:
        self.closed = True


class Yard:
    """Starts straw engines; the first `failures` starts fail."""

    def __init__(self, *, failures: int = 0, seconds: float = 0.0) -> None:
        self.made: list[Straw] = []
        self.within = EngineWithin(self._start)
        self._failures = failures
        self._seconds = seconds

    async def _start(self) -> Straw:
        await asyncio.sleep(self._seconds)
        if self._failures:
            self._failures -= 1
            raise EngineLostError("did not come up")
        self.made.append(Straw())
        return self.made[-1]


def run(yard: Yard, what: Callable[[EngineWithin], object]) -> object:
    async def within() -> object:
        return await what(yard.within)  # type: ignore[misc]

    return asyncio.run(within())


def test_all_who_ask_at_once_have_the_same_engine() -> None:
    yard = Yard(seconds=0.01)

    async def ask(within: EngineWithin) -> list[list[Outcome]]:
        assert not within.alive
        return await asyncio.gather(*(within.judge([TASK], MODEL) for _ in range(5)))

    found = run(yard, ask)
    assert [outcomes[0].reward for outcomes in found] == [0.5] * 5  # type: ignore[attr-defined]
    assert len(yard.made) == 1
    assert yard.within.alive


def test_a_lost_engine_is_closed_and_another_started() -> None:
    yard = Yard()

    async def ask(within: EngineWithin) -> list[Outcome]:
        await within.judge([TASK], MODEL)
        yard.made[0].alive = False
        assert not within.alive
        return await within.judge([TASK], MODEL)

    (outcome,) = run(yard, ask)  # type: ignore[misc]
    assert outcome.status is Status.OK
    assert [straw.closed for straw in yard.made] == [True, False]


def test_an_engine_lost_under_a_call_is_a_loss() -> None:
    yard = Yard()

    async def ask(within: EngineWithin) -> None:
        engine = await within.up()
        yard.made[0].alive = False
        await engine.judge([TASK], MODEL)

    with pytest.raises(EngineLostError) as lost:
        run(yard, ask)
    assert yard.within.is_loss(lost.value)
    assert not yard.within.is_loss(ValueError("a bug"))


def test_a_start_that_fails_is_told_and_tried_again() -> None:
    yard = Yard(failures=1)

    async def ask(within: EngineWithin) -> Finding:
        with pytest.raises(EngineLostError, match="did not come up"):
            await within.trial(MODEL)
        assert not within.alive
        return await within.trial(MODEL)

    assert run(yard, ask).margin == 0.5  # type: ignore[attr-defined]


def test_who_goes_away_does_not_end_the_start() -> None:
    yard = Yard(seconds=0.05)

    async def ask(within: EngineWithin) -> list[Outcome]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(within.judge([TASK], MODEL), 0.01)
        return await within.judge([TASK], MODEL)

    assert run(yard, ask)
    assert len(yard.made) == 1


def test_deadlines_run_while_the_engine_starts() -> None:
    yard = Yard(seconds=0.05)
    run(yard, lambda within: within.judge([TASK], MODEL))
    (left,) = yard.made[0].deadlines
    assert 0 < left <= TASK.deadline_s - 0.05
