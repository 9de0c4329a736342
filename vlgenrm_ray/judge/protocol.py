"""What a client and a served judge say to each other, apart from how it is carried.

The flows below are generators: they yield a step (`Call`, `Pause`, `Upload`) and are sent what became of it, so the
blocking client and the asynchronous one in `remote.py` share every rule about retries, images and deadlines.
"""

import random
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import DropReason, InputError, RemoteError, RemoteRefusalError
from vlgenrm_ray.judge.conversation import Message, image_urls, to_openai_messages
from vlgenrm_ray.judge.images import ImageUploads, Picture
from vlgenrm_ray.judge.wire import MAX_ITEMS, ScoreItem, ScoreReply, ScoreRequest, ScoreResponse, Status

UNKNOWN_IMAGE = "unknown image"
"""How the detail of an item begins whose image the server has not, or no longer."""
_GRACE_S = 2.0
"""Seconds beyond a deadline in which the server's answer may still arrive."""
_LONGEST_PAUSE_S = 30.0
_MAX_KNOWN = 200_000
LATE = ScoreReply(reward=None, status=Status.TIMEOUT, detail="no answer before the caller's deadline")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreInput:
    """One response to be judged remotely. Exactly one of `question` and `messages` is given."""

    response: str
    question: str | None = None
    messages: Sequence[Message] | None = None
    """The conversation up to the response; its image parts are shown after `image` or `images`."""
    image: Picture | None = None
    images: Sequence[Picture] = ()
    """Several, in place of `image`; how many a judge takes is its operator's setting."""
    reference: str | None = None
    mode: str | None = None
    """None: as the server is configured. So with the following."""
    num_critiques: int | None = None
    aggregator: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """`POST path`; sent the response, or the transport's error."""

    path: str
    body: bytes
    content_type: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """Run `JudgeProtocol.upload` unless another caller has it under way; sent why the image is refused, or None."""

    name: str
    data: bytes
    until: float | None


class TooLateError(Exception):
    """The caller's deadline has passed."""


class JudgeProtocol:
    """The rules of the talk, and what is known of the server: which images it has."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        retries: int,
        limits: ImageLimits | None = None,
        known: set[str] | None = None,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.retries = retries
        self.limits = limits or ImageLimits()
        self.known = set() if known is None else known

    def score(
        self, asks: Sequence[ScoreInput], deadline_s: float | None = None
    ) -> Generator[Any, Any, list[ScoreReply]]:
        """One reply per ask, in order. What the server was too busy for, or lacked an image for, is asked again."""
        until = None if deadline_s is None else time.monotonic() + deadline_s
        album = ImageUploads(self.limits)
        prepared = [prepare(ask, album) for ask in asks]
        replies = {i: item for i, item in enumerate(prepared) if isinstance(item, ScoreReply)}
        pending = {i: item for i, item in enumerate(prepared) if isinstance(item, ScoreItem)}
        for attempt in range(self.retries + 1):
            numbers = list(pending)
            for start in range(0, len(numbers), MAX_ITEMS):
                batch = numbers[start : start + MAX_ITEMS]
                answers = yield from self._batch([pending[i] for i in batch], album, until)
                replies.update(zip(batch, answers, strict=True))
            pending = {i: item for i, item in pending.items() if self._again(item, replies[i], album)}
            if not pending or attempt == self.retries:
                break
            if any(replies[i].status is Status.OVERLOADED for i in pending):
                pause = _backoff(attempt)
                if until is not None and time.monotonic() + pause > until:
                    break
                yield Pause(pause)
        return [replies[i] for i in range(len(asks))]

    def upload(self, image: Upload) -> Generator[Any, Any, ScoreReply | None]:
        """Give the server an image; None, or the reply of every item that shows it. Raises RemoteError."""
        kind = "application/octet-stream"
        try:
            response = yield from self._post("/v1/images", image.data, kind, image.until, refusals=(400, 413, 422))
        except TooLateError:
            return LATE
        if response.status_code != 200:
            status = Status.TOO_LARGE if response.status_code == 413 else Status.BAD_IMAGE
            return ScoreReply(reward=None, status=status, detail=_detail(response))
        if f"sha256:{_json(response, self.url).get('sha256')}" != image.name:
            raise RemoteError(f"{self.url}/v1/images: answered with another hash than that of the image sent")
        if len(self.known) >= _MAX_KNOWN:
            self.known.clear()
        self.known.add(image.name)
        return None

    def _batch(
        self, items: Sequence[ScoreItem], album: ImageUploads, until: float | None
    ) -> Generator[Any, Any, list[ScoreReply]]:
        """The replies to at most MAX_ITEMS items, after their images are with the server."""
        try:
            refused: dict[str, ScoreReply] = {}
            for name in dict.fromkeys(n for item in items for n in shown(item)):
                if name in album.encoded and name not in self.known:
                    refusal = yield Upload(name, album.encoded[name], until)
                    if refusal is not None:
                        refused[name] = refusal
            bad = [next((refused[n] for n in shown(item) if n in refused), None) for item in items]
            sent = [item for item, refusal in zip(items, bad, strict=True) if refusal is None]
            answers = iter((yield from self._send(sent, until)) if sent else [])
            return [refusal or next(answers) for refusal in bad]
        except TooLateError:
            return [LATE] * len(items)

    def _send(self, items: Sequence[ScoreItem], until: float | None) -> Generator[Any, Any, list[ScoreReply]]:
        left = None if until is None else min(max(until - time.monotonic(), 0.001), 3600.0)
        body = ScoreRequest(items=list(items), deadline_s=left).model_dump_json(exclude_none=True).encode()
        response = yield from self._post("/v1/score", body, "application/json", until)
        try:
            replies = ScoreResponse.model_validate_json(response.content).items
        except ValidationError as error:
            raise RemoteError(f"{self.url}/v1/score: not a judge's answer: {_first(error)}") from error
        if len(replies) != len(items):
            raise RemoteError(f"{self.url}/v1/score: {len(replies)} replies to {len(items)} items")
        return replies

    def _post(
        self, path: str, body: bytes, content_type: str, until: float | None, refusals: tuple[int, ...] = ()
    ) -> Generator[Any, Any, httpx.Response]:
        """The response to a call, or RemoteError; TooLateError where the deadline passes first."""
        for attempt in range(self.retries + 1):
            left = self.timeout_s if until is None else until - time.monotonic()
            if left <= 0:
                raise TooLateError
            # Whoever gives a deadline is willing to wait for it.
            timeout_s = self.timeout_s if until is None else left + _GRACE_S
            answer = yield Call(path, body, content_type, timeout_s)
            if isinstance(answer, httpx.Response) and (answer.status_code == 200 or answer.status_code in refusals):
                return answer
            if isinstance(answer, httpx.ReadTimeout | httpx.WriteTimeout) and until is not None:
                raise TooLateError
            pause = _pause(answer, attempt)
            if pause is None or attempt == self.retries:
                refused = isinstance(answer, httpx.Response) and answer.is_client_error
                raise (RemoteRefusalError if refused else RemoteError)(
                    _explain(self.url + path, answer, attempt + 1)
                ) from (answer if isinstance(answer, Exception) else None)
            if until is not None and time.monotonic() + pause > until:
                raise TooLateError
            yield Pause(pause)
        raise AssertionError("the last attempt returns or raises")

    def _again(self, item: ScoreItem, reply: ScoreReply, album: ImageUploads) -> bool:
        """Whether to ask once more. Forgets, as the server has, an image it says it does not know."""
        if reply.status is Status.BAD_IMAGE and reply.detail.startswith(UNKNOWN_IMAGE):
            ours = {name for name in shown(item) if name in album.encoded}
            self.known -= ours
            return bool(ours)
        return reply.status is Status.OVERLOADED


def prepare(ask: ScoreInput, album: ImageUploads) -> ScoreItem | ScoreReply:
    """What is sent for an ask, its images put into the album; or its reply, where it cannot be sent.

    Raises InputError where the ask itself is wrong (no question, an unknown mode).
    """
    try:
        return ScoreItem.model_validate(
            {
                "response": ask.response,
                "question": ask.question,
                "messages": None if ask.messages is None else to_openai_messages(ask.messages, album.reference),
                "image": None if ask.image is None else album.reference(ask.image),
                "images": [album.reference(picture) for picture in ask.images],
                "reference": ask.reference,
                "mode": ask.mode,
                "num_critiques": ask.num_critiques,
                "aggregator": ask.aggregator,
                "seed": ask.seed,
            }
        )
    except ImageError as error:
        too_large = error.reason is DropReason.IMAGE_TOO_LARGE
        status = Status.TOO_LARGE if too_large else Status.BAD_IMAGE
        return ScoreReply(reward=None, status=status, detail=error.detail)
    except ValidationError as error:
        if all(e["type"] in ("string_too_long", "too_long") for e in error.errors()):
            return ScoreReply(reward=None, status=Status.TOO_LARGE, detail=_first(error))
        raise InputError(f"ask: {_first(error)}") from error


def shown(item: ScoreItem) -> list[str]:
    """References of every image of an item."""
    own = [item.image] if item.image is not None else list(item.images)
    return own + image_urls(item.messages or [])


def _backoff(attempt: int) -> float:
    """Seconds before the next attempt: 0.25, 0.5, 1, ... with chance, so that clients do not come back together."""
    return float(min(0.25 * 2**attempt, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))


def _pause(answer: httpx.Response | Exception, attempt: int) -> float | None:
    """Seconds after which to try again; None where that would not help."""
    if isinstance(answer, httpx.Response):
        if answer.status_code not in (502, 503):
            return None
        asked = answer.headers.get("retry-after", "")
        # Never sooner than asked, and later each time: a service may say one second for as long as it restarts.
        return min(max(float(asked) if asked.isdecimal() else 0.0, _backoff(attempt)), _LONGEST_PAUSE_S)
    # A request that was sent whole and not answered in time would only be asked twice.
    return None if isinstance(answer, httpx.ReadTimeout | httpx.WriteTimeout) else _backoff(attempt)


def _explain(url: str, answer: httpx.Response | Exception, attempts: int) -> str:
    times = f" ({attempts} attempts)" if attempts > 1 else ""
    if isinstance(answer, httpx.ReadTimeout | httpx.WriteTimeout):
        return f"{url}: no answer in time{times}; raise timeout_s, or give deadline_s for what is finished by then"
    if isinstance(answer, Exception):
        return f"{url}: {type(answer).__name__}: {answer}{times}; is the service up, and the address right?"
    remedy = "; give the service's token" if answer.status_code in (401, 403) else ""
    return f"{url}: {answer.status_code} {answer.reason_phrase}{times}: {_detail(answer)}{remedy}"


def _detail(response: httpx.Response) -> str:
    """What a refusal says, shortened."""
    try:
        told = response.json()
    except ValueError:
        return response.text[:300]
    return str(told.get("detail", told) if isinstance(told, dict) else told)[:300]


def _json(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        told = response.json()
    except ValueError as error:
        raise RemoteError(f"{url}: answered with something that is not JSON") from error
    return told if isinstance(told, dict) else {}


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
