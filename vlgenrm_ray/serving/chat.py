"""The served model as a chat model: it continues conversations that end with a user's turn.

Trainers with a generative reward of their own send their judge's prompt to `/v1/chat/completions` and read the verdict
themselves. Such an answer is plain chat: no prompt of this package, no verdict, no cache. Images, limits, deadline and
queue are those of scored items. Special tokens in the texts are escaped by the engine, so that no text ends its turn.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.engines.contracts import Sampling, Turn, refuse_extra_images
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.chat_templates import IMAGE_MARK, mentions_image
from vlgenrm_ray.judge.conversation import image_urls, to_openai_messages
from vlgenrm_ray.judge.wire import MAX_TEXT, Status, parse_status, status_of_reason
from vlgenrm_ray.serving.engine import ChatAnswer, ChatTask
from vlgenrm_ray.serving.service import Service

_log = logging.getLogger("vlgenrm.serving")
_GRACE_S = 2.0
"""Time after a deadline for answers that the engine finished by then to arrive."""
_MAX_PARTS = 1024
"""Most texts of a conversation: rendering many empty ones takes time too."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """The answers to a conversation, or the reason why there are none."""

    status: Status
    detail: str = ""
    answers: tuple[ChatAnswer, ...] = ()
    """One per requested sample, in order; empty unless `status` is `ok`."""
    num_prompt_tokens: int = 0
    """Tokens of the prompt, those of images included."""
    model_version: str = ""
    """Version of the weights that answered."""


class ChatService:
    """Continues conversations with the active model of a `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def max_tokens(self) -> int:
        """Most tokens of an answer."""
        return self._service.config.limits.max_chat_tokens

    async def answer(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling, seed: int | None) -> ChatReply:
        """Continue a conversation.

        Args:
            messages: Turns in a form that `to_openai_messages` reads, the last one a user's. Images as in `ScoreItem`.
            sampling: Sampling of the answers. Several at temperature 0 are copies of one.
            seed: Seed of the answers. None: another one for each request.

        Returns:
            The answers. A failure is a status of the reply; nothing is raised.
        """
        begin = time.monotonic()
        try:
            reply = await self._answer(messages, sampling, secrets.randbits(32) if seed is None else seed)
        except ImageError as error:
            reply = ChatReply(status=status_of_reason(error.reason), detail=error.detail)
        except InputError as error:
            reply = ChatReply(status=Status.BAD_REQUEST, detail=str(error))
        # Whatever an engine raises: a reply with a status, as for scored items.
        except Exception as error:
            _log.exception("a conversation failed")
            reply = ChatReply(status=Status.INTERNAL, detail=type(error).__name__)
        num_tokens = sum(answer.num_tokens for answer in reply.answers)
        self._service.metrics.record_chat(reply.status, num_tokens, time.monotonic() - begin)
        return reply

    async def _answer(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling, seed: int) -> ChatReply:
        service = self._service
        loop = asyncio.get_running_loop()
        deadline = loop.time() + service.config.limits.deadline_s
        conversation = to_openai_messages(messages)
        references = image_urls(conversation)
        if refused := self._refuse(conversation, len(references)):
            return refused
        if service.num_running >= service.config.limits.max_queue:
            return ChatReply(status=Status.OVERLOADED, detail="the queue is full; ask again later")
        service.num_chats += 1
        try:
            # At temperature 0 further samples would be copies of the first; engines refuse to compute them.
            num_copies = sampling.n if sampling.temperature == 0.0 else 1
            async with asyncio.timeout_at(deadline + _GRACE_S), service.images.hold(references, deadline) as images:
                task = ChatTask(
                    turns=_build_turns(conversation),
                    images=images,
                    sampling=replace(sampling, n=sampling.n // num_copies),
                    seed=seed,
                    deadline_s=max(deadline - loop.time(), 0.0),
                )
                model_name, result = await service.dispatcher.chat(task, service.model)
        except TimeoutError:
            return ChatReply(status=Status.TIMEOUT, detail="no engine answered by the deadline")
        finally:
            service.num_chats -= 1
        return ChatReply(
            status=parse_status(result.status),
            detail=result.detail,
            answers=result.answers * num_copies,
            num_prompt_tokens=result.num_prompt_tokens,
            model_version=model_name,
        )

    def _refuse(self, conversation: Sequence[Mapping[str, Any]], num_images: int) -> ChatReply | None:
        """Return the reply to a conversation that no engine should see; None if it may be answered."""
        texts = [text for turn in conversation for text in _texts(turn)]
        if (num_chars := sum(map(len, texts))) > MAX_TEXT:
            return ChatReply(status=Status.TOO_LARGE, detail=f"messages: {num_chars} characters; limit {MAX_TEXT}")
        if len(texts) > _MAX_PARTS:
            return ChatReply(status=Status.TOO_LARGE, detail=f"messages: {len(texts)} texts; limit {_MAX_PARTS}")
        if refusal := refuse_extra_images(num_images, self._service.config.engine.max_images):
            return ChatReply(status=Status.TOO_LARGE, detail=refusal.detail)
        if not any(text.strip() for text in _texts(conversation[-1])) and not num_images:
            return ChatReply(status=Status.NO_QUESTION, detail="messages: the user's last turn is empty")
        blind = not num_images and any(mentions_image(text) for text in texts)
        if blind and self._service.config.blind_judging != "allow":
            detail = "messages: a placeholder of an image, and no image; send it as an `image_url` part"
            return ChatReply(status=Status.NO_IMAGE, detail=detail)
        return None


def _texts(turn: Mapping[str, Any]) -> list[str]:
    """Return the texts of a turn in OpenAI's form."""
    content = turn["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _build_turns(conversation: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Build the engine's turns.

    Raises:
        InputError: A role is none of a chat's.
    """
    turns = []
    for place, message in enumerate(conversation):
        role = _ROLES.get(message["role"])
        if role is None:
            raise InputError(f"messages[{place}].role: {message['role']!r}; must be one of {', '.join(_ROLES)}")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        # A part that marks an image which travels elsewhere has no image here.
        texts = tuple(
            None if part["type"] == "image_url" else part["text"] for part in parts if part.get("text") != IMAGE_MARK
        )
        turns.append(Turn(role=cast("Any", role), parts=texts))
    return tuple(turns)
