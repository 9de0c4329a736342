"""`EngineWorker`: judging and model trials. `Dispatcher`: batching, cancelling and repeating calls."""

import asyncio
import contextvars
from dataclasses import replace

import pytest
from serving_examples import FIRST, JUDGE, png, sees, worker

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.errors import DropReason, EngineLostError, InputError
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.engine import Dispatcher, ScoreTask
from vlgenrm_ray.serving.engine_worker import EngineWorker
from vlgenrm_ray.serving.images import DecodedImages, StoredImage
from vlgenrm_ray.serving.metrics import ServiceMetrics
from vlgenrm_ray.serving.model_version import ModelVersion

TASK = ScoreTask(images=(), question="What is there?", response="A star.", config=JUDGE, deadline_s=10.0)
SECOND = ModelVersion(number=1, folder="/second", name="second-1")


def says(word: str) -> object:
    return lambda prompt, random: f"Verdict: {word}"


def try_second(script: object) -> tuple[EngineWorker, CanaryResult]:
    async def run() -> tuple[EngineWorker, CanaryResult]:
        engine = worker(scripts={"/second": script})  # type: ignore[dict-item]
        return engine, await engine.try_model(SECOND)

    return asyncio.run(run())


def test_a_model_that_passes_the_canary_is_kept() -> None:
    engine, result = try_second(sees)
    assert result.problem == ""
    assert engine.model == SECOND


def unclear(prompt: Prompt, random: object) -> str:
    return "I cannot tell."


def blind(prompt: Prompt, random: object) -> str:
    return f"Verdict: {'Yes' if 'yellow' in prompt.text else 'No'}"


def inverted(prompt: Prompt, random: object) -> str:
    return f"Verdict: {'No' if 'yellow' in prompt.text else 'Yes'}"


@pytest.mark.parametrize(
    ("script", "problem"), [(unclear, "no reward"), (blind, "does not look"), (inverted, "does not prefer")]
)
def test_a_model_that_fails_the_canary_is_replaced_by_the_previous_one(script: object, problem: str) -> None:
    engine, result = try_second(script)
    assert problem in result.problem
    assert engine.model == FIRST
    name, (judgement,) = asyncio.run(engine.judge([TASK], FIRST))
    assert (name, judgement.reward) == ("first-0", pytest.approx(0.9))


def test_weights_that_do_not_fit_change_nothing() -> None:
    async def run() -> None:
        engine = worker()
        with pytest.raises(InputError, match="another architecture"):
            await engine.try_model(SECOND)
        assert engine.model == FIRST

    asyncio.run(run())


def test_a_cancelled_trial_restores_the_previous_model() -> None:
    async def run() -> None:
        engine = worker(scripts={"/second": sees}, delay_s=lambda prompt, place: 0.05)
        trying = asyncio.ensure_future(engine.try_model(SECOND))
        while engine.model == FIRST:
            await asyncio.sleep(0.005)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert engine.model == FIRST
        name, (judgement,) = await engine.judge([TASK], FIRST)
        assert (name, judgement.reward) == ("first-0", pytest.approx(0.9))

    asyncio.run(run())


def test_an_engine_that_cannot_be_restored_is_lost_and_closed() -> None:
    async def run() -> None:
        engine = worker(scripts={"/second": blind})
        del engine._generator.scripts["/first"]  # type: ignore[attr-defined]
        with pytest.raises(EngineLostError, match="no way back to version first-0"):
            await engine.try_model(SECOND)
        assert not engine.alive

    asyncio.run(run())


def test_replies_name_the_weights_that_a_folder_really_held() -> None:
    async def verify(model: ModelVersion) -> ModelVersion:
        return replace(model, name="other-9") if model == SECOND else model

    async def run() -> None:
        engine = worker(scripts={"/second": sees}, verify=verify)
        result = await engine.try_model(SECOND)
        assert "it held other-9, not second-1" in result.problem
        assert engine.model == FIRST
        name, _ = await engine.judge([TASK], SECOND)
        assert name == "other-9"

    asyncio.run(run())


def test_requests_wait_for_a_swap_and_name_the_weights_that_judged() -> None:
    async def run() -> list[tuple[str, list[Judgement]]]:
        engine = worker(says("Yes"), scripts={"/second": sees}, delay_s=lambda prompt, place: 0.05)  # type: ignore[arg-type]
        before = asyncio.ensure_future(engine.judge([TASK], FIRST))
        await asyncio.sleep(0.01)
        swap = asyncio.ensure_future(engine.try_model(SECOND))
        await asyncio.sleep(0.01)
        after = asyncio.ensure_future(engine.judge([TASK], FIRST))
        await swap
        return [await before, await after]

    (name_before, (before,)), (name_after, (after,)) = asyncio.run(run())
    assert (name_before, before.reward) == ("first-0", pytest.approx(0.9))
    assert (name_after, after.reward) == ("second-1", pytest.approx(0.1))


def test_task_ids_are_stable() -> None:
    """Other ids would give the same items other critiques and rewards."""
    first, second = (StoredImage(name * 64, b"") for name in "ab")
    tasks = [replace(TASK, images=images) for images in ((), (first,), (first, second), (second, first))]
    assert [task.item_id()[:8] for task in tasks] == ["7390dca6", "c68ea66f", "ffbf5e94", "d92a68bb"]
    assert len({task.cache_key("first-0") for task in tasks}) == 4


def test_a_broken_image_affects_its_task_only() -> None:
    good, broken = (StoredImage(name * 64, data) for name, data in (("a", png()), ("b", png()[:40])))
    tasks = [replace(TASK, images=images) for images in ((good, broken), (good, good))]
    _, (failed, scored) = asyncio.run(worker().judge(tasks, FIRST))
    assert (failed.status, failed.reward) == (DropReason.IMAGE_UNREADABLE, None)
    assert "(image 2 of 2)" in failed.detail
    assert scored.status == "ok"


def test_images_of_any_size_are_judged() -> None:
    images = [StoredImage(name * 64, png(side=side)) for name, side in (("a", 16), ("b", 300))]
    tasks = [replace(TASK, images=(image,)) for image in images]
    _, judgements = asyncio.run(worker().judge(tasks, FIRST))
    assert [judgement.status for judgement in judgements] == ["ok", "ok"]


def test_no_room_for_images_by_the_deadline_is_a_timeout_of_that_task_only() -> None:
    async def run() -> tuple[str, list[Judgement]]:
        engine = worker(delay_s=lambda prompt, place: 0.2)
        engine.images = DecodedImages(engine.config.images, max_pixels=64 * 64)
        tasks = [replace(TASK, images=(StoredImage(name * 64, png(i)),)) for i, name in enumerate("ab")]
        return await engine.judge([tasks[0], replace(tasks[1], deadline_s=0.05)], FIRST)

    name, (first, late) = asyncio.run(run())
    assert (name, first.status) == ("first-0", "ok")
    assert (late.status, late.reward) == (Status.TIMEOUT, None)
    assert "no room" in late.detail


def test_a_worker_with_older_weights_loads_the_requested_ones_once() -> None:
    async def run() -> set[str]:
        engine = worker(scripts={"/second": sees})
        results = await asyncio.gather(*(engine.judge([TASK], SECOND) for _ in range(5)))
        assert engine._generator.num_reloads == 1  # type: ignore[attr-defined]
        return {name for name, _ in results}

    assert asyncio.run(run()) == {"second-1"}


JUDGEMENT = Judgement(id="q", reward=1.0, status="ok")
RESULT = ("first-0", JUDGEMENT)


class FakeEngine:
    """An engine whose calls run `judge`."""

    alive = True

    def __init__(self, judge: object) -> None:
        self.judge = judge

    def is_loss(self, error: Exception) -> bool:
        return isinstance(error, EngineLostError)


def dispatcher(judge: object, max_chunk: int = 4) -> Dispatcher:
    return Dispatcher(FakeEngine(judge), ServiceMetrics(), max_chunk=max_chunk)  # type: ignore[arg-type]


def test_tasks_of_one_event_loop_turn_share_calls() -> None:
    sizes: list[int] = []
    inherited = contextvars.ContextVar[str]("inherited", default="nothing")
    seen: list[str] = []

    async def judge(tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        sizes.append(len(tasks))
        seen.append(inherited.get())
        return model.name, [JUDGEMENT] * len(tasks)

    async def run() -> None:
        inherited.set("a request's")
        calls = dispatcher(judge)
        assert await asyncio.gather(*(calls.judge(TASK, FIRST) for _ in range(10))) == [RESULT] * 10

    asyncio.run(run())
    assert sizes == [4, 4, 2]
    assert set(seen) == {"nothing"}, "a call must not end with the request that happened to cause it"


def test_a_lost_call_is_repeated_and_a_task_that_kills_engines_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlgenrm_ray.serving.engine._FIRST_PAUSE_S", 0.001)

    async def judge(tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        if any(task.response == "killer" for task in tasks):
            raise EngineLostError("gone")
        return model.name, [JUDGEMENT] * len(tasks)

    async def run() -> list[object]:
        calls = dispatcher(judge)
        killer = ScoreTask(images=(), question="", response="killer", config=JUDGE, deadline_s=10.0)
        pending = [calls.judge(task, FIRST) for task in (TASK, killer, TASK)]
        return await asyncio.gather(*pending, return_exceptions=True)

    first, killed, last = asyncio.run(run())
    assert (first, last) == (RESULT, RESULT)
    assert isinstance(killed, EngineLostError)


def test_other_errors_are_not_repeated() -> None:
    num_calls = 0

    async def judge(tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        nonlocal num_calls
        num_calls += 1
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="ours"):
        asyncio.run(judge_one(judge))
    assert num_calls == 1


async def judge_one(judge: object) -> tuple[str, Judgement]:
    return await dispatcher(judge).judge(TASK, FIRST)


def test_a_call_without_waiters_is_cancelled() -> None:
    cancelled: list[int] = []

    async def judge(tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(len(tasks))
            raise
        return model.name, []

    async def run() -> None:
        calls = dispatcher(judge)
        pending = [asyncio.ensure_future(calls.judge(TASK, FIRST)) for _ in range(2)]
        await asyncio.sleep(0.02)
        pending[0].cancel()
        await asyncio.sleep(0.02)
        assert not cancelled
        pending[1].cancel()
        await asyncio.sleep(0.02)

    asyncio.run(run())
    assert cancelled == [2]
