"""`ModelSwap`: a model becomes the active one once it has passed, and only then, even if the caller disconnects."""

import asyncio
from pathlib import Path

import pytest
from serving_examples import FIRST, service

from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.model_swap import ModelSwap
from vlgenrm_ray.serving.model_version import ModelVersion
from vlgenrm_ray.serving.service import Service
from vlgenrm_ray.shapes import pack_path

FOLDER = pack_path("vlm")
PASSED = CanaryResult(problem="", margin=0.5, change=0.5)


class FakeEngine:
    """An engine and a registry: `result` is the result of every trial."""

    alive = True

    def __init__(self, result: CanaryResult | Exception = PASSED) -> None:
        self.result = result
        self.tried: list[ModelVersion] = []
        self.remembered: list[ModelVersion] = []
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        self.tried.append(model)
        await self.may_finish.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def is_loss(self, error: Exception) -> bool:
        return isinstance(error, EngineLostError)

    async def remember(self, model: ModelVersion) -> None:
        await asyncio.sleep(0)
        self.remembered.append(model)

    def model_swap(self, served: Service) -> ModelSwap:
        served.dispatcher.engine = self  # type: ignore[assignment]
        return ModelSwap(served, self.remember)


def test_a_model_that_passes_is_remembered_and_active() -> None:
    async def run() -> None:
        engine, served = FakeEngine(), service()
        assert await engine.model_swap(served).swap(str(FOLDER)) == PASSED
        assert engine.tried == engine.remembered == [served.model]
        assert served.model.number == 1
        assert served.model.name.startswith("vlm-")

    asyncio.run(run())


def test_a_model_that_fails_the_canary_changes_nothing() -> None:
    async def run() -> None:
        failed = CanaryResult(problem="it does not look")
        engine, served = FakeEngine(failed), service()
        assert await engine.model_swap(served).swap(str(FOLDER)) == failed
        assert (served.model, engine.remembered) == (FIRST, [])

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [InputError("another architecture"), EngineLostError("gone"), RuntimeError("a mistake of ours")]
)
def test_a_trial_that_raises_changes_nothing(error: Exception) -> None:
    async def run() -> None:
        engine, served = FakeEngine(error), service()
        served.dispatcher.engine_ready = True
        with pytest.raises(type(error)):
            await engine.model_swap(served).swap(str(FOLDER))
        assert (served.model, engine.remembered) == (FIRST, [])
        assert served.dispatcher.engine_ready is not isinstance(error, EngineLostError)

    asyncio.run(run())


def test_a_swap_ends_even_if_the_caller_is_cancelled() -> None:
    async def run() -> None:
        engine, served = FakeEngine(), service()
        engine.may_finish.clear()
        model_swap = engine.model_swap(served)
        swap = asyncio.ensure_future(model_swap.swap(str(FOLDER)))
        while not engine.tried:
            await asyncio.sleep(0.005)
        swap.cancel()
        with pytest.raises(asyncio.CancelledError):
            await swap
        engine.may_finish.set()
        await model_swap.swap(str(FOLDER))
        assert [model.number for model in engine.remembered] == [1, 2], "the first swap ended before the second began"
        assert served.model == engine.remembered[-1]

    asyncio.run(run())


def test_a_missing_folder_is_not_tried(tmp_path: Path) -> None:
    async def run() -> None:
        engine = FakeEngine()
        with pytest.raises(InputError, match="no such folder"):
            await engine.model_swap(service()).swap(str(tmp_path / "none"))
        with pytest.raises(InputError, match="cannot be read"):
            await engine.model_swap(service()).swap("/" + "a" * 4000)
        assert engine.tried == []

    asyncio.run(run())


def test_links_are_resolved_when_a_model_becomes_active(tmp_path: Path) -> None:
    async def run() -> None:
        best = tmp_path / "best"
        best.symlink_to(FOLDER)
        engine, served = FakeEngine(), service()
        await engine.model_swap(served).swap(str(best))
        assert Path(served.model.folder) == FOLDER.resolve()
        assert served.model.name.startswith("best-")

    asyncio.run(run())
