"""One engine with the judge on top. No Ray here.

It judges tasks, continues conversations, loads other weights, and tries new ones on the canary.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.engines.contracts import Conversation, LiveGenerator, Refusal, Sample
from vlgenrm_ray.errors import EngineLostError, InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.model_settings import with_model_settings
from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import Canary, CanaryResult
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine import ChatAnswer, ChatResult, ChatTask, ScoreTask
from vlgenrm_ray.serving.images import DecodedImages, DecodeTimeoutError
from vlgenrm_ray.serving.model_version import ModelVersion, check_reloadable, verify_loaded

if TYPE_CHECKING:
    import PIL.Image

_log = logging.getLogger("vlgenrm.serving")


class ReloadableGenerator(LiveGenerator, Protocol):
    """A live generator whose weights can be replaced."""

    async def reload(self, folder: Path) -> None:
        """Load other weights of the same architecture. Raise InputError, and keep the current ones, if it differs."""
        ...

    def is_alive(self) -> bool:
        """Return True if the engine's process runs and has not failed."""
        ...

    def close(self) -> None:
        """Stop the engine's process. Pending calls raise EngineLostError."""
        ...


class EngineWorker:
    """A running engine and its judge."""

    def __init__(
        self,
        config: ServingConfig,
        generator: ReloadableGenerator,
        model: ModelVersion,
        *,
        verify: Callable[[ModelVersion], Awaitable[ModelVersion]] = verify_loaded,
        check: Callable[[ModelVersion], None] = check_reloadable,
    ) -> None:
        """Take over a running generator.

        Args:
            config: The service's configuration.
            generator: The engine.
            model: Weights with which the generator was started.
            verify: Returns the version just loaded, named by the current content of its folder.
            check: Raises InputError unless a version can be loaded again from its folder.

        Raises:
            InputError: The canary's image cannot be read.
        """
        self.config = config
        self.model = model
        """The loaded weights."""
        self.canary = Canary(config.canary, config.images)
        self.images = DecodedImages(config.images)
        self._generator = generator
        self._verify = verify
        self._check = check
        self._judge = lru_cache(256)(self._build_judge)
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._swap_lock = asyncio.Lock()

    @classmethod
    async def start(cls, config: ServingConfig, model: ModelVersion) -> Self:
        """Start vLLM on `model` and run the canary once. Takes seconds to minutes; the event loop keeps running.

        Raises:
            InputError: The model folder cannot be used.
            ConfigError: vLLM refuses the settings.
            EngineLostError: The engine died while it started.
        """
        # Imported here: it loads vLLM.
        from vlgenrm_ray.engines.vllm_async import AsyncVllmGenerator

        settings = config.engine.model_copy(update={"model": model.folder})
        generator = await asyncio.to_thread(AsyncVllmGenerator, settings)
        # The folder may have changed since the version was read: replies must name the weights that made them.
        worker = cls(config, generator, await verify_loaded(model))
        result = await worker.run_canary()
        if result.problem:
            _log.warning("version %s would not pass its own canary: %s", worker.model.name, result.problem)
        return worker

    @property
    def alive(self) -> bool:
        """True if the engine's process runs and has not failed."""
        return self._generator.is_alive()

    def close(self) -> None:
        """Stop the engine's process. Pending calls raise EngineLostError."""
        self._generator.close()

    # -- judging -----------------------------------------------------------------------------------------------

    async def judge(self, tasks: Sequence[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        """Judge tasks with `model` or a later version; an older one loads `model` first.

        Returns:
            The name of the weights that judged, and one judgement per task, in order.

        Raises:
            EngineLostError: The engine is gone.
        """
        arrived = asyncio.get_running_loop().time()
        async with self._call(model) as name:
            judgements = await asyncio.gather(*(self._judge_task(task, arrived + task.deadline_s) for task in tasks))
            return name, judgements

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        """Continue a conversation with `model` or a later version; an older one loads `model` first.

        Returns:
            The name of the weights that answered, and the answers.

        Raises:
            EngineLostError: The engine is gone.
        """
        deadline = asyncio.get_running_loop().time() + task.deadline_s
        async with self._call(model) as name:
            try:
                async with self.images.hold(task.images, deadline) as pixels:
                    return name, await self._sample(task, pixels, deadline)
            except EngineLostError:
                raise
            except ImageError as error:
                return name, ChatResult(status=error.reason.value, detail=error.detail)
            except DecodeTimeoutError as error:
                return name, ChatResult(status=Status.TIMEOUT.value, detail=str(error))
            # Such as a sampling setting that the engine does not take; the caller gets a reply, whatever it is.
            except Exception as error:
                _log.exception("a conversation failed")
                return name, ChatResult(status=Status.INTERNAL.value, detail=type(error).__name__)

    async def _sample(self, task: ChatTask, pixels: "tuple[PIL.Image.Image, ...]", deadline: float) -> ChatResult:
        samples: dict[int, Sample] = {}
        conversation = Conversation(images=pixels, turns=task.turns)
        stream = self._generator.generate_stream(conversation, task.sampling, task.seed)
        try:
            async with asyncio.timeout_at(deadline), aclosing(cast("Any", stream)) as outcomes:
                async for place, outcome in outcomes:
                    if isinstance(outcome, Refusal):
                        return ChatResult(status=outcome.reason.value, detail=outcome.detail)
                    samples[place] = outcome
        except TimeoutError:
            detail = f"{len(samples)} of {task.sampling.n} answers were finished by the deadline"
            return ChatResult(status=Status.TIMEOUT.value, detail=detail)
        ordered = [samples[place] for place in sorted(samples)]
        return ChatResult(
            status=Status.OK.value,
            answers=tuple(ChatAnswer(text=s.text, finish=s.finish, num_tokens=len(s.tokens)) for s in ordered),
            num_prompt_tokens=ordered[0].num_prompt_tokens,
        )

    @asynccontextmanager
    async def _call(self, model: ModelVersion) -> AsyncIterator[str]:
        """Load `model` if it is newer, and yield the name of the weights, which stay the same within the context."""
        if self._swap_lock.locked() or model.number > self.model.number:
            async with self._swap_lock:
                if model.number > self.model.number:
                    await self._load(model)
        self._num_calls += 1
        self._idle.clear()
        try:
            # Loading waits until no call runs.
            yield self.model.name
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._idle.set()

    async def _judge_task(self, task: ScoreTask, deadline: float) -> Judgement:
        item = JudgeInput(
            id=task.item_id(), images=(), question=task.question, response=task.response, other=task.other
        )
        try:
            async with self.images.hold(task.images, deadline) as pixels:
                return await self._judge(task.config).score_live(item, pixels, deadline=deadline)
        except EngineLostError:
            raise
        except ImageError as error:
            return Judgement(id=item.id, reward=None, status=error.reason.value, detail=error.detail)
        except DecodeTimeoutError as error:
            return Judgement(id=item.id, reward=None, status=Status.TIMEOUT.value, detail=str(error))
        # An unexpected error of one task must not cost the other tasks of the call their rewards.
        except Exception as error:
            _log.exception("a task failed")
            return Judgement(id=item.id, reward=None, status=Status.INTERNAL.value, detail=type(error).__name__)

    def _build_judge(self, config: JudgeConfig) -> Judge[LiveGenerator]:
        # Kind and calibration are those of the loaded folder, whatever a request asks for.
        return Judge(with_model_settings(config, Path(self.model.folder)), self._generator)

    # -- weights -----------------------------------------------------------------------------------------------

    async def run_canary(self) -> CanaryResult:
        """Run the canary on the current weights."""
        return await self.canary.run(self._judge_image, pairwise=self.config.judge.is_pairwise)

    async def _judge_image(self, item: JudgeInput, image: "PIL.Image.Image") -> Judgement:
        return await self._judge(self.config.judge).score_live(item, (image,))

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        """Load `model` and keep it if it passes the canary, else restore the current weights. Other calls wait.

        Raises:
            InputError: The folder's weights do not fit, or restoring the current weights afterwards would be
                impossible, because their folder is gone or has changed. The current weights stay loaded.
            EngineLostError: The engine died, or restoring the current weights failed. The worker is closed.
        """
        await asyncio.to_thread(self._check, self.model)
        try:
            return await self._try_model(model)
        except EngineLostError:
            # The process may be alive, but with weights that must not serve.
            self.close()
            raise

    async def _try_model(self, model: ModelVersion) -> CanaryResult:
        async with self._swap_lock:
            previous = self.model
            try:
                await self._load(model)
                if self.model.name == model.name:
                    result = await self.run_canary()
                else:
                    changed = f"its folder changed during the trial: it held {self.model.name}, not {model.name}"
                    result = CanaryResult(problem=changed)
            except InputError:
                raise
            # Also if cancelled: weights that did not pass must not stay in service.
            except BaseException:
                await self._restore(previous)
                raise
            if result.problem:
                await self._restore(previous)
            return result

    async def _restore(self, previous: ModelVersion) -> None:
        try:
            await self._load(previous)
        except InputError as error:
            raise EngineLostError(f"no way back to version {previous.name}: {error}") from error

    async def _load(self, model: ModelVersion) -> None:
        await self._idle.wait()
        await self._generator.reload(Path(model.folder))
        self.model = model
        self._judge.cache_clear()
        self.model = await self._verify(model)
        _log.warning("serving version %s", self.model.name)
