"""The engine interface of the service: tasks, the `Engine` protocol, and the `Dispatcher` in front of an engine.

The service turns each item of a request into a `ScoreTask`, and a conversation that the model itself answers into a
`ChatTask`. The `Dispatcher` gathers the score tasks of one iteration
of the event loop into calls of an `Engine`, cancels calls that nobody waits for, and repeats calls that were lost with
an engine. The two engines are `in_process.InProcessEngine` and `replicated.ReplicatedEngine`.
"""

import asyncio
import contextvars
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vlgenrm_ray.engines.contracts import Sampling, Turn
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.canary import CanaryResult
from vlgenrm_ray.serving.images import StoredImage
from vlgenrm_ray.serving.metrics import ServiceMetrics
from vlgenrm_ray.serving.model_version import ModelVersion

_log = logging.getLogger("vlgenrm.serving")
_MAX_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTask:
    """One response to judge, with all settings resolved."""

    images: tuple[StoredImage, ...]
    """Encoded images in the order in which the judge sees them."""
    question: str
    """Question, conversation and reference as one text."""
    response: str
    other: str = ""
    """Second response, for a pairwise judge; "" for a pointwise one."""
    config: JudgeConfig
    deadline_s: float
    """Seconds left. Relative, because machines have different clocks."""

    def item_id(self) -> str:
        """Return a hash of the content that determines the sampling seeds.

        K is left out, so that a request for more critiques begins with the critiques of a request for fewer.
        """
        hashes = [image.sha256 for image in self.images]
        # A single image counts by its own hash, not as a list of one: `image` and `images` of one give equal seeds.
        images = hashes if len(hashes) > 1 else next(iter(hashes), None)
        pair = [self.other] if self.other else []
        return _hash([images, self.question, self.response, *pair, self.config.mode])

    def cache_key(self, model_name: str) -> str:
        """Return a hash of everything that the result depends on."""
        return _hash([self.item_id(), self.config.model_dump(mode="json"), model_name])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTask:
    """A conversation that the model continues, with all settings resolved."""

    turns: tuple[Turn, ...]
    images: tuple[StoredImage, ...]
    """Encoded images, one for each mark in the turns."""
    sampling: Sampling
    seed: int
    deadline_s: float
    """Seconds left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """One sampled answer."""

    text: str
    finish: str
    """`stop` or `length`, as in `Sample.finish`."""
    num_tokens: int
    """Generated tokens without special ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResult:
    """The answers to a conversation, or the reason why there are none."""

    status: str
    """`ok`, `timeout`, `internal`, or the drop reason with which the engine refused the conversation."""
    detail: str = ""
    answers: tuple[ChatAnswer, ...] = ()
    """One per requested sample, in order; empty unless `status` is `ok`."""
    num_prompt_tokens: int = 0


class Engine(Protocol):
    """One or more vLLM engines with the judge on top, whose weights can be replaced while they serve."""

    @property
    def alive(self) -> bool:
        """True if an engine is up, as far as is known without a call."""
        ...

    async def judge(self, tasks: list[ScoreTask], model: ModelVersion) -> tuple[str, list[Judgement]]:
        """Judge tasks with `model` or a later version. If cancelled, abort the work.

        Returns:
            The name of the weights that judged, and one judgement per task, in order.
        """
        ...

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        """Continue a conversation with `model` or a later version. If cancelled, abort the work.

        Returns:
            The name of the weights that answered, and the answers.
        """
        ...

    async def try_model(self, model: ModelVersion) -> CanaryResult:
        """Load `model` into one engine and keep it if it passes the canary, else restore the current weights.

        Raises:
            InputError: The folder's weights do not fit the engine, or restoring the current weights later would be
                impossible.
            EngineLostError: The engine died, or restoring the current weights failed.
        """
        ...

    def is_loss(self, error: Exception) -> bool:
        """Return True if an error of a call means that the engine is gone; the call may be repeated."""
        ...


@dataclass(slots=True, eq=False)
class _PendingTask:
    task: ScoreTask
    model: ModelVersion
    submitted: float
    """Event loop time."""
    result: "asyncio.Future[tuple[str, Judgement]]"


class Dispatcher:
    """Batches tasks into calls of an engine.

    A call that is lost with its engine is repeated task by task, so that a task which kills its engine does not make
    others fail in every attempt.
    """

    def __init__(self, engine: Engine, metrics: ServiceMetrics, *, max_chunk: int) -> None:
        """Create a dispatcher that passes at most `max_chunk` tasks per call to `engine`."""
        self.engine = engine
        self.engine_ready = False
        """True after a call succeeded, until an engine is lost."""
        self._metrics = metrics
        self._max_chunk = max_chunk
        self._pending: list[_PendingTask] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def judge(self, task: ScoreTask, model: ModelVersion) -> tuple[str, Judgement]:
        """Judge one task, batched with others. Repeats a call that was lost with its engine.

        Returns:
            The name of the weights that judged, and the judgement.

        Raises:
            Exception: The engine's error in the last attempt.
        """
        loop = asyncio.get_running_loop()
        pending = _PendingTask(task, model, loop.time(), loop.create_future())
        if not self._pending:
            # In an empty context: Ray Serve would cancel the call together with the request that caused it, although
            # other requests may wait for the same call.
            loop.call_soon(self._flush, context=contextvars.Context())
        self._pending.append(pending)
        return await pending.result

    async def chat(self, task: ChatTask, model: ModelVersion) -> tuple[str, ChatResult]:
        """Continue a conversation. Repeats a call that was lost with its engine.

        Returns:
            The name of the weights that answered, and the answers.

        Raises:
            Exception: The engine's error in the last attempt.
        """
        begin = asyncio.get_running_loop().time()
        for attempt in range(_MAX_ATTEMPTS):
            elapsed_s = asyncio.get_running_loop().time() - begin
            try:
                answered = await self.engine.chat(
                    replace(task, deadline_s=max(task.deadline_s - elapsed_s, 0.0)), model
                )
            except Exception as error:
                if not self.is_loss(error) or attempt + 1 == _MAX_ATTEMPTS:
                    raise
                self._metrics.record_loss()
                _log.warning("an engine was lost with a conversation (%s)", type(error).__name__)
                await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
            else:
                self.engine_ready = True
                return answered
        raise AssertionError("the last attempt returns or raises")

    def is_loss(self, error: Exception) -> bool:
        """Return True if `error` means that the engine is gone. The service is not ready then."""
        lost = self.engine.is_loss(error)
        if lost:
            self.engine_ready = False
        return lost

    def _flush(self) -> None:
        pending, self._pending = [p for p in self._pending if not p.result.done()], []
        for model in dict.fromkeys(p.model for p in pending):
            same = [p for p in pending if p.model == model]
            for start in range(0, len(same), self._max_chunk):
                self._start_call(same[start : start + self._max_chunk], 0)

    def _start_call(self, chunk: Sequence[_PendingTask], attempt: int) -> None:
        call = asyncio.get_running_loop().create_task(self._call(chunk, attempt), context=contextvars.Context())
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

        def cancel_if_unneeded(_: object) -> None:
            if all(pending.result.done() for pending in chunk):
                call.cancel()

        for pending in chunk:
            pending.result.add_done_callback(cancel_if_unneeded)

    async def _call(self, chunk: Sequence[_PendingTask], attempt: int) -> None:
        now = asyncio.get_running_loop().time()
        tasks = [replace(p.task, deadline_s=max(p.task.deadline_s - (now - p.submitted), 0.0)) for p in chunk]
        self._metrics.record_call(len(tasks))
        try:
            model_name, judgements = await self.engine.judge(tasks, chunk[0].model)
        except Exception as error:
            if not self.is_loss(error) or attempt + 1 == _MAX_ATTEMPTS:
                for pending in chunk:
                    if not pending.result.done():
                        pending.result.set_exception(error)
                return
            self._metrics.record_loss()
            _log.warning("an engine was lost with %d items (%s)", len(chunk), type(error).__name__)
            await asyncio.sleep(_FIRST_PAUSE_S * 2**attempt)
            for pending in chunk:
                if not pending.result.done():
                    self._start_call([pending], attempt + 1)
            return
        self.engine_ready = True
        for pending, judgement in zip(chunk, judgements, strict=True):
            if not pending.result.done():
                pending.result.set_result((model_name, judgement))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
