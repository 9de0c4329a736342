"""The judge over a local generator: critiques of a response, and its reward."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refused, Sample, Sampling
from vlgenrm_ray.judge import prompt
from vlgenrm_ray.judge.inquiry import Inquiry, Item, JudgeConfig, Rationale, judgement
from vlgenrm_ray.judge.parts import least, parts
from vlgenrm_ray.judge.verdict import Verdict, read_direct, strip_verdict
from vlgenrm_ray.records import ImageRef, Judgement

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Item", "Judge", "JudgeConfig", "Rationale", "judgement"]


class Judge:
    """Judges responses with a generator. Holds no state but its configuration and its engine."""

    def __init__(self, config: JudgeConfig, generator: Generator, limits: ImageLimits | None = None) -> None:
        """Raises InputError if a prompt cannot be read."""
        self.config = config
        self.generator = generator
        self.limits = limits or ImageLimits()
        self.inquiry = Inquiry(config)

    @staticmethod
    def check(config: JudgeConfig) -> None:
        """Raise InputError unless every prompt named can be read: on the driver, before engines start."""
        for name in config.prompts():
            prompt.load(name)

    def score(self, items: Sequence[Item]) -> list[Judgement]:
        """The reward of each item, in order; where there is none, `status` says why."""
        return [judged for judged, _ in self.measured(items)]

    def measured(self, items: Sequence[Item]) -> list[tuple[Judgement, int]]:
        """`score`, with the number of tokens written for each item."""
        taken = [parts(item, self.config.unit) for item in items]
        outcomes = iter(self.critique([part for several in taken for part in several]))
        found = []
        for item, several in zip(items, taken, strict=True):
            written = [next(outcomes) for _ in several]
            judged = [
                judgement(part.id, outcome, self.config.aggregator)
                for part, outcome in zip(several, written, strict=True)
            ]
            tokens = sum(r.num_tokens for outcome in written if not isinstance(outcome, Refused) for r in outcome)
            found.append((least(item.id, judged), tokens))
        return found

    def critique(self, items: Sequence[Item]) -> list[tuple[Rationale, ...] | Refused]:
        """For each item, in order, its K rationales (one in the direct mode), or why there are none."""
        prompts = self._prompts(items, [""] * len(items))
        seeds = [self.inquiry.seed(item) for item in items]
        outcomes = self._generate(prompts, self.inquiry.sampling, seeds)
        return [
            outcome if isinstance(outcome, Refused) else tuple(self.inquiry.rationale(s, seed) for s in outcome)
            for outcome, seed in zip(outcomes, seeds, strict=True)
        ]

    def reread(self, items: Sequence[Item], texts: Sequence[str]) -> list[Verdict | Refused]:
        """The verdict the judge gives each item after a rationale already written, whose own verdict goes."""
        prefixes = [strip_verdict(text) for text in texts]
        prompts = self._prompts(items, [prefix or "" for prefix in prefixes])
        outcomes = self._generate(prompts, self.inquiry.reading, [self.inquiry.seed(i) for i in items])
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
        refs = {image for item in items for image in item.images if isinstance(image, ImageRef)}
        opened = {ref: self._open(ref) for ref in refs}
        prompts: list[Prompt | Refused] = []
        for item, prefix in zip(items, prefixes, strict=True):
            found = [opened[image] if isinstance(image, ImageRef) else image for image in item.images]
            refused = next((image for image in found if isinstance(image, Refused)), None)
            shown = tuple(image for image in found if not isinstance(image, Refused))
            prompts.append(refused or self.inquiry.prompt(item, shown, prefix))
        return prompts

    def _open(self, ref: ImageRef) -> "PIL.Image.Image | Refused":
        try:
            return images.read(ref, self.limits)
        except ImageError as error:
            return Refused(reason=error.reason, detail=error.detail)
