"""The served judge without its transport: from a `ScoreItem` to its `ScoreReply`.

Each item goes through the same steps: read its images, look its key up in the result cache, join an equal computation
or start one (bounded by `limits.max_queue`), judge it through the `Dispatcher`, and turn the `Judgement` into a
`ScoreReply`. Every failure is a status of its own item; it never affects the other items of a request.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.engines.contracts import refuse_extra_images
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge import tournament
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.conversation import image_urls, message_text, to_openai_messages
from vlgenrm_ray.judge.escaping import is_blank
from vlgenrm_ray.judge.judge import EMPTY_RESPONSE
from vlgenrm_ray.judge.protocol import PAIRWISE_JUDGE
from vlgenrm_ray.judge.wire import (
    MAX_ITEMS,
    MAX_TEXT,
    CompareRequest,
    CompareResponse,
    InvalidItem,
    RankRequest,
    RankResponse,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Status,
    Timings,
    TokenUsage,
    WireCritique,
    WireSentence,
    compare_replies,
    parse_status,
    rank_by_comparisons,
    rank_replies,
    status_of_reason,
    validate_item,
)
from vlgenrm_ray.records import Judgement
from vlgenrm_ray.serving.cache import ResultCache, SingleFlight
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine import Dispatcher, Engine, ScoreTask
from vlgenrm_ray.serving.images import ImageStore, StoredImage
from vlgenrm_ray.serving.limits import OverloadedError
from vlgenrm_ray.serving.metrics import ServiceMetrics
from vlgenrm_ray.serving.model_version import ModelVersion

_log = logging.getLogger("vlgenrm.serving")
MAX_CHUNK = 16
"""Most items per call of an engine."""
_GRACE_S = 2.0
"""Seconds after a deadline in which a judgement that was finished in time may still arrive."""
_SYSTEM_ROLES = ("system", "developer")
_QUESTION_REMEDY = "the question is empty; the prompt or a label must have one, see vlgenrm_ray/judge/label.py"
_BLIND_REMEDY = (
    "give the images where the trainer keeps them, or in a label (vlgenrm_ray/judge/label.py); to judge without "
    "images, set serving.blind_judging of the service, or VLGENRM_ALLOW_BLIND=1 for an adapter"
)


class Service:
    """Scores items with one active model."""

    def __init__(self, config: ServingConfig, engine: Engine, metrics: ServiceMetrics, model: ModelVersion) -> None:
        """Create a service in front of an engine.

        Args:
            config: The service's configuration.
            engine: Judges the tasks.
            metrics: Counts requests and judgements.
            model: The active model.

        Raises:
            ConfigError: An image root is not a folder.
        """
        self.config = config
        self.metrics = metrics
        self._warnings: set[str] = set()
        self.model = model
        """The active model. Items that arrive after a change are judged by the new one."""
        limits = config.limits
        self.images = ImageStore(config.images, max_bytes=int(limits.images_mib * 2**20), roots=config.image_roots)
        self.cache = ResultCache(int(limits.cache_mib * 2**20))
        self.single_flight = SingleFlight()
        self.num_chats = 0
        """Conversations under way, see `chat.ChatService`."""
        self.dispatcher = Dispatcher(engine, metrics, max_chunk=MAX_CHUNK)

    @property
    def num_running(self) -> int:
        """Items and conversations under way, which `limits.max_queue` bounds."""
        return self.single_flight.num_running + self.num_chats

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Score a batch.

        Returns:
            One reply per item, in order.

        Raises:
            OverloadedError: The queue has no room for any item.
        """
        deadline = _now() + (request.deadline_s or self.config.limits.deadline_s)
        replies = await asyncio.gather(*(self._score_item(item, deadline) for item in request.items))
        if replies and all(reply.status is Status.OVERLOADED for reply in replies):
            raise OverloadedError
        return ScoreResponse(items=replies)

    async def compare(self, request: CompareRequest) -> CompareResponse:
        """Compare two responses, with a pairwise judge in both orders. Raise OverloadedError as `score` does."""
        pairwise = self.config.judge.is_pairwise
        pairs = [(request.first, request.second), (request.second, request.first)]
        variants: list[dict[str, str | None]] = [
            {"response": one, "other": other if pairwise else None} for one, other in pairs
        ]
        replies = await self._score_variants(request.item, variants, request.deadline_s)
        return compare_replies(*replies, pairwise=pairwise)

    async def rank(self, request: RankRequest) -> RankResponse:
        """Rank N responses (best-of-N), with a pairwise judge by a tournament. Raise as `score` does."""
        responses = request.responses
        if not self.config.judge.is_pairwise:
            single: list[dict[str, str | None]] = [{"response": response, "other": None} for response in responses]
            return rank_replies(await self._score_variants(request.item, single, request.deadline_s))
        pairs = [pair for i, j in tournament.comparisons(responses) for pair in ((i, j), (j, i))]
        variants: list[dict[str, str | None]] = [{"response": responses[i], "other": responses[j]} for i, j in pairs]
        replies = await self._score_variants(request.item, variants, request.deadline_s)
        return rank_by_comparisons(responses, dict(zip(pairs, replies, strict=True)))

    async def _score_variants(
        self, item: ScoreItem, variants: Sequence[dict[str, str | None]], deadline_s: float | None
    ) -> list[ScoreReply]:
        """Score an item with other responses. More variants than a request may have are scored all the same."""
        fields = item.model_dump()
        items = [validate_item(fields | variant) for variant in variants]
        batches = [items[start : start + MAX_ITEMS] for start in range(0, len(items), MAX_ITEMS)]
        scored = [await self.score(ScoreRequest(items=batch, deadline_s=deadline_s)) for batch in batches]
        return [reply for response in scored for reply in response.items]

    # -- one item ----------------------------------------------------------------------------------------------

    async def _score_item(self, item: ScoreItem | InvalidItem, deadline: float) -> ScoreReply:
        begin = time.monotonic()
        try:
            if isinstance(item, InvalidItem):
                reply = _failure(item.status, item.detail)
            else:
                reply = await self._reply(item, deadline)
        except ImageError as error:
            reply = _failure(status_of_reason(error.reason), error.detail)
        except InputError as error:
            reply = _failure(Status.BAD_REQUEST, str(error))
        except TimeoutError:
            reply = _failure(Status.TIMEOUT, "no room for its images by the deadline; send it again later")
        # An unexpected error of one item must not cost the other items their rewards.
        except Exception as error:
            _log.exception("an item failed")
            reply = _failure(Status.INTERNAL, type(error).__name__)
        total_s = time.monotonic() - begin
        self.metrics.record_reply(reply, total_s)
        timings = reply.timings.model_copy(update={"total_s": total_s})
        return reply.model_copy(update={"timings": timings})

    async def _reply(self, item: ScoreItem, deadline: float) -> ScoreReply:
        question, references = build_question(item)
        if not has_question(item):
            return _failure(Status.NO_QUESTION, _QUESTION_REMEDY)
        if not references and (blind := self._refuse_blind(item)):
            return blind
        if (unfit := self._refuse_other_kind(item)) is not None:
            return unfit
        if any(is_blank(text) for text in (item.response, item.other) if text is not None):
            return _failure(Status.EMPTY_TEXT, EMPTY_RESPONSE)
        if refusal := refuse_extra_images(len(references), self.config.engine.max_images):
            return _failure(Status.TOO_LARGE, refusal.detail)
        # The wire bounds each text; a conversation has many, and a reference is added.
        if len(question) > MAX_TEXT:
            detail = f"{len(question)} characters of question, conversation and reference together; limit {MAX_TEXT}"
            return _failure(Status.TOO_LARGE, detail)
        async with self.images.hold(references, deadline) as images:
            return await self._judge_images(item, question, images, deadline)

    async def _judge_images(
        self, item: ScoreItem, question: str, images: tuple[StoredImage, ...], deadline: float
    ) -> ScoreReply:
        """Return the reply from the cache, a running computation, or one that is started."""
        config = judge_config(item, self.config.judge)
        while True:
            model = self.model
            task = ScoreTask(
                images=images,
                question=question,
                response=item.response,
                other=item.other or "",
                config=config,
                deadline_s=0.0,
            )
            key = task.cache_key(model.name)
            if (cached := self.cache.get(key)) is not None:
                return cached.model_copy(update={"cached": True, "timings": Timings()})
            flight = self.single_flight.find(key, deadline)
            if flight is None:
                if self.num_running >= self.config.limits.max_queue:
                    return _failure(Status.OVERLOADED, "the queue is full; ask again later")
                flight = self.single_flight.start(key, deadline, partial(self._compute, task, key, model, deadline))
                return await self.single_flight.wait(flight)
            reply = await self.single_flight.wait(flight)
            # If the other request's deadline cut it short and ours is later, compute again.
            if _is_complete(reply) or _now() >= deadline:
                return reply

    def _refuse_other_kind(self, item: ScoreItem) -> ScoreReply | None:
        """Return the reply to an item that the other kind of judge takes; None if this one does."""
        if self.config.judge.is_pairwise and item.other is None:
            detail = f"{PAIRWISE_JUDGE}, which rewards no single response: POST two to /v1/compare, or more to /v1/rank"
            return _failure(Status.BAD_REQUEST, detail)
        if not self.config.judge.is_pairwise and item.other is not None:
            return _failure(Status.BAD_REQUEST, "other: the model rewards single responses; leave it out")
        return None

    def _refuse_blind(self, item: ScoreItem) -> ScoreReply | None:
        """Return the reply to an item that must not be judged without an image; None if it may be."""
        setting = self.config.blind_judging
        allowed = item.allow_blind or setting == "allow" or (setting == "text_only" and not item.image_expected)
        self.metrics.record_without_image(judged=bool(allowed))
        if allowed:
            self._warn_once(
                "items without an image are judged by their text alone, as their sender or the setting allows"
            )
            return None
        about = "it refers to an image and has none" if item.image_expected else "it has no image"
        self._warn_once(f"an item is not judged, status no_image: {about}; further ones are only counted")
        return _failure(Status.NO_IMAGE, f"{about}; {_BLIND_REMEDY}")

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            _log.warning("%s", message)

    async def _compute(self, task: ScoreTask, key: str, model: ModelVersion, deadline: float) -> ScoreReply:
        begin = time.monotonic()
        task = replace(task, deadline_s=max(deadline - _now(), 0.0))
        try:
            async with asyncio.timeout_at(deadline + _GRACE_S):
                model_name, judgement = await self.dispatcher.judge(task, model)
        except TimeoutError:
            return _failure(Status.TIMEOUT, "no engine answered by the deadline")
        reply = build_reply(judgement, model_name, queued_s=max(time.monotonic() - begin - judgement.engine_s, 0.0))
        self.metrics.record_judgement(judgement, reply.timings.queued_s)
        # Not cached: results of another version than that of the key, and failures, which may succeed next time.
        if model_name == model.name and reply.status is Status.OK and _is_complete(reply):
            self.cache.put(key, reply)
        return reply


def build_question(item: ScoreItem) -> tuple[str, list[str]]:
    """Return the question with its reference answer as one text, and all images: the item's, then the messages'.

    Raises:
        InputError: The messages cannot be read.
    """
    references = [item.image] if item.image is not None else list(item.images)
    if item.messages is None:
        question = item.question or ""
    else:
        turns = to_openai_messages(item.messages)
        references += image_urls(turns)
        texts = [(turn["role"], message_text(turn)) for turn in turns]
        # A single question needs no role; in a longer conversation the judge must see who said what.
        question = texts[0][1] if len(texts) == 1 else "\n".join(f"{role.capitalize()}: {text}" for role, text in texts)
    if item.reference is not None and item.reference.strip():
        question = f"{question}\nReference answer: {item.reference}"
    return question, references


def has_question(item: ScoreItem) -> bool:
    """Return whether an item has a question: a text, or a turn with a text that is not the system's."""
    if item.messages is None:
        return bool((item.question or "").strip())
    return any(turn["role"] not in _SYSTEM_ROLES and message_text(turn).strip() for turn in item.messages)


def judge_config(item: ScoreItem, default: JudgeConfig) -> JudgeConfig:
    """Return the service's judge configuration with the item's own settings applied."""
    requested = {
        "mode": item.mode,
        "num_critiques": item.num_critiques,
        "aggregator": item.aggregator,
        "seed": item.seed,
    }
    config = default.model_copy(update={name: value for name, value in requested.items() if value is not None})
    if config.mode == "direct" or config.temperature == 0.0:
        # Deterministic: more critiques would be copies of the first.
        config = config.model_copy(update={"num_critiques": 1})
    return config


def build_reply(judgement: Judgement, model_name: str, *, queued_s: float) -> ScoreReply:
    """Return the reply to an item whose judgement spent `queued_s` outside the engine."""
    status = parse_status(judgement.status)
    detail = judgement.detail
    if status is Status.TIMEOUT:
        detail = detail or "no critique was finished by the deadline"
    elif status is Status.UNREADABLE_VERDICT:
        detail = "no critique ended in a verdict that counts"
    return ScoreReply(
        reward=judgement.reward,
        status=status,
        detail=detail,
        critiques=[WireCritique(text=critique.text, p_yes=critique.p_yes) for critique in judgement.critiques],
        sentences=[WireSentence(text=sentence.text, reward=sentence.reward) for sentence in judgement.sentences],
        num_asked=judgement.num_asked,
        verdict_mass=judgement.verdict_mass,
        model_version=model_name,
        usage=TokenUsage(prompt_tokens=judgement.num_prompt_tokens, completion_tokens=judgement.num_tokens),
        timings=Timings(queued_s=queued_s, engine_s=judgement.engine_s),
    )


def _failure(status: Status, detail: str) -> ScoreReply:
    """Return the reply to an item that failed before it reached an engine."""
    return ScoreReply(reward=None, status=status, detail=detail)


def _is_complete(reply: ScoreReply) -> bool:
    """Return True unless a deadline cut the reply short."""
    return reply.status is not Status.TIMEOUT and len(reply.critiques) >= reply.num_asked


def _now() -> float:
    return asyncio.get_running_loop().time()
