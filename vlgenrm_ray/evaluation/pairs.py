"""Reads Preference. Writes PairResult. Judges both sides of held-out pairs whose better side is known.

A unit is a preference. A share of the pairs is judged once more with a blank image of the same size: what a judge
can tell without looking. Those results have the id `<preference>/no-image`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.evaluation.metrics import Estimate, blind, outcomes_by_id, paired_gain, summary
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput
from vlgenrm_ray.records import Dropped, ImageRef, PairResult, Preference, Side
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import PIL.Image
    import pyarrow as pa

STAGE = "evaluation"
NO_IMAGE = "/no-image"
_DECODERS = 8
"""Threads that open a batch's images; Pillow decodes outside Python's lock."""

Build = Callable[[VllmConfig], Generator]
"""Starts an engine; called inside the actor that owns it."""


class EvaluationConfig(Settings):
    """How the held-out pairs are judged."""

    engine: VllmConfig
    pool: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors, each with an engine."""
    no_image: bool = True
    """Judge some pairs without their image as well, for the baseline."""
    no_image_share: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of the pairs that are; chosen by their ids, so they are the same in every round."""
    limits: ImageLimits = ImageLimits()


def judge_pairs(
    judge: Judge[Generator], preferences: Sequence[Preference], *, limits: ImageLimits, no_image_share: float = 0.0
) -> list[Unit[PairResult]]:
    """One unit per pair, in order. A pair whose image cannot be read is dropped; all others get a result."""
    units: dict[str, Unit[PairResult]] = {}
    asked: list[tuple[Preference, str, PIL.Image.Image]] = []
    with ThreadPoolExecutor(_DECODERS) as threads:
        pictures = list(threads.map(lambda p: _open(p.question.image, limits), preferences))
    for preference, image in zip(preferences, pictures, strict=True):
        if isinstance(image, ImageError):
            lost = Dropped(stage=STAGE, id=preference.id, reason=image.reason, detail=image.detail)
            units[preference.id] = Unit(id=preference.id, dropped=(lost,))
            continue
        asked.append((preference, "", image))
        if in_share(preference.id, no_image_share):
            asked.append((preference, NO_IMAGE, images.blank(image.size)))
    items = [item for preference, suffix, image in asked for item in _sides(preference, suffix, image)]
    judged = iter(judge.score(items))
    for preference, suffix, _ in asked:
        chosen, rejected = next(judged), next(judged)
        result = PairResult(id=f"{preference.id}{suffix}", preference=preference, chosen=chosen, rejected=rejected)
        before = units.get(preference.id, Unit(id=preference.id))
        units[preference.id] = Unit(
            id=preference.id,
            records=(*before.records, result),
            num_tokens=before.num_tokens + chosen.num_tokens + rejected.num_tokens,
        )
    return [units[preference.id] for preference in preferences]


def _open(image: ImageRef, limits: ImageLimits) -> "PIL.Image.Image | ImageError":
    try:
        return images.read(image, limits)
    except ImageError as error:
        return error


def _sides(preference: Preference, suffix: str, image: "PIL.Image.Image") -> Iterator[JudgeInput]:
    for side, response in ((Side.CHOSEN, preference.chosen), (Side.REJECTED, preference.rejected)):
        name = f"{preference.id}{suffix}/{side.value}"
        yield JudgeInput(id=name, images=(image,), question=preference.question.text, response=response)


def in_share(id: str, share: float) -> bool:
    """Whether an id belongs to a share of all ids; the same ids in every run, and more of them as it grows."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") < share * 2**64


def figures(results: Sequence[PairResult]) -> dict[str, Any]:
    """`metrics.summary` of the results with image, with the baselines `no_image`, `shorter` and `longer`."""
    seen = [r for r in results if not r.id.endswith(NO_IMAGE)]
    unseen = [r for r in results if r.id.endswith(NO_IMAGE)]
    baselines = blind([r.preference for r in seen])
    if unseen:
        baselines["no_image"] = summary(unseen)
    return summary(seen) | {"baselines": baselines}


def gain(before: StageFolder, after: StageFolder) -> Estimate:
    """How much better one evaluation's judge ranks than another's, paired on the pairs both judged."""
    return paired_gain(*(outcomes_by_id(_with_image(folder)) for folder in (before, after)))


def _with_image(folder: StageFolder) -> list[PairResult]:
    return [r for r in folder.records(PairResult) if not r.id.endswith(NO_IMAGE)]


class PairJudge:
    """A Ray actor with a judge on its own engine: a table of Preferences -> units of PairResult."""

    def __init__(self, config: EvaluationConfig, judge: JudgeConfig, model: str, build: Build) -> None:
        engine = config.engine.model_copy(update={"model": model})
        self.config = config
        self.judge = Judge(judge, build(engine), config.limits)

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        share = self.config.no_image_share if self.config.no_image else 0.0
        preferences = from_table(Preference, rows)
        return units_table(
            PairResult, judge_pairs(self.judge, preferences, limits=self.config.limits, no_image_share=share)
        )


def fingerprint(config: EvaluationConfig, judge: JudgeConfig) -> str:
    """Of what decides the judgements; how many actors make them does not."""
    settings = config.model_dump(mode="json", exclude={"pool": True, "engine": {"model", "threads"}})
    return digest(
        [settings, judge.model_dump(mode="json"), {name: prompts.load(name) for name in judge.prompt_names()}]
    )


def run(
    config: EvaluationConfig,
    *,
    judge: JudgeConfig,
    model: Path | str,
    source: StageFolder,
    target: StageFolder,
    build: Build | None = None,
) -> Manifest:
    """Judge the pairs in `source` with the model in the folder `model`; the figures are the manifest's metrics.

    `build` starts another engine than vLLM, which need not find a model in the folder.
    Raises StageError if `source` is unfinished or holds no pair, InputError for a model folder or a prompt that cannot
    be used, ConfigError if `target` was made with other settings.
    """
    Judge.check(judge)
    folder = Path(model) if build else model_folder.locate(str(model))
    arguments = (config, judge, str(folder), build or VllmGenerator)
    total = source.complete().rows_out
    if not total:
        raise StageError(f"evaluation: {source.path} holds no pair to judge; give labelled pairs under heldout")
    return flow.run(
        target,
        flow.read_records(source, Preference),
        lambda rows: rows.map_batches(PairJudge, fn_constructor_args=arguments, **config.pool.map_batches_args()),
        total=total,
        fingerprint=fingerprint(config, judge),
        inputs={"preferences": source.data_hash()} | ({} if build else {"model": model_folder.digest(folder)}),
        metrics=lambda folder: figures(list(folder.records(PairResult))),
    )
