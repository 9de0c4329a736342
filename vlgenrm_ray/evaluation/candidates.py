"""Sampling of candidates for best-of-N: reads questions, writes all samples of a policy as Response, equal ones too.

The responses stage keeps distinct texts only; a curve over n needs the samples as they were drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import from_table, to_table
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.evaluation.pairs import EngineFactory, open_images
from vlgenrm_ray.records import Dropped, Question, Response
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "candidates"


def sample(
    questions: Sequence[Question],
    engine: VllmConfig,
    sampling: Sampling,
    *,
    actors: flow.ActorPoolConfig,
    limits: ImageLimits,
    target: StageFolder,
    seed: int = 0,
    build: EngineFactory | None = None,
) -> Manifest:
    """Sample `sampling.n` candidates for each question on Ray Data. A partial `target` is continued.

    Args:
        questions: Questions, whose images all nodes can open.
        engine: vLLM engine of the policy, with its model.
        sampling: Number of candidates, temperature and length.
        actors: Actors, each with one engine.
        limits: Limits of the images that are opened.
        target: Folder of the candidates.
        seed: Seed of the samples.
        build: Starts the engine that replaces vLLM.

    Raises:
        InputError: The model folder cannot be used.
        ConfigError: `target` was made with other settings.
    """
    import ray.data

    model = Path(engine.model) if build else model_folder.locate(engine.model)
    arguments = (engine, sampling, limits, seed, build or VllmGenerator)
    table = to_table(Question, questions)
    own_settings = engine.model_copy(update={"model": ""}).result_settings()
    return flow.run(
        target,
        ray.data.from_arrow(table),
        lambda rows: rows.map_batches(CandidateActor, fn_constructor_args=arguments, **actors.map_batches_args()),
        total=len(questions),
        fingerprint=digest([own_settings, sampling.n, sampling.temperature, sampling.top_p, sampling.max_tokens, seed]),
        inputs={"questions": digest([q.id for q in questions])}
        | ({} if build else {"model": model_folder.digest(model)}),
    )


class CandidateActor:
    """Ray actor that samples candidates on its own engine: maps a table of Questions to units of Response."""

    def __init__(
        self, engine: VllmConfig, sampling: Sampling, limits: ImageLimits, seed: int, build: EngineFactory
    ) -> None:
        self._generator = build(engine)
        self._sampling = sampling
        self._limits = limits
        self._seed = seed

    @flow.exit_if_engine_lost
    def __call__(self, rows: "pa.Table") -> "pa.Table":
        questions = from_table(Question, rows)
        opened = {question.id: open_images(question.images, self._limits) for question in questions}
        prompts = {
            q.id: Prompt(images=of_question, text=q.text)
            for q in questions
            if not isinstance(of_question := opened[q.id], ImageError)
        }
        seeds = {id: int(digest([self._seed, id])[:8], 16) for id in prompts}
        outcomes = self._generator.generate(list(prompts.values()), self._sampling, list(seeds.values()))
        failures = {id: error for id, error in opened.items() if isinstance(error, ImageError)}
        results = dict(zip(prompts, outcomes, strict=True)) | failures
        return units_table(Response, [_unit(q, results[q.id], seeds.get(q.id, 0)) for q in questions])


def _unit(question: Question, outcome: Sequence[Sample] | Refusal | ImageError, seed: int) -> Unit[Response]:
    if isinstance(outcome, (Refusal, ImageError)):
        dropped = Dropped(stage=STAGE, id=question.id, reason=outcome.reason, detail=outcome.detail)
        return Unit(id=question.id, dropped=(dropped,))
    return Unit(
        id=question.id,
        records=tuple(
            Response(
                id=f"{question.id}/r{k}",
                question=question,
                text=sample.text,
                sampler="policy",
                seed=seed,
                num_tokens=len(sample.tokens),
                finish=sample.finish,
            )
            for k, sample in enumerate(outcome)
        ),
        num_tokens=sum(len(sample.tokens) for sample in outcome),
    )
