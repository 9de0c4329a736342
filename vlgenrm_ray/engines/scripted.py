"""A deterministic generator whose texts come from a function or a table, instead of a model.

For tests, and to try a run's data flow without a model. It passes the contract tests of the real generators:
samples per prompt, seeds, the cut at `max_tokens`, refusals, and probabilities of tracked words.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling, Token, cut_at_stop, refuse_extra_images
from vlgenrm_ray.errors import ConfigError, DropReason

Script = Callable[[Prompt, random.Random], str]
"""Text for a prompt. The random source is seeded per sample; unseeded prompts have the fixed seed 0."""

# A word with the blank before it, or one other character: the tokens joined are the text.
_TOKEN = re.compile(r" ?\w+|\W")
END_OF_TURN = 0
"""Id of the token after a text that was not cut."""


class ScriptedGenerator:
    """A deterministic `StreamingGenerator` over a script.

    Tokens are words with the blank before them, and single other characters.
    """

    def __init__(
        self,
        script: Script | Mapping[str, str],
        *,
        confidence: float = 0.9,
        max_chars: int = 20_000,
        max_images: int = 16,
    ) -> None:
        """Create the generator.

        Args:
            script: A function, or a table from a part of the prompt's text to the response (the first match counts).
            confidence: Probability of every written token. A tracked word that is written has this probability, and
                the other tracked words share the rest; at other tokens they have 0.
            max_chars: Prompts with more characters are refused.
            max_images: Prompts with more images are refused.
        """
        self.script = script if callable(script) else _script_from_table(script)
        self.confidence = confidence
        self.max_chars = max_chars
        self.max_images = max_images

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        """Sample, see `contracts.Generator`. Raises ConfigError for several samples at temperature 0."""
        if sampling.n > 1 and sampling.temperature == 0:
            raise ConfigError(f"n = {sampling.n} at temperature 0 would be {sampling.n} times the same text; use n = 1")
        if seeds is None:
            seeds = [(sampling.seed or 0) + i for i in range(len(prompts))]
        return [self._generate_one(p, sampling, s) for p, s in zip(prompts, seeds, strict=True)]

    def generate_stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Sample] | Refusal]]:
        """Sample, see `contracts.StreamingGenerator`. The shortest texts come first."""
        outcomes = list(enumerate(self.generate(prompts, sampling, seeds)))
        return iter(sorted(outcomes, key=lambda placed: 0 if isinstance(placed[1], Refusal) else _length(placed[1])))

    def _generate_one(self, prompt: Prompt, sampling: Sampling, seed: int) -> list[Sample] | Refusal:
        length = len(prompt.text) + len(prompt.prefix)
        if length > self.max_chars:
            return Refusal(reason=DropReason.PROMPT_TOO_LONG, detail=f"{length} characters, limit {self.max_chars}")
        if refused := refuse_extra_images(len(prompt.images), self.max_images):
            return refused
        greedy = sampling.temperature == 0
        return [
            self._sample(prompt, sampling, f"{0 if greedy else seed}/{k}")
            for k in range(sampling.first, sampling.first + sampling.n)
        ]

    def _sample(self, prompt: Prompt, sampling: Sampling, seed: str) -> Sample:
        pieces = _TOKEN.findall(self.script(prompt, random.Random(seed)))
        written = pieces[: sampling.max_tokens]
        tokens = tuple(self._token(piece, sampling.tracked_words) for piece in written)
        # The end of turn is a token too: a text of exactly `max_tokens` tokens was cut before it.
        ended = len(pieces) < sampling.max_tokens
        whole = "".join(written)
        text = cut_at_stop(whole, sampling.stop)
        sample = Sample(
            text=text,
            tokens=tokens,
            finish="stop" if ended or text != whole else "length",
            num_prompt_tokens=len(_TOKEN.findall(prompt.text)),
        )
        if not sampling.logprobs:
            return sample
        ids = tuple(token.id for token in tokens) + ((END_OF_TURN,) if ended else ())
        return replace(sample, ids=ids, logprobs=(math.log(self.confidence),) * len(ids))

    def _token(self, piece: str, watch: tuple[str, ...]) -> Token:
        word = piece.strip().casefold()
        tracked = dict.fromkeys(watch, 0.0)
        if word in {w.casefold() for w in watch}:
            rest = (1.0 - self.confidence) / max(len(watch) - 1, 1)
            tracked = {w: self.confidence if w.casefold() == word else rest for w in watch}
        # Not `hash`, which differs between processes.
        return Token(id=int.from_bytes(piece.encode()[-4:], "big"), text=piece, tracked_probabilities=tracked)


def _length(samples: Sequence[Sample]) -> int:
    return max(len(sample.tokens) for sample in samples)


def _script_from_table(table: Mapping[str, str]) -> Script:
    def script(prompt: Prompt, rng: random.Random) -> str:
        return next((response for part, response in table.items() if part in prompt.text), "")

    return script
