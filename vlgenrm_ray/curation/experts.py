"""The experts stage: checks every claim of the responses against the images. Reads Response, writes CheckedResponse.

A unit is an image with all responses to all its questions, so that each image is decoded and examined once. Every
expert runs in an actor pool of its own; `experts.pipeline` has the steps.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from vlgenrm_ray.curation.by_image import group_by_image
from vlgenrm_ray.curation.decontamination import BenchmarkImage, BenchmarkIndex, DecontaminationConfig, build_index
from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import from_row, from_table, to_table
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.experts.calibration import load_calibration
from vlgenrm_ray.experts.claims import grammar_fingerprint
from vlgenrm_ray.experts.expert import ExpertConfig, ExpertPipelineConfig, ImageTask
from vlgenrm_ray.experts.pipeline import ExpertPipeline, build_expert, expert_configs
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import CheckedResponse, ClaimKind, Dropped, Response, Truth
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

STAGE = "experts"


class ExpertsConfig(ExpertPipelineConfig):
    """The expert pipeline and the actor pools it runs in."""

    renamed: ClassVar = {"limits": "images", "detectors": "detector_actors", "matchers": "matcher_actors"}
    inherits: ClassVar = {
        "claims.actors": "actors",
        "detector_actors": "actors",
        "second_detector_actors": "actors",
        "matcher_actors": "actors",
        "additional_experts.*.actors": "actors",
    }

    actors: flow.ActorPoolConfig = flow.ActorPoolConfig(num_cpus=0.5, batch_size=32)
    """Actors that run one expert; every expert has a pool of its own."""
    detector_actors: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors that run the detector, where they differ from `actors`."""
    second_detector_actors: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors that run the second detector, where they differ from `actors`."""
    matcher_actors: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors that run the matcher, where they differ from `actors`."""
    images: ImageLimits = ImageLimits()
    """Limits of the images that are opened."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """Benchmarks whose images are dropped."""

    def actor_pools(self) -> tuple[flow.ActorPoolConfig, ...]:
        """Return the actor pool of each of `expert_configs`, in the same order."""
        pools = {
            "llm_claims": self.claims.actors,
            "detector": self.detector_actors,
            "second_detector": self.second_detector_actors,
            "matcher": self.matcher_actors,
            "noise": self.actors,
        }
        return tuple(pools.get(expert.kind, expert.actors) for expert in expert_configs(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResponses:
    """The responses about one image, with the image's task: one row of the stage's stream."""

    id: str
    """The image's sha256."""
    responses: tuple[Response, ...]
    task: ImageTask


def open_image(
    id: str,
    responses: Sequence[Response],
    pipeline: ExpertPipeline,
    limits: ImageLimits,
    benchmarks: BenchmarkIndex | None = None,
) -> ImageResponses:
    """Decode the image of some responses and extract their claims.

    An unusable image, and one of a benchmark, is marked as dropped.
    """
    ref = responses[0].question.image
    try:
        # The experts see one image: of a question about several, no claim can be placed.
        texts = ["" if response.question.more_images else response.text for response in responses]
        questions = [response.question.text for response in responses]
        image = images.read(ref, limits)
        task = pipeline.open_task(id, image, texts, questions)
        if benchmarks is not None:
            others = dict.fromkeys(other for response in responses for other in response.question.more_images)
            shown = (image, *(images.read(other, limits) for other in others))
            if name := next((name for one in shown if (name := benchmarks.find(one, questions))), ""):
                task = task.mark_dropped(DropReason.BENCHMARK_IMAGE, f"the image is {name}")
    except ImageError as error:
        task = ImageTask(id=id, original_width=ref.width, original_height=ref.height)
        task = task.mark_dropped(error.reason, error.detail)
    return ImageResponses(id=id, responses=tuple(responses), task=task)


def examine_images(rows: Sequence[ImageResponses], pipeline: ExpertPipeline) -> list[ImageResponses]:
    """Run the experts of a pipeline on a batch of images."""
    tasks = pipeline.examine([row.task for row in rows])
    return [replace(row, task=task) for row, task in zip(rows, tasks, strict=True)]


def check_responses(row: ImageResponses, pipeline: ExpertPipeline) -> Unit[CheckedResponse]:
    """Check every claim of every response. A response without claims has no findings; it is not dropped."""
    if row.task.drop_reason:
        dropped = (
            Dropped(stage=STAGE, id=response.id, reason=row.task.drop_reason, detail=row.task.detail)
            for response in row.responses
        )
        return Unit(id=row.id, dropped=tuple(dropped))
    report = pipeline.check(row.task)
    records = tuple(
        CheckedResponse(id=response.id, response=response, findings=())
        if response.question.more_images
        else CheckedResponse(
            id=response.id,
            response=response,
            findings=findings,
            detections=report.detections,
            window_scores=report.window_scores,
            nouns_searched_twice=report.nouns_searched_twice,
        )
        for response, findings in zip(row.responses, report.findings, strict=True)
    )
    return Unit(id=row.id, records=records, metric_sums=count_findings(records))


# -- Ray: one operator per step ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Open:
    config: ExpertsConfig
    benchmarks: BenchmarkIndex | None

    def __call__(self, rows: "pa.Table") -> "Iterator[pa.Table]":
        pipeline = ExpertPipeline(self.config)
        for row in rows.to_pylist():
            responses = [from_row(Response, response) for response in row["responses"]]
            # One row a table: decoded images are large.
            yield to_table(
                ImageResponses, [open_image(row["id"], responses, pipeline, self.config.images, self.benchmarks)]
            )


class _Examine:
    """Actor with one expert. Actors of the last expert also drop the pixels."""

    def __init__(self, config: ExpertsConfig, expert: ExpertConfig, is_last: bool) -> None:
        self.pipeline = ExpertPipeline(config, [build_expert(expert, config)])
        self.is_last = is_last

    @flow.exit_if_engine_lost
    def __call__(self, rows: "pa.Table") -> "pa.Table":
        examined = examine_images(from_table(ImageResponses, rows), self.pipeline)
        if self.is_last:
            examined = [replace(row, task=replace(row.task, pixels=b"")) for row in examined]
        return to_table(ImageResponses, examined)


@dataclass(frozen=True)
class _ClaimChecker:
    config: ExpertsConfig

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        pipeline = ExpertPipeline(self.config)
        return units_table(
            CheckedResponse, [check_responses(row, pipeline) for row in from_table(ImageResponses, rows)]
        )


def run(
    config: ExpertsConfig,
    *,
    source: StageFolder,
    target: StageFolder,
    recipe_benchmarks: Mapping[str, Iterable[BenchmarkImage]] | None = None,
    max_dropped: float = MAX_DROPPED,
) -> Manifest:
    """Check the responses of `source` and write the results to `target`.

    Args:
        config: Experts, and the benchmarks whose images are dropped.
        source: Complete stage of responses.
        target: Stage to fill.
        recipe_benchmarks: Images of the recipe's own benchmarks; see `decontamination.build_index`.
        max_dropped: Largest share of images that may be dropped because of a fault.

    Raises:
        InputError: The vocabulary, the calibration or a benchmark cannot be read.
        ConfigError: `target` was made with other settings.
        StageError: `source` is incomplete, rows were lost, or too many met a fault.
    """
    fitted = load_calibration(config.calibration)
    parts = [section.fingerprint() for section in (config, load_vocabulary(config.vocabulary), fitted)]
    benchmarks = build_index(config.decontamination, config.images, recipe_benchmarks)
    parts += [benchmarks.fingerprint()] if benchmarks else []
    rows, total = group_by_image(source)
    experts = expert_configs(config)

    def work(rows: "Dataset") -> "Dataset":
        rows = rows.map_batches(_Open(config, benchmarks), **flow.LIGHT, batch_size=config.detector_actors.batch_size)
        for i, (expert, pool) in enumerate(zip(experts, config.actor_pools(), strict=True)):
            arguments = (config, expert, i == len(experts) - 1)
            rows = rows.map_batches(_Examine, fn_constructor_args=arguments, **pool.map_batches_args())
        return rows.map_batches(_ClaimChecker(config), **flow.LIGHT)

    return flow.run(
        target,
        rows,
        work,
        total=total,
        fingerprint=digest([*parts, grammar_fingerprint()]),
        inputs={"responses": source.data_hash()},
        metrics=lambda _folder, sums: measure_findings(sums),
        max_dropped=max_dropped,
    )


def count_findings(responses: Sequence[CheckedResponse]) -> dict[str, Any]:
    """Count the findings of a unit by claim kind and truth, and its responses without claims."""
    counts: dict[str, Counter[str]] = {}
    for checked in responses:
        for finding in checked.findings:
            counts.setdefault(finding.claim.kind.value, Counter())[finding.truth.value] += 1
    return {"findings": counts, "responses_without_claims": sum(not checked.findings for checked in responses)}


def measure_findings(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the metrics of the stage from the sum of `count_findings` over its units."""
    counts = sums.get("findings", {})
    return {
        "findings": {
            kind.value: {truth.value: counts.get(kind, {}).get(truth, 0) for truth in Truth} for kind in ClaimKind
        },
        "responses_without_claims": sums.get("responses_without_claims", 0),
    }
