"""A version takes over once it has passed, and only then, whoever waits for it."""

import asyncio
from pathlib import Path

import pytest
from serving_examples import FIRST, service

from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.model_swap import Handover
from vlgenrm_ray.serving.service import Service
from vlgenrm_ray.serving.tasks import Model
from vlgenrm_ray.shapes import pack_path

FOLDER = pack_path("vlm")
PASSED = Finding(problem="", margin=0.5, change=0.5)


class Straw:
    """An engine that is asked for a trial, and a memory."""

    def __init__(self, answer: Finding | Exception = PASSED) -> None:
        self.answer = answer
        self.tried: list[Model] = []
        self.remembered: list[Model] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def trial(self, wanted: Model) -> Finding:
        self.tried.append(wanted)
        await self.go_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def remember(self, model: Model) -> None:
        await asyncio.sleep(0)
        self.remembered.append(model)

    def handover(self, served: Service) -> Handover:
        return Handover(served, self.trial, self.remember, lambda error: isinstance(error, EngineLostError))


def test_what_passes_is_remembered_and_serves() -> None:
    async def run() -> None:
        straw, served = Straw(), service()
        assert await straw.handover(served).to(str(FOLDER)) == PASSED
        assert straw.tried == straw.remembered == [served.model]
        assert served.model.number == 1
        assert served.model.version.startswith("vlm-")

    asyncio.run(run())


def test_what_fails_the_canary_changes_nothing() -> None:
    async def run() -> None:
        straw, served = Straw(blind := Finding(problem="it does not look")), service()
        assert await straw.handover(served).to(str(FOLDER)) == blind
        assert (served.model, straw.remembered) == (FIRST, [])

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [InputError("another architecture"), EngineLostError("gone"), RuntimeError("a mistake of ours")]
)
def test_a_trial_that_comes_to_no_end_changes_nothing(error: Exception) -> None:
    async def run() -> None:
        straw, served = Straw(error), service()
        with pytest.raises(type(error)):
            await straw.handover(served).to(str(FOLDER))
        assert (served.model, straw.remembered) == (FIRST, [])

    asyncio.run(run())


def test_an_operator_who_goes_away_leaves_nothing_half_done() -> None:
    async def run() -> None:
        straw, served = Straw(), service()
        straw.go_on.clear()
        handover = straw.handover(served)
        asked = asyncio.ensure_future(handover.to(str(FOLDER)))
        while not straw.tried:
            await asyncio.sleep(0.005)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        straw.go_on.set()
        await handover.to(str(FOLDER))
        assert [model.number for model in straw.remembered] == [1, 2], "the first came to its end, the second after it"
        assert served.model == straw.remembered[-1]

    asyncio.run(run())


def test_no_folder_is_no_trial(tmp_path: Path) -> None:
    async def run() -> None:
        straw = Straw()
        with pytest.raises(InputError, match="no such folder"):
            await straw.handover(service()).to(str(tmp_path / "none"))
        with pytest.raises(InputError, match="cannot be read"):
            await straw.handover(service()).to("/" + "a" * 4000)
        assert straw.tried == []

    asyncio.run(run())


def test_a_link_that_is_led_elsewhere_changes_nothing_that_serves(tmp_path: Path) -> None:
    async def run() -> None:
        best = tmp_path / "best"
        best.symlink_to(FOLDER)
        straw, served = Straw(), service()
        await straw.handover(served).to(str(best))
        assert Path(served.model.folder) == FOLDER.resolve()
        assert served.model.version.startswith("best-")

    asyncio.run(run())
