"""Requests for the same critiques to either server, and the reward computed from each server's reply.

Both servers get the same prompt, image, number of critiques K, seeds and sampling, and return the probabilities of the
verdict's words at every position. So both generate the same critiques, except for rounding in batches that are filled
differently.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from vlgenrm_ray.bench.items import BenchItem
from vlgenrm_ray.bench.load import PostRequest
from vlgenrm_ray.bench.servers import SERVED_MODEL_NAME
from vlgenrm_ray.data import images
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Sample, Token
from vlgenrm_ray.engines.tokens import TokenVocabulary
from vlgenrm_ray.engines.vllm_requests import IMAGE_TOKENS, mix_seed
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.verdict import TRACKED_WORDS
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, ScoreResponse
from vlgenrm_ray.serving.engine import ScoreTask
from vlgenrm_ray.serving.images import StoredImage


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardReading:
    """Reward of one item as read from a server's reply."""

    reward: float | None
    num_critiques: int


class ServiceClient:
    """Requests and replies of the judge's service: `POST /v1/score`, one item per request."""

    def __init__(self, judge: JudgeConfig) -> None:
        self.judge = judge

    def build_request(self, item: BenchItem, *, seed: int | None = None) -> PostRequest:
        """Build the request for an item; a `seed` gives other critiques than the default."""
        score_item = ScoreItem(
            image=images.data_url(item.image),
            question=item.question,
            response=item.response,
            num_critiques=self.judge.num_critiques,
            seed=seed,
        )
        return PostRequest("/v1/score", ScoreRequest(items=[score_item]).model_dump_json(exclude_none=True).encode())

    def parse_reply(self, reply: bytes) -> RewardReading:
        """Parse a reply. Raises ValueError if it is malformed."""
        (item,) = ScoreResponse.model_validate_json(reply).items
        return RewardReading(reward=item.reward, num_critiques=len(item.critiques))


class VllmServeClient:
    """Requests and replies of `vllm serve`: `POST /v1/chat/completions` with n = K and log-probabilities."""

    def __init__(self, judge: JudgeConfig, model: str) -> None:
        """Load the model's tokenizer.

        Raises:
            InputError: The model folder has no fast tokenizer, or the judge scores parts of responses.
        """
        if judge.unit != "response":
            raise InputError(f"judge.unit: {judge.unit}: vllm serve judges whole responses; to compare, give response")
        folder = model_folder.locate(model)
        self.judge = judge
        self._judge = Judge(judge, None)
        self._vocabulary = TokenVocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")))
        self._special = {self._vocabulary.text(token) for token in self._vocabulary.special}
        tracked_ids = self._vocabulary.token_ids(TRACKED_WORDS)
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._settings = {
            "model": SERVED_MODEL_NAME,
            "n": judge.num_critiques,
            "temperature": judge.temperature,
            "top_p": judge.top_p,
            "max_tokens": judge.max_tokens,
            "logprobs": True,
            "logprob_token_ids": sorted({token for ids in tracked_ids.values() for token in ids}),
            "logit_bias": {str(configuration[n]): -100 for n in IMAGE_TOKENS if isinstance(configuration.get(n), int)},
        }

    def build_request(self, item: BenchItem) -> PostRequest:
        """Build the request for an item, with the judge's prompt and the seed that the service would use."""
        stored = StoredImage(hashlib.sha256(item.image).hexdigest(), item.image)
        task = ScoreTask(
            images=(stored,), question=item.question, response=item.response, config=self.judge, deadline_s=0.0
        )
        judge_input = JudgeInput(id=task.item_id(), images=(), question=item.question, response=item.response)
        text = self._vocabulary.escape_special_tokens(self._judge.prompt(judge_input, ()).text)
        content = [
            {"type": "image_url", "image_url": {"url": images.data_url(item.image)}},
            {"type": "text", "text": text},
        ]
        body = self._settings | {
            "messages": [{"role": "user", "content": content}],
            "seed": mix_seed(self._judge.seed(judge_input)),
        }
        return PostRequest("/v1/chat/completions", json.dumps(body).encode())

    def parse_reply(self, reply: bytes) -> RewardReading:
        """Compute the reward of a reply as the judge does. Raises KeyError if the reply is malformed."""
        samples = [self._sample(choice) for choice in json.loads(reply)["choices"]]
        critiques = [self._judge.read(sample, id=f"bench/c{k}", seed=0) for k, sample in enumerate(samples)]
        reward = self._judge.judgement("bench", critiques).reward
        return RewardReading(reward=reward, num_critiques=len(samples))

    def _sample(self, choice: Mapping[str, Any]) -> Sample:
        tokens = tuple(
            Token(id=-1, text=position["token"], tracked_probabilities=_word_probabilities(position["top_logprobs"]))
            for position in choice["logprobs"]["content"]
            if position["token"] not in self._special
        )
        return Sample(text=choice["message"]["content"], tokens=tokens, finish=choice["finish_reason"])


def _word_probabilities(top_logprobs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum the probabilities of each tracked word over its token forms."""
    return {
        word: math.fsum(
            math.exp(entry["logprob"])
            for entry in top_logprobs
            if entry["token"].strip().casefold() == word.strip().casefold()
        )
        for word in TRACKED_WORDS
    }
