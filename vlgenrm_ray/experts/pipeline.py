"""`ExpertPipeline`: extracts the claims of texts about an image and checks each claim against the image.

    open_task -> examine (detector, matcher, additional experts) -> check

The result of a check is a `Finding`: supported, contradicted or unknown. The service runs all steps in one process, by
`report`. The experts stage (`curation.experts`) distributes them: each expert has its own actor pool, whose pipelines
hold this expert only; tasks are opened and checked by pipelines without experts.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlgenrm_ray import plugins
from vlgenrm_ray.data.pixels import to_rgb
from vlgenrm_ray.errors import ConfigError, DropReason
from vlgenrm_ray.experts.checking import check_claim
from vlgenrm_ray.experts.claims import VocabularyExtractor, claim_key
from vlgenrm_ray.experts.detector import phrases_of
from vlgenrm_ray.experts.expert import (
    BUILTIN_EXPERTS,
    EXPERTS,
    Expert,
    ExpertConfig,
    ExpertPipelineConfig,
    ImageTask,
)
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import Claim, Detection, Finding, Truth, WindowScore

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertReport:
    """The experts' result on one image. Boxes are in pixels of the original image."""

    width: int
    height: int
    detections: tuple[Detection, ...]
    window_scores: tuple[WindowScore, ...]
    nouns_searched_twice: tuple[str, ...]
    findings: tuple[tuple[Finding, ...], ...]
    """For each text a finding on each of its claims, in the text's order."""


class ExpertPipeline:
    """Runs experts on images and checks the claims of texts against their evidence."""

    def __init__(self, config: ExpertPipelineConfig, experts: Sequence[Expert] = ()) -> None:
        """Combine loaded experts with the vocabulary of `config`.

        Raises:
            InputError: The vocabulary or the calibration cannot be read.
        """
        self.config = config
        self.vocabulary = load_vocabulary(config.vocabulary)
        self.experts = tuple(experts)
        self._thresholds = config.fitted_thresholds()
        self._extractor = VocabularyExtractor(self.vocabulary)

    @classmethod
    def build(cls, config: ExpertPipelineConfig) -> "ExpertPipeline":
        """Load every expert of `config` into this process.

        Raises:
            InputError: A model or the vocabulary cannot be read.
            ConfigError: An import path cannot be imported.
        """
        return cls(config, [build_expert(expert, config) for expert in expert_configs(config)])

    def report(
        self,
        image: "PIL.Image.Image",
        texts: Sequence[str],
        questions: Sequence[str] = (),
        check_time: Callable[[], None] = lambda: None,
    ) -> ExpertReport:
        """Examine one image and check every claim of every text.

        Args:
            image: Image of any size and mode.
            texts: Texts about it.
            questions: The question that each text answers; () if they answer none.
            check_time: Called before every text and every expert; ends the work by an exception.

        Raises:
            Exception: The error of an expert that fails, or of `check_time`.
        """
        task = self.open_task("image", image, texts, questions, check_time)
        for expert in self.experts:
            check_time()
            (task,) = expert.examine([task])
        check_time()
        return self.check(task)

    def open_task(
        self,
        id: str,
        image: "PIL.Image.Image",
        texts: Sequence[str],
        questions: Sequence[str] = (),
        check_time: Callable[[], None] = lambda: None,
    ) -> ImageTask:
        """Extract the claims of texts and scale the image down to `config.max_side`.

        Args:
            id: Id of the task.
            image: Image of any size and mode.
            texts: Texts about it.
            questions: The question that each text answers; () if they answer none.
            check_time: See `report`.
        """
        answered = questions or [""] * len(texts)
        extracted = []
        for text, question in zip(texts, answered, strict=True):
            check_time()
            extracted.append(self._extractor.extract(text, question))
        claims = tuple(extracted)
        original = to_rgb(image)
        # `thumbnail` changes the image it is called on.
        pixels = original.copy()
        pixels.thumbnail((self.config.max_side, self.config.max_side))
        return ImageTask(
            id=id,
            original_width=original.width,
            original_height=original.height,
            width=pixels.width,
            height=pixels.height,
            pixels=pixels.tobytes(),
            texts=tuple(texts),
            questions=tuple(questions),
            claims=claims,
            phrases=phrases_of(claim for of_text in claims for claim in of_text),
        )

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Run the experts on a batch. An image that an expert fails on is dropped; the others are not affected.

        Raises:
            Exception: The expert's own error, if it fails on each of several images: then the expert is broken.
        """
        for expert in self.experts:
            tasks = _examine_isolated(expert, tasks)
        return list(tasks)

    def check(self, task: ImageTask) -> ExpertReport:
        """Check every claim of a task against the evidence it has collected."""
        evidence = task.evidence()
        further = {claim_key(f.claim): f for f in reversed(task.findings) if f.truth is not Truth.UNKNOWN}

        def find(claim: Claim) -> Finding:
            finding = check_claim(claim, evidence, self.vocabulary, self._thresholds)
            if finding.truth is Truth.UNKNOWN and not claim.hedged and claim_key(claim) in further:
                return replace(further[claim_key(claim)], claim=claim)
            return finding

        return ExpertReport(
            width=task.original_width,
            height=task.original_height,
            detections=task.detections,
            window_scores=task.window_scores,
            nouns_searched_twice=task.nouns_searched_twice,
            findings=tuple(tuple(find(claim) for claim in of_text) for of_text in task.claims),
        )


def expert_configs(config: ExpertPipelineConfig) -> tuple[ExpertConfig, ...]:
    """Return every expert of a pipeline in the order in which they run."""
    llm = config.claims if config.claims.extractor == "llm" else None
    sections = {
        "llm_claims": llm,
        "detector": config.detector,
        "second_detector": config.second_detector,
        "matcher": config.matcher,
        "noise": config.noise,
    }
    builtin = tuple(ExpertConfig(kind=kind) for kind in BUILTIN_EXPERTS if sections[kind] is not None)
    return builtin + config.additional_experts


def build_expert(expert: ExpertConfig, config: ExpertPipelineConfig) -> Expert:
    """Load one expert into this process. Raises the same errors as `ExpertPipeline.build`."""
    create = plugins.load(expert.kind, EXPERTS, "experts.additional_experts.kind")
    try:
        inspect.signature(create).bind(config, **expert.options)
    except TypeError as error:
        raise ConfigError(f"experts.additional_experts: options of {expert.kind!r}: {error}") from error
    built: Expert = create(config, **expert.options)
    return built


def _examine_isolated(expert: Expert, tasks: Sequence[ImageTask]) -> list[ImageTask]:
    usable = [task for task in tasks if not task.drop_reason]
    try:
        examined = expert.examine(usable) if usable else []
    except Exception:
        examined = []
        for task in usable:
            try:
                examined += expert.examine([task])
            # An engine may raise anything on one image; the error is recorded with the image.
            except Exception as error:
                examined.append(task.mark_dropped(DropReason.ENGINE_ERROR, f"{type(error).__name__}: {error}"))
        if len(usable) > 1 and all(task.drop_reason for task in examined):
            raise
    results = {task.id: task for task in examined}
    return [results.get(task.id, task) for task in tasks]
