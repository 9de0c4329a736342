"""Sans-IO protocol between a client and a served judge: retries, image uploads and deadlines, without a transport.

`JudgeProtocol`'s methods are generators: they yield a step (`HttpCall`, `Pause`, `Upload`) and receive its result. The
blocking and the asynchronous client in `remote.py` run the same generators and thereby share every rule.

Retried: failed connections, 502 and 503, with growing random pauses (none shorter than `Retry-After`), and items whose
status is `overloaded`. Never retried: refusals (4xx) and requests that were sent but not answered in time.
"""

import random
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
from pydantic import ValidationError

from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import InputError, RemoteError, RemoteRefusalError
from vlgenrm_ray.judge import tournament
from vlgenrm_ray.judge.conversation import Message, image_urls, to_openai_messages
from vlgenrm_ray.judge.images import ImageInput, ImageUploads
from vlgenrm_ray.judge.wire import (
    MAX_ITEMS,
    CompareResponse,
    RankResponse,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    ScoreResponse,
    Status,
    compare_replies,
    rank_by_comparisons,
    rank_replies,
    status_of_reason,
)

UNKNOWN_IMAGE = "unknown image"
"""Prefix of the detail of an item whose image the server does not hold."""
PAIRWISE_JUDGE = "the model is a pairwise judge"
"""Prefix of the detail of an item with a single response, at a service that compares two."""
_GRACE_S = 2.0
"""Seconds after a deadline in which the server's reply may still arrive."""
_MAX_PAUSE_S = 30.0
_MAX_UPLOADED = 200_000
"""References remembered as uploaded, before the memory is cleared."""
_DEADLINE_REPLY = ScoreReply(reward=None, status=Status.TIMEOUT, detail="no answer before the caller's deadline")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreInput:
    """One response for a served judge. Exactly one of `question` and `messages` is required."""

    response: str
    question: str | None = None
    messages: Sequence[Message] | None = None
    """The conversation before the response; its image parts follow `image` or `images`."""
    image: ImageInput | None = None
    images: Sequence[ImageInput] = ()
    """Several images, instead of `image`. The judge's operator limits their number."""
    other: str | None = None
    """Second response, for a pairwise judge; see `wire.ScoreItem.other`."""
    reference: str | None = None
    """A right answer, which the judge sees."""
    image_expected: bool = False
    """The response is about an image, hence has no reward (`no_image`) if none is given."""
    allow_blind: bool = False
    """Judge without an image if there is none, whatever the service's setting `blind_judging`."""
    mode: str | None = None
    """`cot` or `direct`. None: the server's setting; the same holds for the following fields."""
    num_critiques: int | None = None
    aggregator: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class HttpCall:
    """Step: `POST path`. Its result is the response, or the transport's error."""

    path: str
    body: bytes
    content_type: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Upload:
    """Step: run `JudgeProtocol.upload` unless another caller is doing so. Its result is a refusal or None."""

    reference: str
    data: bytes
    deadline: float | None


class DeadlineExceededError(Exception):
    """The caller's deadline has passed."""


class JudgeProtocol:
    """The client's side of the protocol, with the references of the images it has uploaded."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        retries: int,
        limits: ImageLimits | None = None,
        uploaded: set[str] | None = None,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self.retries = retries
        self.limits = limits or ImageLimits()
        self.uploaded = set() if uploaded is None else uploaded
        self.is_pairwise = False
        """True once the service has answered that its judge is pairwise."""

    def score(
        self, inputs: Sequence[ScoreInput], deadline_s: float | None = None
    ) -> Generator[Any, Any, list[ScoreReply]]:
        """Score inputs; one reply each, in order. Retries items that were `overloaded` or lacked an image."""
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        uploads = ImageUploads(self.limits)
        prepared = [build_score_item(score_input, uploads) for score_input in inputs]
        replies = {i: item for i, item in enumerate(prepared) if isinstance(item, ScoreReply)}
        pending = {i: item for i, item in enumerate(prepared) if isinstance(item, ScoreItem)}
        for attempt in range(self.retries + 1):
            indices = list(pending)
            for start in range(0, len(indices), MAX_ITEMS):
                batch = indices[start : start + MAX_ITEMS]
                batch_replies = yield from self._score_batch([pending[i] for i in batch], uploads, deadline)
                replies.update(zip(batch, batch_replies, strict=True))
            pending = {i: item for i, item in pending.items() if self._should_retry(item, replies[i], uploads)}
            if not pending or attempt == self.retries:
                break
            if any(replies[i].status is Status.OVERLOADED for i in pending):
                pause = _backoff_s(attempt)
                if deadline is not None and time.monotonic() + pause > deadline:
                    break
                yield Pause(pause)
        return [replies[i] for i in range(len(inputs))]

    def compare(
        self, score_input: ScoreInput, first: str, second: str, deadline_s: float | None = None
    ) -> Generator[Any, Any, CompareResponse]:
        """Compare two responses to the question of `score_input`: by their rewards, or in both orders."""
        if not self.is_pairwise:
            replies = yield from self.score(
                [replace(score_input, response=text) for text in (first, second)], deadline_s
            )
            if not self._needs_pairs(replies):
                return compare_replies(*replies)
        orders = yield from self._score_pairs(score_input, [(first, second), (second, first)], deadline_s)
        return compare_replies(*orders, pairwise=True)

    def rank(
        self, score_input: ScoreInput, responses: Sequence[str], deadline_s: float | None = None
    ) -> Generator[Any, Any, RankResponse]:
        """Rank responses to the question of `score_input`: by their rewards, or by a tournament."""
        if not self.is_pairwise:
            replies = yield from self.score([replace(score_input, response=text) for text in responses], deadline_s)
            if not self._needs_pairs(replies):
                return rank_replies(replies)
        pairs = [pair for i, j in tournament.comparisons(responses) for pair in ((i, j), (j, i))]
        texts = [(responses[i], responses[j]) for i, j in pairs]
        orders = yield from self._score_pairs(score_input, texts, deadline_s)
        return rank_by_comparisons(responses, dict(zip(pairs, orders, strict=True)))

    def _score_pairs(
        self, score_input: ScoreInput, pairs: Sequence[tuple[str, str]], deadline_s: float | None
    ) -> Generator[Any, Any, list[ScoreReply]]:
        inputs = [replace(score_input, response=first, other=second) for first, second in pairs]
        return (yield from self.score(inputs, deadline_s))

    def _needs_pairs(self, replies: Sequence[ScoreReply]) -> bool:
        """Return whether the service refused single responses because its judge is pairwise; remember it then."""
        self.is_pairwise = any(reply.detail.startswith(PAIRWISE_JUDGE) for reply in replies)
        return self.is_pairwise

    def upload(self, image: Upload) -> Generator[Any, Any, ScoreReply | None]:
        """Upload an image. Returns None, or the reply of every item that shows it. Raises RemoteError."""
        kind = "application/octet-stream"
        try:
            response = yield from self._post("/v1/images", image.data, kind, image.deadline, refusals=(400, 413, 422))
        except DeadlineExceededError:
            return _DEADLINE_REPLY
        if response.status_code != 200:
            status = Status.TOO_LARGE if response.status_code == 413 else Status.BAD_IMAGE
            return ScoreReply(reward=None, status=status, detail=_detail(response))
        if f"sha256:{_json(response, self.url).get('sha256')}" != image.reference:
            raise RemoteError(f"{self.url}/v1/images: answered with another hash than that of the image sent")
        if len(self.uploaded) >= _MAX_UPLOADED:
            self.uploaded.clear()
        self.uploaded.add(image.reference)
        return None

    def read_model(self, answer: httpx.Response | Exception) -> str:
        """Return the version in an answer to `GET /v1/model`, "" if it has none yet. Raises RemoteError."""
        url = f"{self.url}/v1/model"
        # Starting, or behind a proxy that lets only POST through.
        if isinstance(answer, httpx.Response) and answer.status_code in (405, 501, 502, 503):
            return ""
        if isinstance(answer, Exception) or answer.status_code in (401, 403):
            refused = isinstance(answer, httpx.Response)
            raise (RemoteRefusalError if refused else RemoteError)(_explain(url, answer, 1)) from (
                answer if isinstance(answer, Exception) else None
            )
        try:
            version = answer.json()["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise RemoteError(
                f"{url}: {answer.status_code} {answer.reason_phrase}: not a judge's answer; is this the address and "
                "port of `vlgenrm serve`?"
            ) from error
        return str(version)

    def _score_batch(
        self, items: Sequence[ScoreItem], uploads: ImageUploads, deadline: float | None
    ) -> Generator[Any, Any, list[ScoreReply]]:
        """Upload the images of at most `MAX_ITEMS` items, then score them."""
        try:
            refusals: dict[str, ScoreReply] = {}
            for reference in dict.fromkeys(r for item in items for r in image_references(item)):
                if reference in uploads.encoded and reference not in self.uploaded:
                    refusal = yield Upload(reference, uploads.encoded[reference], deadline)
                    if refusal is not None:
                        refusals[reference] = refusal
            refused = [next((refusals[r] for r in image_references(item) if r in refusals), None) for item in items]
            accepted = [item for item, refusal in zip(items, refused, strict=True) if refusal is None]
            replies = iter((yield from self._send(accepted, deadline)) if accepted else [])
            return [refusal or next(replies) for refusal in refused]
        except DeadlineExceededError:
            return [_DEADLINE_REPLY] * len(items)

    def _send(self, items: Sequence[ScoreItem], deadline: float | None) -> Generator[Any, Any, list[ScoreReply]]:
        left = None if deadline is None else min(max(deadline - time.monotonic(), 0.001), 3600.0)
        body = ScoreRequest(items=list(items), deadline_s=left).model_dump_json(exclude_none=True).encode()
        response = yield from self._post("/v1/score", body, "application/json", deadline)
        try:
            replies = ScoreResponse.model_validate_json(response.content).items
        except ValidationError as error:
            raise RemoteError(f"{self.url}/v1/score: not a judge's answer: {_first_error(error)}") from error
        if len(replies) != len(items):
            raise RemoteError(f"{self.url}/v1/score: {len(replies)} replies to {len(items)} items")
        return replies

    def _post(
        self, path: str, body: bytes, content_type: str, deadline: float | None, refusals: tuple[int, ...] = ()
    ) -> Generator[Any, Any, httpx.Response]:
        """Post until answered with 200 or one of `refusals`. Raises RemoteError, DeadlineExceededError."""
        for attempt in range(self.retries + 1):
            left = self.timeout_s if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceededError
            # A caller that gives a deadline is willing to wait for it, however long `timeout_s` is.
            timeout_s = self.timeout_s if deadline is None else left + _GRACE_S
            answer = yield HttpCall(path, body, content_type, timeout_s)
            if isinstance(answer, httpx.Response) and (answer.status_code == 200 or answer.status_code in refusals):
                return answer
            if isinstance(answer, httpx.ReadTimeout | httpx.WriteTimeout) and deadline is not None:
                raise DeadlineExceededError
            pause = _retry_pause_s(answer, attempt)
            if pause is None or attempt == self.retries:
                refused = isinstance(answer, httpx.Response) and answer.is_client_error
                raise (RemoteRefusalError if refused else RemoteError)(
                    _explain(self.url + path, answer, attempt + 1)
                ) from (answer if isinstance(answer, Exception) else None)
            if deadline is not None and time.monotonic() + pause > deadline:
                raise DeadlineExceededError
            yield Pause(pause)
        raise AssertionError("the last attempt returns or raises")

    def _should_retry(self, item: ScoreItem, reply: ScoreReply, uploads: ImageUploads) -> bool:
        """Return whether to send an item again. An image that the server does not hold is marked for upload."""
        if reply.status is Status.BAD_IMAGE and reply.detail.startswith(UNKNOWN_IMAGE):
            ours = {reference for reference in image_references(item) if reference in uploads.encoded}
            self.uploaded -= ours
            return bool(ours)
        return reply.status is Status.OVERLOADED


def build_score_item(score_input: ScoreInput, uploads: ImageUploads) -> ScoreItem | ScoreReply:
    """Build the wire item of an input and add its images to `uploads`.

    Returns:
        The item, or its reply if an image or text cannot be read, or is too large.

    Raises:
        InputError: The input itself is wrong, such as no question or an unknown mode.
    """
    try:
        messages = score_input.messages
        turns = None if messages is None else to_openai_messages(messages, uploads.reference)
    except InputError as error:
        return ScoreReply(reward=None, status=Status.BAD_REQUEST, detail=str(error))
    except ImageError as error:
        return _image_failure(error)
    try:
        return ScoreItem.model_validate(
            {
                "response": score_input.response,
                "question": score_input.question,
                "messages": turns,
                "image": None if score_input.image is None else uploads.reference(score_input.image),
                "images": [uploads.reference(image) for image in score_input.images],
                "other": score_input.other,
                "reference": score_input.reference,
                # None is not sent, so that services of the former version accept other items.
                "image_expected": score_input.image_expected or None,
                "allow_blind": score_input.allow_blind or None,
                "mode": score_input.mode,
                "num_critiques": score_input.num_critiques,
                "aggregator": score_input.aggregator,
                "seed": score_input.seed,
            }
        )
    except ImageError as error:
        return _image_failure(error)
    except ValidationError as error:
        kinds = {e["type"] for e in error.errors()}
        if kinds <= {"string_too_long", "too_long"}:
            return ScoreReply(reward=None, status=Status.TOO_LARGE, detail=_first_error(error))
        # Half of a surrogate pair: a fault of the data, not of the caller.
        if "string_unicode" in kinds:
            return ScoreReply(reward=None, status=Status.BAD_REQUEST, detail=_first_error(error))
        raise InputError(f"score input: {_first_error(error)}") from error


def _image_failure(error: ImageError) -> ScoreReply:
    return ScoreReply(reward=None, status=status_of_reason(error.reason), detail=error.detail)


def image_references(item: ScoreItem) -> list[str]:
    """Return the references of all images of an item, in the order in which the judge sees them."""
    own = [item.image] if item.image is not None else list(item.images)
    return own + image_urls(item.messages or [])


def _backoff_s(attempt: int) -> float:
    """Draw the pause before the next attempt: 0.25, 0.5, 1, ... s, each times 0.5 to 1 so that clients spread out."""
    return float(min(0.25 * 2**attempt, _MAX_PAUSE_S) * random.uniform(0.5, 1.0))


def _retry_pause_s(answer: httpx.Response | Exception, attempt: int) -> float | None:
    """Return the seconds before the next attempt, or None if another attempt would not help."""
    if isinstance(answer, httpx.Response):
        if answer.status_code not in (502, 503):
            return None
        retry_after = answer.headers.get("retry-after", "")
        # At least Retry-After, and growing: a service may send "1" for as long as it restarts.
        return min(max(float(retry_after) if retry_after.isdecimal() else 0.0, _backoff_s(attempt)), _MAX_PAUSE_S)
    # The server may still be working on a request that was sent: sending it again would double the work.
    return None if isinstance(answer, httpx.ReadTimeout | httpx.WriteTimeout) else _backoff_s(attempt)


def _explain(url: str, answer: httpx.Response | Exception, attempts: int) -> str:
    times = f" ({attempts} attempts)" if attempts > 1 else ""
    if isinstance(answer, httpx.ReadTimeout | httpx.WriteTimeout):
        return f"{url}: no answer in time{times}; raise timeout_s, or give deadline_s for partial results"
    if isinstance(answer, Exception):
        return f"{url}: {type(answer).__name__}: {answer}{times}; is the service up, and the address right?"
    remedy = "; give the service's token (adapters: VLGENRM_TOKEN)" if answer.status_code in (401, 403) else ""
    return f"{url}: {answer.status_code} {answer.reason_phrase}{times}: {_detail(answer)}{remedy}"


def _detail(response: httpx.Response) -> str:
    """Return the reason in a refusal's body, shortened."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:300]
    return str(body.get("detail", body) if isinstance(body, dict) else body)[:300]


def _json(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError as error:
        raise RemoteError(f"{url}: the answer is not JSON") from error
    return body if isinstance(body, dict) else {}


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
