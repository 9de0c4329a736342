"""The same critiques asked of either server, and the reward read from what each says.

What goes over differs, the work does not: prompt, image, K, seeds, sampling, and the probabilities of the verdict's
words at every position. So both write the same critiques, up to the rounding of differently filled batches.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from vlgenrm_ray.bench.load import Asked
from vlgenrm_ray.bench.servers import NAME
from vlgenrm_ray.bench.work import Piece
from vlgenrm_ray.data import images
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Sample, Token
from vlgenrm_ray.engines.tokens import Vocabulary
from vlgenrm_ray.engines.vllm_requests import IMAGE_TOKENS, spread
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput
from vlgenrm_ray.judge.verdict import TRACKED_WORDS
from vlgenrm_ray.judge.wire import ScoreItem, ScoreRequest, ScoreResponse
from vlgenrm_ray.serving.engine import ScoreTask
from vlgenrm_ray.serving.images import StoredImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a server said of a piece."""

    reward: float | None
    num_critiques: int


class Wire:
    """`POST /v1/score` of the service, one item a request."""

    def __init__(self, judge: JudgeConfig) -> None:
        self.judge = judge

    def request(self, piece: Piece, *, seed: int | None = None) -> Asked:
        """With `seed`, other critiques than without."""
        item = ScoreItem(
            image=images.data_url(piece.image),
            question=piece.question,
            response=piece.response,
            num_critiques=self.judge.num_critiques,
            seed=seed,
        )
        return Asked("/v1/score", ScoreRequest(items=[item]).model_dump_json(exclude_none=True).encode())

    def read(self, reply: bytes) -> Scored:
        """Raises ValueError for what is no reply."""
        (item,) = ScoreResponse.model_validate_json(reply).items
        return Scored(reward=item.reward, num_critiques=len(item.critiques))


class OpenAi:
    """`POST /v1/chat/completions` of `vllm serve`: n = K, and the log-probabilities of the verdict's words."""

    def __init__(self, judge: JudgeConfig, model: str) -> None:
        """Raises InputError for a model folder without a fast tokenizer, or a judge of parts of responses."""
        if judge.unit != "response":
            raise InputError(f"judge.unit: {judge.unit}: vllm serve judges whole responses; to compare, give response")
        folder = model_folder.locate(model)
        self.judge = judge
        self._judge = Judge(judge, None)
        self._vocabulary = Vocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")))
        self._special = {self._vocabulary.text(token) for token in self._vocabulary.special}
        watched = self._vocabulary.ids_of(TRACKED_WORDS)
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._settings = {
            "model": NAME,
            "n": judge.num_critiques,
            "temperature": judge.temperature,
            "top_p": judge.top_p,
            "max_tokens": judge.max_tokens,
            "logprobs": True,
            "logprob_token_ids": sorted({token for forms in watched.values() for token in forms}),
            "logit_bias": {str(configuration[n]): -100 for n in IMAGE_TOKENS if isinstance(configuration.get(n), int)},
        }

    def request(self, piece: Piece) -> Asked:
        """The judge's own prompt, seeded as the service seeds it."""
        stored = StoredImage(hashlib.sha256(piece.image).hexdigest(), piece.image)
        task = ScoreTask(
            images=(stored,), question=piece.question, response=piece.response, config=self.judge, deadline_s=0.0
        )
        item = JudgeInput(id=task.item_id(), images=(), question=piece.question, response=piece.response)
        text = self._vocabulary.neutral(self._judge.prompt(item, ()).text)
        content = [
            {"type": "image_url", "image_url": {"url": images.data_url(piece.image)}},
            {"type": "text", "text": text},
        ]
        body = self._settings | {
            "messages": [{"role": "user", "content": content}],
            "seed": spread(self._judge.seed(item)),
        }
        return Asked("/v1/chat/completions", json.dumps(body).encode())

    def read(self, reply: bytes) -> Scored:
        """By the judge's own reading of verdicts. Raises KeyError for what is no reply."""
        samples = [self._sample(choice) for choice in json.loads(reply)["choices"]]
        critiques = [self._judge.read(sample, id=f"bench/c{k}", seed=0) for k, sample in enumerate(samples)]
        reward = self._judge.judgement("bench", critiques).reward
        return Scored(reward=reward, num_critiques=len(samples))

    def _sample(self, choice: Mapping[str, Any]) -> Sample:
        tokens = tuple(
            Token(id=-1, text=position["token"], watched=_watched(position["top_logprobs"]))
            for position in choice["logprobs"]["content"]
            if position["token"] not in self._special
        )
        return Sample(text=choice["message"]["content"], tokens=tokens, finish=choice["finish_reason"])


def _watched(found: list[Mapping[str, Any]]) -> dict[str, float]:
    return {
        word: math.fsum(
            math.exp(one["logprob"]) for one in found if one["token"].strip().casefold() == word.strip().casefold()
        )
        for word in TRACKED_WORDS
    }
