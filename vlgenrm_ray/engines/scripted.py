"""A generator that says what a function or a table tells it to.

For tests, and to try a run's data flow without a model. It keeps the contract of the real one (the same tests hold
both): samples per prompt, seeds, cut at `max_tokens`, refusals, watched words.
"""

import asyncio
import math
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from vlgenrm_ray.engines.contracts import Prompt, Refused, Sample, Sampling, Token, too_many
from vlgenrm_ray.errors import ConfigError, DropReason

Script = Callable[[Prompt, random.Random], str]
"""What to say to a prompt; the random source is seeded per sample (unseeded prompts have a fixed seed, 0)."""

# A word with the blank before it, or one other character: joined, the tokens are the text again.
_TOKEN = re.compile(r" ?\w+|\W")
END_OF_TURN = 0
"""Id of the token after a text that was not cut."""


class ScriptedGenerator:
    """A deterministic `StreamingGenerator` over a script. Tokens are words with the blank before, and single signs."""

    def __init__(
        self,
        script: Script | Mapping[str, str],
        *,
        confidence: float = 0.9,
        max_chars: int = 20_000,
        max_images: int = 16,
    ) -> None:
        """`script`: a function, or a table from a text that the prompt contains to what is then said (first match).

        Every token has probability `confidence` where its log-probability is asked for.
        Where a watched word is written, it has probability `confidence` and the other watched words share the rest
        of it; elsewhere they have 0. Prompts of more than `max_chars` characters or `max_images` images are refused.
        """
        self.script = script if callable(script) else _from_table(script)
        self.confidence = confidence
        self.max_chars = max_chars
        self.max_images = max_images

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refused]:
        """See `contracts.Generator`. Raises ConfigError for several samples at temperature 0."""
        if sampling.n > 1 and sampling.temperature == 0:
            raise ConfigError(f"n = {sampling.n} at temperature 0 would be {sampling.n} times the same text; use n = 1")
        if seeds is None:
            seeds = [(sampling.seed or 0) + i for i in range(len(prompts))]
        return [self._one(p, sampling, s) for p, s in zip(prompts, seeds, strict=True)]

    def as_finished(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Sample] | Refused]]:
        """See `contracts.StreamingGenerator`: the shortest texts come first."""
        outcomes = list(enumerate(self.generate(prompts, sampling, seeds)))
        return iter(sorted(outcomes, key=lambda placed: 0 if isinstance(placed[1], Refused) else _length(placed[1])))

    def _one(self, prompt: Prompt, sampling: Sampling, seed: int) -> list[Sample] | Refused:
        length = len(prompt.text) + len(prompt.prefix)
        if length > self.max_chars:
            return Refused(reason=DropReason.PROMPT_TOO_LONG, detail=f"{length} characters, limit {self.max_chars}")
        if refused := too_many(len(prompt.images), self.max_images):
            return refused
        greedy = sampling.temperature == 0
        return [self._sample(prompt, sampling, f"{0 if greedy else seed}/{k}") for k in range(sampling.n)]

    def _sample(self, prompt: Prompt, sampling: Sampling, seed: str) -> Sample:
        said = self.script(prompt, random.Random(seed))
        pieces = _TOKEN.findall(said)
        kept = pieces[: sampling.max_tokens]
        tokens = tuple(self._token(piece, sampling.watch) for piece in kept)
        # The end of turn is a token as well: a text of just `max_tokens` never came to it.
        ended = len(pieces) < sampling.max_tokens
        sample = Sample(text="".join(kept), tokens=tokens, finish="stop" if ended else "length")
        if not sampling.logprobs:
            return sample
        ids = tuple(token.id for token in tokens) + ((END_OF_TURN,) if ended else ())
        return replace(sample, ids=ids, logprobs=(math.log(self.confidence),) * len(ids))

    def _token(self, piece: str, watch: tuple[str, ...]) -> Token:
        written = piece.strip().casefold()
        watched = dict.fromkeys(watch, 0.0)
        if written in {w.casefold() for w in watch}:
            rest = (1.0 - self.confidence) / max(len(watch) - 1, 1)
            watched = {w: self.confidence if w.casefold() == written else rest for w in watch}
        # Not `hash`, which differs from process to process.
        return Token(id=int.from_bytes(piece.encode()[-4:], "big"), text=piece, watched=watched)


class LiveScripted:
    """A `LiveGenerator` over a `ScriptedGenerator`."""

    def __init__(self, generator: ScriptedGenerator, delay_s: Callable[[Prompt, int], float] | None = None) -> None:
        """`delay_s`: seconds until sample k of a prompt is finished; default none."""
        self.generator = generator
        self.delay_s = delay_s or (lambda prompt, place: 0.0)
        self.num_asked = 0
        self.num_aborted = 0

    async def as_finished(
        self, prompt: Prompt, sampling: Sampling, seed: int
    ) -> AsyncIterator[tuple[int, Sample | Refused]]:
        """See `contracts.LiveGenerator`."""
        self.num_asked += 1
        (outcome,) = self.generator.generate([prompt], sampling, [seed])
        places = sorted(range(sampling.n), key=lambda place: self.delay_s(prompt, place))
        passed = 0.0
        try:
            for place in places:
                delay = self.delay_s(prompt, place)
                await asyncio.sleep(delay - passed)
                passed = delay
                yield place, outcome if isinstance(outcome, Refused) else outcome[place]
        except (asyncio.CancelledError, GeneratorExit):
            self.num_aborted += 1
            raise


def _length(samples: Sequence[Sample]) -> int:
    return max(len(sample.tokens) for sample in samples)


def _from_table(table: Mapping[str, str]) -> Script:
    def script(prompt: Prompt, chance: random.Random) -> str:
        return next((said for part, said in table.items() if part in prompt.text), "")

    return script
