"""The served judge without its transport: images, cache, single flight, a bounded queue, deadlines, a reply per item.

`ask` is what stands behind it: one task in, one outcome out, or an exception that harms that task alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.engines.contracts import too_many
from vlgenrm_ray.errors import DropReason, InputError
from vlgenrm_ray.judge.wire import (
    MAX_TEXT,
    CompareRequest,
    CompareResponse,
    RankRequest,
    RankResponse,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Status,
    Timings,
    WireCritique,
    compare_replies,
    rank_replies,
)
from vlgenrm_ray.serving.cache import Cache
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.flights import Flights
from vlgenrm_ray.serving.images import ImageStore, Stored
from vlgenrm_ray.serving.metrics import Metrics
from vlgenrm_ray.serving.score import OverloadedError
from vlgenrm_ray.serving.tasks import Model, Outcome, Task, config_of, failed, question_of

Ask = Callable[[Task, Model], Awaitable[Outcome]]

_log = logging.getLogger("vlgenrm.serving")
_GRACE_S = 2.0
"""Beyond a deadline, for an engine's answer to arrive that was sent by it."""
_LARGE = 1 << 18
"""Characters of an image reference from which reading it would hold up everybody else."""


class Service:
    """Scores items. Every failure is a status of its item."""

    def __init__(self, config: ServingConfig, ask: Ask, metrics: Metrics, model: Model) -> None:
        """Raises ConfigError for an image root that is no folder."""
        self.config = config
        self.metrics = metrics
        self.model = model
        """What is to judge from now on."""
        limits = config.limits
        self.images = ImageStore(config.images, max_bytes=int(limits.images_mib * 2**20), roots=config.image_roots)
        self.cache = Cache(int(limits.cache_mib * 2**20))
        self.flights = Flights()
        self._ask = ask

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One reply per item, in order. Raises OverloadedError if the queue has no place for any of them."""
        deadline = _now() + (request.deadline_s or self.config.limits.deadline_s)
        replies = await asyncio.gather(*(self._one(item, deadline) for item in request.items))
        if replies and all(reply.status is Status.OVERLOADED for reply in replies):
            raise OverloadedError(self.config.limits.retry_after_s)
        return ScoreResponse(items=replies)

    async def compare(self, request: CompareRequest) -> CompareResponse:
        """Which of two responses is better. Raises OverloadedError."""
        return compare_replies(*await self._variants(request.item, [request.first, request.second], request.deadline_s))

    async def rank(self, request: RankRequest) -> RankResponse:
        """Best-of-N. Raises OverloadedError."""
        return rank_replies(await self._variants(request.item, request.responses, request.deadline_s))

    async def _variants(self, item: ScoreItem, responses: list[str], deadline_s: float | None) -> list[ScoreReply]:
        items = [item.model_copy(update={"response": response}) for response in responses]
        return (await self.score(ScoreRequest(items=items, deadline_s=deadline_s))).items

    # -- one item ----------------------------------------------------------------------------------------------

    async def _one(self, item: ScoreItem, deadline: float) -> ScoreReply:
        begin = time.monotonic()
        try:
            reply = await self._reply(item, deadline)
        except ImageError as error:
            too_large = error.reason is DropReason.IMAGE_TOO_LARGE
            reply = failed(Status.TOO_LARGE if too_large else Status.BAD_IMAGE, error.detail)
        except InputError as error:
            reply = failed(Status.BAD_IMAGE, str(error))
        # Whatever is wrong with an item must not cost the others their rewards.
        except Exception as error:
            _log.exception("an item failed")
            reply = failed(Status.INTERNAL, type(error).__name__)
        total = time.monotonic() - begin
        self.metrics.replied(reply, total)
        timings = reply.timings.model_copy(update={"total_s": total})
        return reply.model_copy(update={"timings": timings})

    async def _reply(self, item: ScoreItem, deadline: float) -> ScoreReply:
        question, shown = question_of(item)
        if refused := too_many(len(shown), self.config.engine.max_images):
            return failed(Status.TOO_LARGE, refused.detail)
        # Of a conversation each turn may be of any length, and a reference comes on top.
        if len(question) > MAX_TEXT:
            detail = f"{len(question)} characters of question, conversation and reference together; limit {MAX_TEXT}"
            return failed(Status.TOO_LARGE, detail)
        images = await self._images(shown)
        config = config_of(item, self.config.judge)
        while True:
            model = self.model
            task = Task(images=images, question=question, response=item.response, config=config, deadline_s=0.0)
            key = task.key(model.version)
            if (known := self.cache.get(key)) is not None:
                return known.model_copy(update={"cached": True, "timings": Timings()})
            flight = self.flights.find(key, deadline)
            if flight is None:
                if self.flights.num_under_way >= self.config.limits.max_queue:
                    return failed(Status.OVERLOADED, "the queue is full; ask again later")
                flight = self.flights.start(key, deadline, partial(self._compute, task, key, model, deadline))
                return await self.flights.wait(flight)
            reply = await self.flights.wait(flight)
            # Cut short by the deadline of whoever began it: there is more to be had within ours.
            if _is_whole(reply) or _now() >= deadline:
                return reply

    async def _images(self, references: Sequence[str]) -> tuple[Stored, ...]:
        found = []
        for place, reference in enumerate(references):
            try:
                found.append(await self._image(reference))
            except ImageError as error:
                raise error.among(place, len(references)) from None
        return tuple(found)

    async def _image(self, reference: str) -> Stored:
        if len(reference) < _LARGE and (reference.startswith("sha256:") or not self.config.image_roots):
            return self.images.resolve(reference)
        return await asyncio.to_thread(self.images.resolve, reference)

    async def _compute(self, task: Task, key: str, model: Model, deadline: float) -> ScoreReply:
        begin = time.monotonic()
        task = replace(task, deadline_s=max(deadline - _now(), 0.0))
        try:
            async with asyncio.timeout_at(deadline + _GRACE_S):
                outcome = await self._ask(task, model)
        except TimeoutError:
            return failed(Status.TIMEOUT, "no engine answered by the deadline")
        reply = _reply(outcome, time.monotonic() - begin)
        self.metrics.computed(outcome, reply.timings.queued_s)
        # Another version's answer is none to this key, and one cut short or failed may go better next time.
        if outcome.version == model.version and reply.status is Status.OK and _is_whole(reply):
            self.cache.put(key, reply)
        return reply


def _reply(outcome: Outcome, seconds: float) -> ScoreReply:
    return ScoreReply(
        reward=outcome.reward,
        status=outcome.status,
        detail=outcome.detail,
        critiques=[WireCritique(text=t, p_yes=p) for t, p in zip(outcome.critiques, outcome.p_yes, strict=True)],
        num_asked=outcome.num_asked,
        verdict_mass=outcome.verdict_mass,
        model_version=outcome.version,
        timings=Timings(queued_s=max(seconds - outcome.engine_s, 0.0), engine_s=outcome.engine_s),
    )


def _is_whole(reply: ScoreReply) -> bool:
    """Whether no deadline cut it short."""
    return reply.status is not Status.TIMEOUT and len(reply.critiques) >= reply.num_asked


def _now() -> float:
    return asyncio.get_running_loop().time()
