"""The judge: critiques of a response by a vision-language model, the verdict of each critique, and the reward.

    response -> prompt (`prompts`) -> K samples of an engine -> `Verdict` of each (`verdict`) -> `Judgement`

A pairwise judge (`JudgeConfig.kind`) is shown two responses, and its reward is the probability that the first one is
better. `pairwise.py` swaps their order and combines the two judgements; everything else is common to both kinds.

`Judge.score` runs a batch through a `Generator`, `Judge.score_live` one response through a `LiveGenerator` under a
deadline. Both use the same prompts, seeds, sampling and reading of verdicts, hence give the same rewards.
Seeds follow from the input's id, so a response has the same critiques in every batch.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.engines.contracts import Generator, LiveGenerator, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge import prompts, sentences
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.escaping import is_blank
from vlgenrm_ray.judge.forgery import remove_forgeries
from vlgenrm_ray.judge.thinking import judged_part
from vlgenrm_ray.judge.verdict import (
    Verdict,
    aggregate,
    calibrate_reward,
    is_settled,
    read_direct,
    read_verdict,
    strip_verdict,
)
from vlgenrm_ray.records import ImageRef, JudgeCritique, Judgement, SentenceReward

if TYPE_CHECKING:
    import PIL.Image

_G_co = TypeVar("_G_co", covariant=True)

MIN_MASS = 0.1
"""Smallest p(Yes) + p(No) at which a verdict counts as readable."""
DIRECT_MAX_TOKENS = 2
"""Tokens sampled where the verdict comes first: some tokenizers emit a blank before the word."""
EMPTY_RESPONSE = "the response is empty or blank; a policy that answers nothing has no reward"
"""Detail of the status `empty_text`."""
NO_ANSWER = (
    "the response has no answer after its thinking, or the thinking has no end; let the policy write more, or set "
    "judge.thinking: whole to judge the thinking too"
)
"""Detail of the status `empty_text` of a response that is nothing but thinking."""
FORGERY_ALONE = "the response has nothing but a verdict, critique or prompt in the judge's own form"
"""Detail of the status `forged_critique`."""
FORGERY_REMOVED = "parts of the response in the form of the judge's own critique or prompt were not judged"
"""Detail of a judgement whose response had such parts (see `forgery`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeInput:
    """One response to judge, with its question and images."""

    id: str
    """Determines the seeds and thereby the critiques: the same id gives the same critiques in every batch."""
    images: "tuple[PIL.Image.Image | ImageRef, ...]"
    """Images in order, as pixels or references. Empty: the judge sees no image (the blind baseline)."""
    question: str
    response: str
    other: str = ""
    """Second response, which a pairwise judge is shown as response B, and `response` as response A. "" for a pointwise
    judge."""
    hint: str = ""
    """Right verdict, one of `JudgeConfig.verdict_words`, to state in `JudgeConfig.hint_prompt`; "" for no hint."""
    is_sentence: bool = False
    """The response is a sentence of an answer (`JudgeConfig.unit`), whose thinking is removed already."""


class Judge(Generic[_G_co]):
    """A judge over one engine. Stateless apart from its configuration and the engine.

    `Judge[Generator]` scores batches (`score`, `critique`, `reread`), `Judge[LiveGenerator]` single responses
    concurrently (`score_live`). `prompt`, `seed`, `read` and `judgement` need no engine: `Judge(config, None)`.
    """

    def __init__(self, config: JudgeConfig, generator: _G_co, limits: ImageLimits | None = None) -> None:
        """Load the prompt.

        Args:
            config: Prompts, sampling and aggregation.
            generator: Engine that writes the critiques.
            limits: Bounds for images given by reference.

        Raises:
            InputError: A prompt cannot be read.
        """
        self.config = config
        self.generator = generator
        self.limits = limits or ImageLimits()
        is_score = config.is_discriminative
        direct = config.mode == "direct" or is_score
        self._min_mass = 0.0 if is_score else MIN_MASS
        name = config.verdict_prompt if direct else config.critique_prompt
        self._template = prompts.load(name, pairwise=config.is_pairwise)
        self._read_sample = read_direct if direct else read_verdict
        tracked = config.verdict_words.tracked
        self.sampling = Sampling(
            n=1 if direct else config.num_critiques,
            temperature=0.0 if direct else config.temperature,
            top_p=config.top_p,
            max_tokens=1 if is_score else DIRECT_MAX_TOKENS if direct else config.max_tokens,
            tracked_words=tracked,
            # A score needs no mass: nothing keeps the verdict likely among other tokens in its training.
            only_tracked=is_score,
        )
        """Sampling of critiques."""
        self.num_asked = 0 if is_score else self.sampling.n
        """Most critiques for each response or sentence."""
        self._portions = _portions(self.sampling, config.early_stop)
        self._verdict_sampling = Sampling(temperature=0.0, max_tokens=DIRECT_MAX_TOKENS, tracked_words=tracked)

    @staticmethod
    def check(config: JudgeConfig, *, hint: bool = False) -> None:
        """Load every prompt that `config` names. Called on the driver, before engines start.

        Args:
            config: Settings of the judge.
            hint: Load the prompt for hint-and-strip as well.

        Raises:
            InputError: A prompt cannot be read.
        """
        for name in config.prompt_names(hint=hint):
            prompts.load(name, pairwise=config.is_pairwise)

    # -- batches -----------------------------------------------------------------------------------------------

    def score(self: "Judge[Generator]", inputs: Sequence[JudgeInput]) -> list[Judgement]:
        """Judge a batch of responses.

        Returns:
            One judgement per input, in order. Without a reward, `status` states the reason.
        """
        units = [self._units(item) for item in inputs]
        outcomes = iter(self._critique([unit for several in units for unit in several], self._portions))
        return [
            self._with_note(
                item, self._combine(item.id, several, [self.judgement(unit.id, next(outcomes)) for unit in several])
            )
            for item, several in zip(inputs, units, strict=True)
        ]

    def critique(self: "Judge[Generator]", inputs: Sequence[JudgeInput]) -> list[tuple[JudgeCritique, ...] | Refusal]:
        """Return for each whole input, in order, its K critiques (one in `direct` mode), or a `Refusal`.

        There is no early stop: training selects from all critiques.
        """
        return self._critique(inputs, (self.sampling,))

    def _critique(
        self: "Judge[Generator]", inputs: Sequence[JudgeInput], portions: Sequence[Sampling]
    ) -> list[tuple[JudgeCritique, ...] | Refusal]:
        """Draw the critiques of each input in portions, until its mean is settled."""
        seeds = [self.seed(item) for item in inputs]
        requests = self._prompts(inputs, [""] * len(inputs))
        outcomes: list[tuple[JudgeCritique, ...] | Refusal] = [()] * len(inputs)
        unsettled = list(range(len(inputs)))
        for portion in portions:
            drawn = self._generate([requests[i] for i in unsettled], portion, [seeds[i] for i in unsettled])
            for i, samples in zip(unsettled, drawn, strict=True):
                earlier = outcomes[i]
                if isinstance(samples, Refusal) or isinstance(earlier, Refusal):
                    outcomes[i] = samples if isinstance(samples, Refusal) else earlier
                else:
                    numbered = dict(enumerate(samples, portion.first))
                    outcomes[i] = (*earlier, *self._critiques(inputs[i], numbered))
            unsettled = [i for i in unsettled if not self._is_finished(outcomes[i])]
            if not unsettled:
                break
        return outcomes

    def _is_finished(self, outcome: Sequence[JudgeCritique] | Refusal) -> bool:
        """Return whether no further portion of critiques is needed."""
        return isinstance(outcome, Refusal) or is_settled(outcome, self.config.early_stop)

    def reread(self: "Judge[Generator]", inputs: Sequence[JudgeInput], texts: Sequence[str]) -> list[Verdict | Refusal]:
        """Read the judge's verdict after given critiques, each cut off before its own verdict.

        Args:
            inputs: One input per critique.
            texts: Critiques, written by this or another judge.

        Returns:
            One verdict per critique, in order; unreadable with problem `no marker` if a critique has no verdict.
        """
        prefixes = [strip_verdict(text) for text in texts]
        outcomes = self._generate(
            self._prompts(inputs, [prefix or "" for prefix in prefixes]),
            self._verdict_sampling,
            [self.seed(item) for item in inputs],
        )
        verdicts: list[Verdict | Refusal] = []
        for prefix, outcome in zip(prefixes, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                verdicts.append(outcome)
            elif prefix is None:
                verdicts.append(Verdict(word=None, p_yes=None, mass=0.0, problem="no marker"))
            else:
                verdicts.append(read_direct(outcome[0], min_mass=MIN_MASS, words=self.config.verdict_words))
        return verdicts

    def _generate(
        self: "Judge[Generator]", batch: Sequence[Prompt | Refusal], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample] | Refusal]:
        """Sample the prompts of a batch; refusals in it stay at their places."""
        accepted = [(i, prompt) for i, prompt in enumerate(batch) if isinstance(prompt, Prompt)]
        samples = iter(self.generator.generate([p for _, p in accepted], sampling, [seeds[i] for i, _ in accepted]))
        return [prompt if isinstance(prompt, Refusal) else next(samples) for prompt in batch]

    def _prompts(self, inputs: Sequence[JudgeInput], prefixes: Sequence[str]) -> list[Prompt | Refusal]:
        """Build the prompts of a batch. An image that several inputs share is opened once."""
        refs = {image for item in inputs for image in item.images if isinstance(image, ImageRef)}
        opened = {ref: self._open(ref) for ref in refs}
        batch: list[Prompt | Refusal] = []
        for item, prefix in zip(inputs, prefixes, strict=True):
            if (empty := self.refusal(item)) is not None:
                batch.append(empty)
                continue
            pixels = [opened[image] if isinstance(image, ImageRef) else image for image in item.images]
            refused = next((image for image in pixels if isinstance(image, Refusal)), None)
            readable = tuple(image for image in pixels if not isinstance(image, Refusal))
            batch.append(refused or self.prompt(item, readable, prefix))
        return batch

    def _open(self, ref: ImageRef) -> "PIL.Image.Image | Refusal":
        try:
            return images.read(ref, self.limits)
        except ImageError as error:
            return Refusal(reason=error.reason, detail=error.detail)

    # -- one response, by a deadline ---------------------------------------------------------------------------

    async def score_live(
        self: "Judge[LiveGenerator]",
        item: JudgeInput,
        pixels: "tuple[PIL.Image.Image, ...]",
        *,
        deadline: float | None = None,
    ) -> Judgement:
        """Judge one response with the critiques that are finished by `deadline`.

        Unfinished critiques are aborted at the deadline, and all of them if the caller is cancelled.

        Args:
            item: The response; its `images` are not read.
            pixels: Images in order.
            deadline: Time of the running event loop's clock, in seconds. None: wait for all critiques.

        Returns:
            The judgement. Its status is `timeout` if no critique (or none of some sentence) was finished.

        Raises:
            EngineLostError: The engine is gone.
        """
        units = self._units(item)
        parts = await asyncio.gather(*(self._score_unit(unit, pixels, deadline) for unit in units))
        return self._with_note(item, self._combine(item.id, units, parts))

    async def _score_unit(
        self: "Judge[LiveGenerator]",
        item: JudgeInput,
        pixels: "tuple[PIL.Image.Image, ...]",
        deadline: float | None,
    ) -> Judgement:
        if (empty := self.refusal(item)) is not None:
            return self.judgement(item.id, empty)
        begin = time.monotonic()
        finished: dict[int, Sample] = {}
        refused: Refusal | None = None
        settled = False
        prompt, seed = self.prompt(item, pixels), self.seed(item)
        try:
            async with asyncio.timeout_at(deadline):
                for portion in self._portions:
                    stream = self.generator.generate_stream(prompt, portion, seed)
                    async with aclosing(cast("Any", stream)) as samples:
                        async for place, outcome in samples:
                            if isinstance(outcome, Refusal):
                                refused = outcome
                                break
                            finished[portion.first + place] = outcome
                    settled = self._is_finished(refused or self._critiques(item, finished))
                    if settled:
                        break
        except TimeoutError:
            pass
        engine_s = time.monotonic() - begin
        if refused is None and not finished:
            return Judgement(id=item.id, reward=None, status="timeout", num_asked=self.num_asked, engine_s=engine_s)
        judgement = self.judgement(item.id, refused or self._critiques(item, finished))
        return replace(
            judgement,
            # Cut short by the deadline, not settled: the reply may be completed later.
            num_asked=judgement.num_asked if settled else self.num_asked,
            engine_s=engine_s,
            num_prompt_tokens=max((sample.num_prompt_tokens for sample in finished.values()), default=0),
        )

    # -- shared by both ----------------------------------------------------------------------------------------

    def prompt(self, item: JudgeInput, pixels: "tuple[PIL.Image.Image, ...]", prefix: str = "") -> Prompt:
        """Build the engine's prompt for an input whose images are `pixels`."""
        template = prompts.load(self.config.hint_prompt) if item.hint else self._template
        first = self.judged_response(item)
        if self.config.is_pairwise:
            second = self.judged_response(swap_order(item))
            text = prompts.render_pair(template, item.question, first, second, item.hint)
        else:
            text = prompts.render(template, item.question, first, item.hint)
        return Prompt(images=pixels, text=text, prefix=prefix)

    def judged_response(self, item: JudgeInput) -> str:
        """Return the answer of the response, without parts in the form of the judge's own critique or prompt.

        See `thinking` and `forgery`.
        """
        answer = self._answer(item)
        return remove_forgeries(answer, item.question, self._template, pairwise=self.config.is_pairwise)

    def _answer(self, item: JudgeInput) -> str:
        return item.response if item.is_sentence else judged_part(item.response, self.config.thinking)

    def refusal(self, item: JudgeInput) -> Refusal | None:
        """Return the refusal of a response in which nothing can be judged, else None.

        Without the refusal, the judge would give such a response a reward, and not a low one. A pairwise judge refuses
        a pair if it would refuse either response.
        """
        if not self.config.is_pairwise:
            return self._refuse_response(item)
        for name, shown in (("response A", item), ("response B", swap_order(item))):
            if (refused := self._refuse_response(shown)) is not None:
                return Refusal(reason=refused.reason, detail=f"{name}: {refused.detail}")
        return None

    def _refuse_response(self, item: JudgeInput) -> Refusal | None:
        if is_blank(item.response):
            return Refusal(reason=DropReason.EMPTY_TEXT, detail=EMPTY_RESPONSE)
        if is_blank(self._answer(item)):
            return Refusal(reason=DropReason.EMPTY_TEXT, detail=NO_ANSWER)
        if is_blank(self.judged_response(item)):
            return Refusal(reason=DropReason.FORGED_CRITIQUE, detail=FORGERY_ALONE)
        return None

    def seed(self, item: JudgeInput) -> int:
        """Derive the sampling seed of an input from its id: the same in every batch."""
        return int.from_bytes(hashlib.sha256(f"{self.config.seed}/{item.id}".encode()).digest()[:4], "big")

    def read(self, sample: Sample, *, id: str, seed: int) -> JudgeCritique:
        """Read the verdict of one sample."""
        verdict = self._read_sample(sample, min_mass=self._min_mass, words=self.config.verdict_words)
        return JudgeCritique(
            id=id,
            text=sample.text,
            verdict=verdict.word,
            p_yes=verdict.p_yes,
            verdict_mass=verdict.mass,
            num_tokens=len(sample.tokens),
            seed=seed,
        )

    def judgement(self, id: str, critiques: Sequence[JudgeCritique] | Refusal) -> Judgement:
        """Compute the reward of one input from its critiques. Unreadable critiques abstain.

        Returns:
            A judgement whose reward is None if the engine refused the prompt or no critique is readable.
        """
        if isinstance(critiques, Refusal):
            return Judgement(
                id=id,
                reward=None,
                status=critiques.reason.value,
                num_asked=self.num_asked,
                detail=critiques.detail,
            )
        reward = aggregate(critiques, self.config.aggregator)
        if reward is not None:
            reward = calibrate_reward(reward, self.config.reward_temperature, self.config.reward_bias)
        return Judgement(
            id=id,
            reward=reward,
            status=DropReason.UNREADABLE_VERDICT.value if reward is None else "ok",
            critiques=() if self.config.is_discriminative else tuple(critiques),
            # After an early stop those that were drawn.
            num_asked=min(self.num_asked, len(critiques)) if self.config.early_stop else self.num_asked,
            verdict_mass=sum(c.verdict_mass for c in critiques) / len(critiques),
        )

    def _critiques(self, item: JudgeInput, samples: dict[int, Sample]) -> tuple[JudgeCritique, ...]:
        """Read the samples of an input, given by their index k in 0 ... n - 1."""
        seed = self.seed(item)
        return tuple(self.read(samples[k], id=f"{item.id}/c{k}", seed=seed) for k in sorted(samples))

    def _units(self, item: JudgeInput) -> tuple[JudgeInput, ...]:
        if self.config.unit == "response" or self.refusal(item):
            return (item,)
        return split_sentences(replace(item, response=self.judged_response(item), is_sentence=True))

    def _combine(self, id: str, units: Sequence[JudgeInput], parts: Sequence[Judgement]) -> Judgement:
        """Combine the judgements of an input's units, with the reward of each if they are sentences."""
        judgement = min_over_sentences(id, parts)
        if self.config.unit != "sentence" or judgement.reward is None:
            return judgement
        rewards = zip(units, parts, strict=True)
        sentences = (SentenceReward(text=u.response, reward=p.reward) for u, p in rewards if p.reward is not None)
        return replace(judgement, sentences=tuple(sentences))

    def _with_note(self, item: JudgeInput, judgement: Judgement) -> Judgement:
        """Return the judgement of an input, with a note if parts of its response were not judged."""
        shown = (item, swap_order(item)) if self.config.is_pairwise else (item,)
        if judgement.detail or all(self.judged_response(one) == self._answer(one) for one in shown):
            return judgement
        return replace(judgement, detail=FORGERY_REMOVED)


def swap_order(item: JudgeInput) -> JudgeInput:
    """Return an input of a pairwise judge with its responses in the other order, under the same id."""
    return replace(item, response=item.other, other=item.response)


def _portions(sampling: Sampling, early_stop: float) -> tuple[Sampling, ...]:
    """Split the sampling of K critiques into portions of 2, 2, 4, 8, ...; one portion without early stop."""
    if not early_stop:
        return (sampling,)
    ends = [min(1 << power, sampling.n) for power in range(1, max(sampling.n - 1, 1).bit_length() + 1)]
    starts = [0, *ends[:-1]]
    return tuple(
        replace(sampling, first=start, n=end - start) for start, end in zip(starts, ends, strict=True) if end > start
    )


def split_sentences(item: JudgeInput) -> tuple[JudgeInput, ...]:
    """Split an input into one input per sentence of its response, with ids `<id>/s<number>`.

    Divide and conquer, as in RLAIF-V (arXiv 2405.17220): a judge that fails on a long response can still be right about
    each sentence. A response of one sentence is returned unchanged; more than `sentences.MAX_SENTENCES` are grouped.
    """
    units = sentences.split(item.response)
    if len(units) < 2:
        return (item,)
    return tuple(replace(item, id=f"{item.id}/s{i}", response=unit) for i, unit in enumerate(units))


def min_over_sentences(id: str, parts: Sequence[Judgement]) -> Judgement:
    """Combine the judgements of a response's sentences: the reward is the lowest, r = min_s r_s.

    RLAIF-V counts refused claims instead; the minimum stays in the range of a whole response's reward and does not
    depend on the number of sentences. If a sentence has no reward, neither has the response, with that status.
    """
    if len(parts) == 1:
        return parts[0]
    worst = next((part for part in parts if part.reward is None), None)
    if worst is None:
        worst = min(parts, key=lambda part: part.reward if part.reward is not None else 0.0)
    return Judgement(
        id=id,
        reward=worst.reward,
        status=worst.status,
        critiques=tuple(critique for part in parts for critique in part.critiques),
        num_asked=sum(part.num_asked for part in parts),
        verdict_mass=sum(part.verdict_mass for part in parts) / len(parts),
        engine_s=max(part.engine_s for part in parts),
        num_prompt_tokens=sum(part.num_prompt_tokens for part in parts),
        detail=next((part.detail for part in parts if part.detail), ""),
    )
