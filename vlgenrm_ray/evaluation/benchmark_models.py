"""Models that benchmarks measure: a judge or policy on an engine, a served judge, or a class of the user.

`BenchmarkModel` is the protocol of all. A pairwise judge implements it as well: its requests have a second response
(`BenchmarkRequest.other`), and its reply's reward is the probability that the first one is better.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refusal, Sampling
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkReply, BenchmarkRequest
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.protocol import PAIRWISE_JUDGE
from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput

if TYPE_CHECKING:
    import PIL.Image

OK = "ok"
"""Status of a reply with a reward or an answer."""
MAX_ANSWER_TOKENS = 256
"""Longest answer of a policy to a benchmark's question, in tokens."""
_DECODER_THREADS = 8
_GREEDY = Sampling(n=1, temperature=0.0, max_tokens=MAX_ANSWER_TOKENS)

Opened = Mapping[str, "PIL.Image.Image | ImageError"]


class BenchmarkModel(Protocol):
    """A judge or a policy that is measured on benchmarks."""

    def reply(self, requests: Sequence[BenchmarkRequest]) -> list[BenchmarkReply]:
        """Reply to a batch of requests.

        Args:
            requests: Requests to reward a response, to compare two, or to answer, according to the model's role.

        Returns:
            One reply per request, in order. A request that fails has a status, never a reward of 0.

        Raises:
            RemoteError: A service cannot be reached.
        """
        ...


class EngineModel:
    """A judge and a policy on one engine, in an actor."""

    def __init__(
        self,
        engine: VllmConfig,
        judge: JudgeConfig,
        limits: ImageLimits,
        build: Callable[[VllmConfig], Generator] = VllmGenerator,
    ) -> None:
        """Start the engine.

        Args:
            engine: vLLM engine, with its model.
            judge: Prompts and sampling of the judge.
            limits: Limits of the images that are opened.
            build: Starts the engine that replaces vLLM.
        """
        self._judge = Judge(judge, build(engine), limits)
        self._limits = limits

    def reply(self, requests: Sequence[BenchmarkRequest]) -> list[BenchmarkReply]:
        """See `BenchmarkModel.reply`. Raises ConfigError for requests that need the other kind of judge."""
        opened = open_images(requests, self._limits)
        pixels = {request.id: _pixels(request, opened) for request in requests}
        readable = [request for request in requests if not isinstance(pixels[request.id], ImageError)]
        replies: dict[str, BenchmarkReply] = {}
        for request in requests:
            if isinstance(error := pixels[request.id], ImageError):
                replies[request.id] = BenchmarkReply(id=request.id, status=error.reason.value)
        to_reward = [request for request in readable if request.response is not None]
        to_answer = [request for request in readable if request.response is None]
        replies |= {reply.id: reply for reply in self._reward(to_reward, pixels)}
        replies |= {reply.id: reply for reply in self._answer(to_answer, pixels)}
        return [replies[request.id] for request in requests]

    def _reward(
        self, requests: Sequence[BenchmarkRequest], pixels: "Mapping[str, tuple[PIL.Image.Image, ...] | ImageError]"
    ) -> list[BenchmarkReply]:
        if any((request.other is not None) is not self._judge.config.is_pairwise for request in requests):
            raise ConfigError(
                "role judge: this judge compares two responses; use the role pairwise_judge"
                if self._judge.config.is_pairwise
                else "role pairwise_judge: this judge rewards single responses; use the role judge"
            )
        inputs = [
            JudgeInput(
                id=r.id,
                images=_usable(pixels[r.id]),
                question=r.question,
                response=r.response or "",
                other=r.other or "",
            )
            for r in requests
        ]
        judgements = self._judge.score(inputs) if inputs else []
        return [BenchmarkReply(id=j.id, status=j.status, reward=j.reward, num_tokens=j.num_tokens) for j in judgements]

    def _answer(
        self, requests: Sequence[BenchmarkRequest], pixels: "Mapping[str, tuple[PIL.Image.Image, ...] | ImageError]"
    ) -> list[BenchmarkReply]:
        prompts = [Prompt(images=_usable(pixels[request.id]), text=request.question) for request in requests]
        outcomes = self._judge.generator.generate(prompts, _GREEDY) if prompts else []
        replies = []
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                replies.append(BenchmarkReply(id=request.id, status=outcome.reason.value))
                continue
            (sample,) = outcome
            replies.append(BenchmarkReply(id=request.id, status=OK, text=sample.text, num_tokens=len(sample.tokens)))
        return replies


class ServedModel:
    """A served judge."""

    def __init__(self, judge: RemoteJudge, limits: ImageLimits) -> None:
        """Wrap a client of the service; `limits` are those of the images that are sent."""
        self._judge = judge
        self._limits = limits

    def reply(self, requests: Sequence[BenchmarkRequest]) -> list[BenchmarkReply]:
        """See `BenchmarkModel.reply`. Raises ConfigError for a request to answer, or of the other kind of judge."""
        if any(request.response is None for request in requests):
            raise ConfigError("a served judge rewards responses and answers no question; use the role judge")
        opened = open_images(requests, self._limits)
        replies: dict[str, BenchmarkReply] = {}
        inputs: dict[str, ScoreInput] = {}
        for request in requests:
            pixels = _pixels(request, opened)
            if isinstance(pixels, ImageError):
                replies[request.id] = BenchmarkReply(id=request.id, status=pixels.reason.value)
                continue
            # A benchmark's question may be about no image; `allow_blind` states that this is meant.
            inputs[request.id] = ScoreInput(
                images=pixels,
                question=request.question,
                response=request.response or "",
                other=request.other,
                allow_blind=not pixels,
            )
        results = self._judge.score(list(inputs.values())) if inputs else []
        if any(result.detail.startswith(PAIRWISE_JUDGE) for result in results):
            raise ConfigError(f"{PAIRWISE_JUDGE}: use the role pairwise_judge")
        for id, result in zip(inputs, results, strict=True):
            replies[id] = BenchmarkReply(id=id, status=result.status.value, reward=result.reward)
        return [replies[request.id] for request in requests]


def timed_reply(model: BenchmarkModel, requests: Sequence[BenchmarkRequest]) -> list[BenchmarkReply]:
    """Return a model's replies, each with its share of the batch's time."""
    begin = time.monotonic()
    replies = model.reply(requests)
    seconds = (time.monotonic() - begin) / max(1, len(requests))
    return [replace(reply, seconds=seconds) for reply in replies]


def open_images(requests: Sequence[BenchmarkRequest], limits: ImageLimits) -> Opened:
    """Open the images of a batch, each once however many requests show it."""
    uris = list(dict.fromkeys(uri for request in requests for uri in request.images))

    def open_one(uri: str) -> "PIL.Image.Image | ImageError":
        try:
            return images.decode(images.fetch(uri, limits), limits, uri)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(_DECODER_THREADS) as threads:
        return dict(zip(uris, threads.map(open_one, uris), strict=True))


def _pixels(request: BenchmarkRequest, opened: Opened) -> "tuple[PIL.Image.Image, ...] | ImageError":
    pixels: list[PIL.Image.Image] = []
    for uri in request.images:
        image = opened[uri]
        if isinstance(image, ImageError):
            return image
        pixels.append(images.blank(image.size) if request.is_blank else image)
    return tuple(pixels)


def _usable(pixels: "tuple[PIL.Image.Image, ...] | ImageError") -> "tuple[PIL.Image.Image, ...]":
    assert not isinstance(pixels, ImageError), "requests with unreadable images are replied to before"
    return pixels
