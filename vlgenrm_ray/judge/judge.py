"""The judge over a local generator: critiques of a response, and its reward."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from vlgenrm_ray import images
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refused, Sample, Sampling
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.images import ImageError, ImageLimits
from vlgenrm_ray.judge import prompt
from vlgenrm_ray.judge.verdict import (
    WATCH,
    Aggregator,
    Verdict,
    aggregate,
    read_direct,
    read_verdict,
    strip_verdict,
)
from vlgenrm_ray.records import ImageRef, Judgement
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image

_LOOK = 2
"""Tokens written where the verdict comes first: some tokenizers put a blank before the word."""


class JudgeConfig(Settings):
    """How a judge asks and reads."""

    mode: Literal["cot", "direct"] = "cot"
    """`cot`: a rationale, then the verdict. `direct`: the verdict at once, deterministic."""
    prompt: str = "cot"
    """Prompt of the `cot` mode: a name in `judge/prompts/`, or a path."""
    direct_prompt: str = "direct"
    """Prompt of the `direct` mode."""
    hint_prompt: str = "cot_hint"
    """Prompt that tells the right verdict, for hint-and-strip."""
    num_critiques: int = Field(default=4, ge=1, le=256)
    """K, critiques per response; the `direct` mode needs one look only."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(default=256, ge=1)
    """Longest critique, in tokens, verdict included."""
    aggregator: Aggregator = "mean"
    min_mass: float = Field(default=0.1, ge=0.0, le=1.0)
    """Least p(Yes) + p(No) at which a verdict counts."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _several_need_chance(self) -> Self:
        if self.mode == "cot" and self.temperature == 0.0 and self.num_critiques > 1:
            raise ValueError(
                f"temperature 0 with num_critiques {self.num_critiques}: all critiques would be the same; "
                "set num_critiques to 1, or temperature above 0"
            )
        return self

    def prompts(self) -> tuple[str, ...]:
        """Every prompt this judge may use."""
        return (self.prompt, self.direct_prompt, self.hint_prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One response to judge."""

    id: str
    """Decides the seeds, hence the critiques: an id is judged alike in whatever batch it comes."""
    image: "PIL.Image.Image | ImageRef | None"
    """Pixels, or where they lie; None asks without an image (the blind baseline)."""
    question: str
    response: str
    hint: str = ""
    """"Yes" or "No" where the judge is to be told the right verdict (`JudgeConfig.hint_prompt`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rationale:
    """One critique as the judge wrote it, with the verdict read after it."""

    text: str
    verdict: Verdict
    num_tokens: int
    seed: int
    """The item's seed; the k-th rationale of an item is the k-th sample of that seed."""


class Judge:
    """Judges responses with a generator. Holds no state but its configuration and its engine."""

    def __init__(self, config: JudgeConfig, generator: Generator, limits: ImageLimits | None = None) -> None:
        """Raises InputError if a prompt cannot be read."""
        self.config = config
        self.generator = generator
        self.limits = limits or ImageLimits()
        self._template = prompt.load(config.prompt if config.mode == "cot" else config.direct_prompt)

    @staticmethod
    def check(config: JudgeConfig) -> None:
        """Raise InputError unless every prompt named can be read: on the driver, before engines start."""
        for name in config.prompts():
            prompt.load(name)

    def score(self, items: Sequence[Item]) -> list[Judgement]:
        """The reward of each item, in order; where there is none, `status` says why."""
        return [
            judgement(item.id, outcome, self.config.aggregator)
            for item, outcome in zip(items, self.critique(items), strict=True)
        ]

    def critique(self, items: Sequence[Item]) -> list[tuple[Rationale, ...] | Refused]:
        """For each item, in order, its K rationales (one in the direct mode), or why there are none."""
        prompts = self._prompts(items, [""] * len(items))
        seeds = [self._seed(item) for item in items]
        direct = self.config.mode == "direct"
        sampling = Sampling(
            n=1 if direct else self.config.num_critiques,
            temperature=0.0 if direct else self.config.temperature,
            top_p=self.config.top_p,
            max_tokens=_LOOK if direct else self.config.max_tokens,
            watch=WATCH,
        )
        outcomes = self._generate(prompts, sampling, seeds)
        return [
            outcome if isinstance(outcome, Refused) else tuple(self._rationale(s, seed) for s in outcome)
            for outcome, seed in zip(outcomes, seeds, strict=True)
        ]

    def reread(self, items: Sequence[Item], texts: Sequence[str]) -> list[Verdict | Refused]:
        """The verdict the judge gives each item after a rationale already written, whose own verdict goes."""
        prefixes = [strip_verdict(text) for text in texts]
        prompts = self._prompts(items, [prefix or "" for prefix in prefixes])
        sampling = Sampling(temperature=0.0, max_tokens=_LOOK, watch=WATCH)
        outcomes = self._generate(prompts, sampling, [self._seed(i) for i in items])
        verdicts: list[Verdict | Refused] = []
        for prefix, outcome in zip(prefixes, outcomes, strict=True):
            if isinstance(outcome, Refused):
                verdicts.append(outcome)
            elif prefix is None:
                verdicts.append(Verdict(word=None, p_yes=None, mass=0.0, problem="no marker"))
            else:
                verdicts.append(read_direct(outcome[0], min_mass=self.config.min_mass))
        return verdicts

    def _generate(
        self, prompts: Sequence[Prompt | Refused], sampling: Sampling, seeds: Sequence[int]
    ) -> list[list[Sample] | Refused]:
        """The generator's outcomes, with the prompts that could not even be made left where they are."""
        asked = [(i, p) for i, p in enumerate(prompts) if isinstance(p, Prompt)]
        outcomes = iter(self.generator.generate([p for _, p in asked], sampling, [seeds[i] for i, _ in asked]))
        return [p if isinstance(p, Refused) else next(outcomes) for p in prompts]

    def _prompts(self, items: Sequence[Item], prefixes: Sequence[str]) -> list[Prompt | Refused]:
        """What the generator is asked; an image that several items share is opened once."""
        refs = {item.image for item in items if isinstance(item.image, ImageRef)}
        opened = {ref: self._open(ref) for ref in refs}
        prompts: list[Prompt | Refused] = []
        for item, prefix in zip(items, prefixes, strict=True):
            image = opened[item.image] if isinstance(item.image, ImageRef) else item.image
            if isinstance(image, Refused):
                prompts.append(image)
                continue
            template = prompt.load(self.config.hint_prompt) if item.hint else self._template
            text = prompt.render(template, item.question, item.response, item.hint)
            prompts.append(Prompt(image=image, text=text, prefix=prefix))
        return prompts

    def _open(self, ref: ImageRef) -> "PIL.Image.Image | Refused":
        try:
            return images.read(ref, self.limits)
        except ImageError as error:
            return Refused(reason=error.reason, detail=error.detail)

    def _seed(self, item: Item) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.config.seed}/{item.id}".encode()).digest()[:4], "big")

    def _rationale(self, sample: Sample, seed: int) -> Rationale:
        read = read_direct if self.config.mode == "direct" else read_verdict
        verdict = read(sample, min_mass=self.config.min_mass)
        return Rationale(text=sample.text, verdict=verdict, num_tokens=len(sample.tokens), seed=seed)


def judgement(item_id: str, outcome: Sequence[Rationale] | Refused, aggregator: Aggregator) -> Judgement:
    """The reward of one item. Rationales that cannot be read abstain; where none can, there is no reward."""
    if isinstance(outcome, Refused):
        return Judgement(id=item_id, reward=None, status=outcome.reason.value, num_critiques=0, verdict_mass=0.0)
    verdicts = [r.verdict for r in outcome]
    reward = aggregate(verdicts, aggregator)
    return Judgement(
        id=item_id,
        reward=reward,
        status=DropReason.UNREADABLE_VERDICT.value if reward is None else "ok",
        num_critiques=len(outcome),
        verdict_mass=sum(v.mass for v in verdicts) / len(verdicts),
        critiques=tuple(r.text for r in outcome),
        p_yes=tuple(v.p_yes for v in verdicts if v.p_yes is not None),
    )
