"""An engine replica's work: tasks -> outcomes, on weights that can be exchanged. No Ray in here."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import LiveGenerator
from vlgenrm_ray.errors import DropReason, EngineLostError, InputError
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import Canary, Finding
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.pictures import LateError, Pictures
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

if TYPE_CHECKING:
    import PIL.Image

_log = logging.getLogger("vlgenrm.serving")
_STATUS = {
    DropReason.IMAGE_MISSING: Status.BAD_IMAGE,
    DropReason.IMAGE_UNREADABLE: Status.BAD_IMAGE,
    DropReason.IMAGE_TOO_LARGE: Status.TOO_LARGE,
    DropReason.PROMPT_TOO_LONG: Status.TOO_LARGE,
    DropReason.TOO_MANY_IMAGES: Status.TOO_LARGE,
    DropReason.UNREADABLE_VERDICT: Status.UNREADABLE_VERDICT,
}


Loaded = Callable[[Model], Awaitable[Model]]
"""Weights that were just loaded, under the version that they really are."""


class Exchangeable(LiveGenerator, Protocol):
    """A live generator whose weights can be exchanged."""

    async def reload(self, folder: Path) -> None:
        """Raises InputError where the folder's weights do not suit."""
        ...


class Replica:
    """One engine with its judge."""

    def __init__(
        self, config: ServingConfig, generator: Exchangeable, model: Model, loaded: Loaded | None = None
    ) -> None:
        """`model`: what the generator was started with. `loaded`: tells what a folder held when it was loaded; None:
        what was asked for. Raises InputError where the canary cannot be read.
        """
        self.config = config
        self.model = model
        self._loaded = loaded
        self.canary = Canary(config.canary, config.images)
        self._generator = generator
        self._judge = lru_cache(256)(self._build_judge)
        self._pictures = Pictures(config.images)
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._exchanging = asyncio.Lock()

    async def judge(self, tasks: Sequence[Task], wanted: Model) -> list[Outcome]:
        """One outcome per task, in order, by the wanted weights or later ones. Raises EngineLostError."""
        begin = asyncio.get_running_loop().time()
        if self._exchanging.locked() or wanted.number > self.model.number:
            async with self._exchanging:
                if wanted.number > self.model.number:
                    await self._exchange(wanted)
        self._running += 1
        self._idle.clear()
        try:
            return await asyncio.gather(*(self._one(task, begin + task.deadline_s) for task in tasks))
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def examine(self) -> Finding:
        """Have the present weights judge the canary."""
        return await self.canary.examine(self._ask)

    async def trial(self, wanted: Model) -> Finding:
        """Take other weights if they pass the canary; else go on with the present ones.

        Requests wait meanwhile. Raises InputError, and changes nothing, where the folder's weights do not suit;
        EngineLostError also where there is no way back to the present ones: then the engine must not be asked again.
        """
        async with self._exchanging:
            before = self.model
            try:
                await self._exchange(wanted)
                finding = await self._finding(wanted)
            except InputError:
                raise
            # Cancelled, too: nothing untested may stay in service.
            except BaseException:
                await self._back(before)
                raise
            if finding.problem:
                await self._back(before)
            return finding

    async def _finding(self, wanted: Model) -> Finding:
        if self.model.version != wanted.version:
            return Finding(problem=f"its folder changed meanwhile: it held {self.model.version}, not {wanted.version}")
        return await self.examine()

    async def _back(self, before: Model) -> None:
        try:
            await self._exchange(before)
        except InputError as error:
            raise EngineLostError(f"no way back to version {before.version}: {error}") from error

    async def _exchange(self, model: Model) -> None:
        await self._idle.wait()
        await self._generator.reload(Path(model.folder))
        self.model = model
        if self._loaded is not None:
            self.model = await self._loaded(model)
        _log.warning("serving version %s", self.model.version)

    # -- one task ----------------------------------------------------------------------------------------------

    async def _one(self, task: Task, deadline: float) -> Outcome:
        version = self.model.version
        try:
            item = JudgeInput(id=task.id(), images=(), question=task.question, response=task.response)
            async with self._pictures.shown(task.images, deadline) as shown:
                judged = await self._judge(task.config).score_live(item, shown, deadline=deadline)
        except EngineLostError:
            raise
        except ImageError as error:
            return Outcome(reward=None, status=_STATUS[error.reason], version=version, detail=error.detail)
        except LateError as error:
            return Outcome(reward=None, status=Status.TIMEOUT, version=version, detail=str(error))
        # Whatever one task does to the code must not cost the others of its call their rewards.
        except Exception as error:
            _log.exception("a task failed")
            return Outcome(reward=None, status=Status.INTERNAL, version=version, detail=type(error).__name__)
        return _outcome(judged, version)

    async def _ask(self, item: JudgeInput, image: "PIL.Image.Image") -> Judgement:
        return await self._judge(self.config.judge).score_live(item, (image,))

    def _build_judge(self, config: JudgeConfig) -> Judge[LiveGenerator]:
        return Judge(config, self._generator)


def first_model(config: ServingConfig) -> Model:
    """The weights that the configuration names. Raises InputError."""
    return model_in(model_folder.locate(config.engine.model), 0)


def model_in(folder: Path, number: int) -> Model:
    """The weights that a folder holds now, named after it. Raises InputError.

    What serves must not change when a link, such as a run's `best`, is led elsewhere: the link is followed here, once.
    """
    real = folder.resolve()
    return Model(number=number, folder=str(real), version=model_folder.version(real, folder.name))


def _outcome(judged: Judgement, version: str) -> Outcome:
    known = {status.value: status for status in Status}
    status = known.get(judged.status) or _STATUS.get(DropReason(judged.status), Status.INTERNAL)
    detail = judged.detail
    if status is Status.TIMEOUT:
        detail = "no critique was finished by the deadline"
    elif status is Status.UNREADABLE_VERDICT:
        detail = "no critique ended in a verdict that counts"
    return Outcome(
        reward=judged.reward,
        status=status,
        version=version,
        detail=detail,
        critiques=tuple(critique.text for critique in judged.critiques),
        p_yes=tuple(critique.p_yes for critique in judged.critiques),
        num_asked=judged.num_asked,
        verdict_mass=judged.verdict_mass,
        num_tokens=judged.num_tokens,
        engine_s=judged.engine_s,
    )
