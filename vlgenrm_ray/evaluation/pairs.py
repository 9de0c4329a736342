"""Evaluation stage: reads Preference, writes PairResult. Judges both sides of labelled held-out pairs.

A pairwise judge is shown each pair in both orders; its probability that the chosen response is better is the mean of
both, (p_chosen_first + 1 - p_rejected_first) / 2, hence the pair is ranked right if the first of these is the higher.

A unit is a preference. A share of the pairs is judged a second time with a blank image of the same size, as a baseline
for a judge that ignores the image. Those results have the id `<preference>/no-image`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.evaluation.metrics import (
    Estimate,
    abstention_curve,
    judge_metrics,
    length_baselines,
    order_metrics,
    outcomes_by_id,
    paired_gain,
    reward_arrays,
)
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import Dropped, ImageRef, PairResult, Preference, Side
from vlgenrm_ray.settings import RemovedSetting, Settings, digest

if TYPE_CHECKING:
    import PIL.Image
    import pyarrow as pa

STAGE = "evaluation"
NO_IMAGE = "/no-image"
_DECODER_THREADS = 8
"""Threads that open a batch's images; Pillow decodes without Python's lock."""

EngineFactory = Callable[[VllmConfig], Generator]
"""Starts an engine; called inside the actor that owns it."""


class EvaluationConfig(Settings):
    """Settings of the evaluation on held-out pairs."""

    renamed: ClassVar = {"pool": "actors", "limits": "images"}
    removed: ClassVar = {"no_image": RemovedSetting(True, "set no_image_share: 0 to judge no pair without its image")}

    engine: VllmConfig = VllmConfig()
    """vLLM engine of the judge. The stage sets its model."""
    actors: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors, each with one engine."""
    no_image_share: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of the pairs that are judged without their image as well, as a baseline; 0: none. They are chosen by their
    ids, so they are the same in every round."""
    images: ImageLimits = ImageLimits()
    """Limits of the images that are opened."""


def run(
    config: EvaluationConfig,
    *,
    judge: JudgeConfig,
    model: Path | str,
    source: StageFolder,
    target: StageFolder,
    build: EngineFactory | None = None,
    max_dropped: float = MAX_DROPPED,
) -> Manifest:
    """Judge the pairs on Ray Data. A finished `target` is returned unchanged, a partial one is continued.

    Args:
        config: Settings of the stage.
        judge: Prompts and sampling of the judge.
        model: Model folder of the judge.
        source: Complete stage of labelled preferences.
        target: Folder of this stage.
        build: Starts the engine that replaces vLLM; `model` then need not exist.
        max_dropped: Largest share of pairs that may be dropped because of a fault.

    Returns:
        The stage's manifest, with `pair_metrics` as its metrics.

    Raises:
        StageError: `source` is unfinished, holds no pair, or too many pairs met a fault.
        InputError: The model folder or a prompt cannot be used.
        ConfigError: `target` was made with other settings.
    """
    Judge.check(judge)
    folder = Path(model) if build else model_folder.locate(str(model))
    arguments = (config, judge, str(folder), build or VllmGenerator)
    total = source.complete().rows_out
    if not total:
        raise StageError(f"evaluation: {source.path} holds no pair to judge; give labelled pairs under heldout")
    return flow.run(
        target,
        flow.read_records(source),
        lambda rows: rows.map_batches(
            PairJudgeActor, fn_constructor_args=arguments, **config.actors.map_batches_args()
        ),
        total=total,
        fingerprint=fingerprint(config, judge),
        inputs={"preferences": source.data_hash()} | ({} if build else {"model": model_folder.digest(folder)}),
        metrics=lambda folder, _sums: pair_metrics(
            list(folder.records(PairResult)), source.records(Preference), pairwise=judge.is_pairwise
        ),
        max_dropped=max_dropped,
    )


def fingerprint(config: EvaluationConfig, judge: JudgeConfig) -> str:
    """Hash of everything that decides the judgements; the number of actors does not."""
    # The model itself is an input of the stage, by its content.
    settings = config.model_copy(update={"engine": config.engine.model_copy(update={"model": ""})}).result_settings()
    texts = {name: prompts.load(name) for name in judge.prompt_names()}
    return digest([settings, judge.result_settings(), texts])


class PairJudgeActor:
    """Ray actor with a judge on its own engine: maps a table of Preferences to units of PairResult."""

    def __init__(self, config: EvaluationConfig, judge: JudgeConfig, model: str, build: EngineFactory) -> None:
        engine = config.engine.model_copy(update={"model": model})
        self.config = config
        self.judge = Judge(judge, build(engine), config.images)

    @flow.exit_if_engine_lost
    def __call__(self, rows: "pa.Table") -> "pa.Table":
        share = self.config.no_image_share
        preferences = from_table(Preference, rows)
        return units_table(
            PairResult, judge_pairs(self.judge, preferences, limits=self.config.images, no_image_share=share)
        )


def judge_pairs(
    judge: Judge[Generator], preferences: Sequence[Preference], *, limits: ImageLimits, no_image_share: float = 0.0
) -> list[Unit[PairResult]]:
    """Judge each pair; return one unit per pair, in order. A pair whose image cannot be read is dropped."""
    units: dict[str, Unit[PairResult]] = {}
    to_judge: list[tuple[Preference, str, tuple[PIL.Image.Image, ...]]] = []
    with ThreadPoolExecutor(_DECODER_THREADS) as threads:
        images_of_pairs = list(threads.map(lambda p: open_images(p.question.images, limits), preferences))
    for preference, opened in zip(preferences, images_of_pairs, strict=True):
        if isinstance(opened, ImageError):
            dropped = Dropped(stage=STAGE, id=preference.id, reason=opened.reason, detail=opened.detail)
            units[preference.id] = Unit(id=preference.id, dropped=(dropped,))
            continue
        to_judge.append((preference, "", opened))
        if is_in_share(preference.id, no_image_share):
            to_judge.append((preference, NO_IMAGE, tuple(images.blank(image.size) for image in opened)))
    pairwise = judge.config.is_pairwise
    items = [item for preference, suffix, opened in to_judge for item in _items(preference, suffix, opened, pairwise)]
    judgements = iter(judge.score(items))
    for preference, suffix, _ in to_judge:
        chosen, rejected = next(judgements), next(judgements)
        result = PairResult(
            id=f"{preference.id}{suffix}",
            preference_id=preference.id,
            kind=preference.kind,
            chosen=chosen,
            rejected=rejected,
        )
        unit = units.get(preference.id, Unit(id=preference.id))
        units[preference.id] = Unit(
            id=preference.id,
            records=(*unit.records, result),
            num_tokens=unit.num_tokens + chosen.num_tokens + rejected.num_tokens,
        )
    return [units[preference.id] for preference in preferences]


def open_images(refs: Sequence[ImageRef], limits: ImageLimits) -> "tuple[PIL.Image.Image, ...] | ImageError":
    """Open some images; return the error of the first that cannot be used."""
    try:
        return tuple(images.read(ref, limits) for ref in refs)
    except ImageError as error:
        return error


def _items(
    preference: Preference, suffix: str, opened: "tuple[PIL.Image.Image, ...]", pairwise: bool
) -> Iterator[JudgeInput]:
    for side in Side:
        yield JudgeInput(
            id=f"{preference.id}{suffix}/{side.value}",
            images=opened,
            question=preference.question.text,
            response=preference.response(side),
            other=preference.response(side.other) if pairwise else "",
        )


def is_in_share(id: str, share: float) -> bool:
    """Return True if an id belongs to a share of all ids, by its hash; a larger share contains every smaller one."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") < share * 2**64


def pair_metrics(
    results: Sequence[PairResult], preferences: Iterable[Preference], *, pairwise: bool = False
) -> dict[str, Any]:
    """Compute `judge_metrics` of the results with image, their `abstention` curve and tokens, and the baselines.

    The baselines are `no_image`, `shorter` and `longer`.

    Args:
        results: Results of one evaluation.
        preferences: The evaluated pairs; those without a result (dropped ones) are ignored.
        pairwise: The judge is pairwise; `order_metrics` are added.
    """
    with_image = [r for r in results if not r.id.endswith(NO_IMAGE)]
    without_image = [r for r in results if r.id.endswith(NO_IMAGE)]
    judged_ids = {r.preference_id for r in with_image}
    baselines = length_baselines([p for p in preferences if p.id in judged_ids])
    if without_image:
        baselines["no_image"] = judge_metrics(without_image)
    orders = {"orders": order_metrics(with_image)} if pairwise else {}
    further = {
        "abstention": abstention_curve(*reward_arrays(with_image)),
        "tokens_per_response": _tokens_per_response(with_image),
    }
    return judge_metrics(with_image) | further | orders | {"baselines": baselines}


def _tokens_per_response(results: Sequence[PairResult]) -> float:
    """Return the mean number of generated tokens per judged response: the cost of a reward."""
    num_tokens = sum(result.chosen.num_tokens + result.rejected.num_tokens for result in results)
    return round(num_tokens / max(1, 2 * len(results)), 3)


def accuracy_gain(before: StageFolder, after: StageFolder) -> Estimate:
    """Compute the gain in pairwise accuracy between two evaluations, paired on the pairs that both judged."""
    return paired_gain(*(outcomes_by_id(results_with_image(folder)) for folder in (before, after)))


def results_with_image(folder: StageFolder) -> list[PairResult]:
    """Return the results of an evaluation, without those of blank images."""
    return [r for r in folder.records(PairResult) if not r.id.endswith(NO_IMAGE)]
