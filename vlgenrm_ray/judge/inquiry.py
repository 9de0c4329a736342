"""What a judge asks about an item, and how it reads what comes back; the same however the generator is driven."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from vlgenrm_ray.engines.contracts import Prompt, Refused, Sample, Sampling
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge import prompt
from vlgenrm_ray.judge.verdict import WATCH, Aggregator, Verdict, aggregate, read_direct, read_verdict
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
    """K, critiques per response (or sentence); the `direct` mode needs one look only."""
    unit: Literal["response", "sentence"] = "response"
    """What is judged at a time: a whole response, or each of its sentences, the least of whose rewards counts."""
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
    images: "tuple[PIL.Image.Image | ImageRef, ...]"
    """What is shown, in order: pixels, or where they lie. () asks without an image (the blind baseline)."""
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


class Inquiry:
    """One way of asking: prompts, sampling, seeds and the reading of verdicts, by a configuration."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises InputError if a prompt cannot be read."""
        self.config = config
        direct = config.mode == "direct"
        self._template = prompt.load(config.direct_prompt if direct else config.prompt)
        self.sampling = Sampling(
            n=1 if direct else config.num_critiques,
            temperature=0.0 if direct else config.temperature,
            top_p=config.top_p,
            max_tokens=_LOOK if direct else config.max_tokens,
            watch=WATCH,
        )
        """For critiques."""
        self.reading = Sampling(temperature=0.0, max_tokens=_LOOK, watch=WATCH)
        """For the verdict after a rationale already written."""

    def prompt(self, item: Item, images: "tuple[PIL.Image.Image, ...]", prefix: str = "") -> Prompt:
        """What the generator is asked about an item whose pixels are `images`."""
        template = prompt.load(self.config.hint_prompt) if item.hint else self._template
        text = prompt.render(template, item.question, item.response, item.hint)
        return Prompt(images=images, text=text, prefix=prefix)

    def seed(self, item: Item) -> int:
        """The item's seed: by its id, whatever batch it comes in."""
        return int.from_bytes(hashlib.sha256(f"{self.config.seed}/{item.id}".encode()).digest()[:4], "big")

    def rationale(self, sample: Sample, seed: int) -> Rationale:
        """A critique with its verdict read."""
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
