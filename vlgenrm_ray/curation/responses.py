"""The responses stage: samples responses to every question. Reads Question, writes Response.

A unit is a question. Each generator runs in an actor pool of its own; several generators follow one another in one
stream. A question that came with a chosen and a rejected response is sent to no generator: those two are its responses.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import arrow_schema, from_row, from_table, to_row
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Dropped, Question, Response
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import PIL.Image
    import pyarrow as pa
    from ray.data import Dataset

STAGE = "responses"
CHOSEN = "imported/chosen"
REJECTED = "imported/rejected"
_DECODER_THREADS = 8
"""Threads that open the images of a batch; Pillow decodes without holding Python's lock."""

GeneratorBuilder = Callable[[VllmConfig], Generator]
"""Starts an engine. Called in the actor that owns it."""


class GeneratorConfig(Settings):
    """One policy model and its sampling parameters."""

    renamed: ClassVar = {"pool": "actors"}

    name: str = Field(min_length=1, pattern=r"^[\w.+-]+$")
    """Recorded as `sampler` in each of its responses."""
    engine: VllmConfig = VllmConfig()
    """vLLM engine of the model."""
    actors: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors, each with one engine."""
    n: int = Field(default=4, ge=1)
    """Responses per question."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy and needs `n: 1`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: probability mass of the tokens to sample from."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest response, in tokens."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the questions it answers, selected by their ids: for a model too expensive for all questions."""

    @model_validator(mode="after")
    def _samples_differ(self) -> "GeneratorConfig":
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"at temperature 0 all {self.n} responses are the same; set n to 1 or raise temperature")
        return self

    def is_assigned(self, question: Question, seed: int) -> bool:
        """Return True if this generator answers a question."""
        return question.chosen is None and hash_fraction(seed, self.name, "share", question.id) < self.share

    def sampling(self) -> Sampling:
        """Return the sampling parameters as an engine takes them."""
        return Sampling(n=self.n, temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


class ResponsesConfig(Settings):
    """The generators that answer the questions."""

    renamed: ClassVar = {"limits": "images"}

    generators: tuple[GeneratorConfig, ...] = Field(min_length=1)
    """Policy models; each adds its responses to every question assigned to it."""
    seed: int | None = None
    """None: the seed of the run."""
    images: ImageLimits = ImageLimits()
    """Limits of the images that are opened."""

    @field_validator("generators")
    @classmethod
    def _names_are_unique(cls, generators: tuple[GeneratorConfig, ...]) -> tuple[GeneratorConfig, ...]:
        names = Counter(g.name for g in generators)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two generators are named '{repeated[0]}'; give each a name of its own")
        return generators


def hash_fraction(*parts: object) -> float:
    """Return a number in [0, 1) that depends only on the parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) / 2**64


def question_seed(seed: int, question_id: str, generator: str) -> int:
    """Return the sampling seed of a question for a generator. It does not depend on the batch."""
    return int(hash_fraction(seed, question_id, generator) * 2**31)


def import_responses(question: Question) -> Unit[Response]:
    """Return the responses that a question came with, as r0 and r1; an empty unit if it came with none."""
    if question.chosen is None or question.rejected is None:
        return Unit(id=question.id)
    records, dropped = [], []
    for i, (text, sampler) in enumerate(((question.chosen, CHOSEN), (question.rejected, REJECTED))):
        id = f"{question.id}/r{i}"
        if text:
            records.append(Response(id=id, question=question, text=text, sampler=sampler))
        else:
            dropped.append(Dropped(stage=STAGE, id=id, reason=DropReason.EMPTY_TEXT, detail=sampler))
    return Unit(id=question.id, records=tuple(records), dropped=tuple(dropped))


def generate_responses(
    questions: Sequence[Question],
    generator: Generator,
    config: GeneratorConfig,
    *,
    first: int,
    seed: int,
    limits: ImageLimits,
) -> list[Unit[Response]]:
    """Sample responses to a batch of questions from one generator.

    Args:
        questions: Questions assigned to the generator.
        generator: Loaded engine.
        config: Sampling parameters.
        first: Number of the first response of each question.
        seed: Seed of the stage.
        limits: Limits of the images.

    Returns:
        One unit per question. Each of the numbers `first`, ..., `first + n - 1` is a response or a drop.
    """
    image_of = _open_images(questions, limits)
    question_images = [_images_of(question, image_of) for question in questions]
    usable = [(q, i) for q, i in zip(questions, question_images, strict=True) if not isinstance(i, ImageError)]
    seeds = {q.id: question_seed(seed, q.id, config.name) for q, _ in usable}
    outputs: dict[str, list[Sample] | Refusal] = {}
    if usable:
        prompts = [Prompt(images=opened, text=q.text) for q, opened in usable]
        generated = generator.generate(prompts, config.sampling(), list(seeds.values()))
        outputs = {q.id: output for (q, _), output in zip(usable, generated, strict=True)}
    units: list[Unit[Response]] = []
    for question, image in zip(questions, question_images, strict=True):
        ids = [f"{question.id}/r{first + i}" for i in range(config.n)]
        output = image if isinstance(image, ImageError) else outputs[question.id]
        if isinstance(output, (ImageError, Refusal)):
            dropped = (Dropped(stage=STAGE, id=id, reason=output.reason, detail=output.detail) for id in ids)
            units.append(Unit(id=question.id, dropped=tuple(dropped)))
        else:
            units.append(_make_unit(question, ids, output, config.name, seeds[question.id]))
    return units


def _open_images(questions: Sequence[Question], limits: ImageLimits) -> "dict[str, PIL.Image.Image | ImageError]":
    """Open each distinct image once. The error of an unreadable image takes its place."""
    refs = {image.sha256: image for q in questions for image in q.images}

    def read(sha256: str) -> "PIL.Image.Image | ImageError":
        try:
            return images.read(refs[sha256], limits)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(_DECODER_THREADS) as threads:
        return dict(zip(refs, threads.map(read, refs), strict=True))


def _images_of(
    question: Question, image_of: "Mapping[str, PIL.Image.Image | ImageError]"
) -> "tuple[PIL.Image.Image, ...] | ImageError":
    """Return the opened images of a question, or the error of the first one that is unreadable."""
    opened: list[PIL.Image.Image] = []
    for index, ref in enumerate(question.images):
        image = image_of[ref.sha256]
        if isinstance(image, ImageError):
            return image.among(index, len(question.images))
        opened.append(image)
    return tuple(opened)


def _make_unit(
    question: Question, ids: Sequence[str], samples: Sequence[Sample], sampler: str, seed: int
) -> Unit[Response]:
    """Turn samples into responses. Empty texts and repeated texts are dropped."""
    records: dict[str, Response] = {}
    dropped = []
    for id, sample in zip(ids, samples, strict=True):
        text = sample.text.strip()
        if not text:
            dropped.append(Dropped(stage=STAGE, id=id, reason=DropReason.EMPTY_TEXT, detail=f"finish: {sample.finish}"))
        elif text in records:
            detail = f"same as {records[text].id}"
            dropped.append(Dropped(stage=STAGE, id=id, reason=DropReason.DUPLICATE_TEXT, detail=detail))
        else:
            records[text] = Response(
                id=id,
                question=question,
                text=text,
                sampler=sampler,
                seed=seed,
                num_tokens=len(sample.tokens),
                finish=sample.finish,
            )
    return Unit(
        id=question.id,
        records=tuple(records.values()),
        dropped=tuple(dropped),
        num_tokens=sum(len(s.tokens) for s in samples),
    )


def merge_units(a: Unit[Response], b: Unit[Response]) -> Unit[Response]:
    """Merge the units of one question from two generators."""
    return Unit(
        id=a.id,
        records=a.records + b.records,
        dropped=a.dropped + b.dropped,
        num_tokens=a.num_tokens + b.num_tokens,
    )


# -- Ray: the stream holds the units so far, with each unit's question in an additional column ------------------------


class _Generate:
    """Actor with one generator: adds its responses to the units of the stream."""

    def __init__(
        self, config: GeneratorConfig, first: int, seed: int, limits: ImageLimits, build: GeneratorBuilder
    ) -> None:
        self.config = config
        self.first = first
        self.seed = seed
        self.limits = limits
        self.generator = build(config.engine)

    @flow.exit_if_engine_lost
    def __call__(self, rows: "pa.Table") -> "pa.Table":
        questions = [from_row(Question, row) for row in rows.column("question").to_pylist()]
        assigned = [q for q in questions if self.config.is_assigned(q, self.seed)]
        generated = {
            unit.id: unit
            for unit in generate_responses(
                assigned, self.generator, self.config, first=self.first, seed=self.seed, limits=self.limits
            )
        }
        units = units_from_table(Response, rows.drop_columns(["question"]))
        units = [merge_units(u, generated[u.id]) if u.id in generated else u for u in units]
        return _add_questions(units, questions)


def _begin(rows: "pa.Table") -> "pa.Table":
    questions = from_table(Question, rows)
    return _add_questions([import_responses(q) for q in questions], questions)


def _add_questions(units: Sequence[Unit[Response]], questions: Sequence[Question]) -> "pa.Table":
    import pyarrow as pa

    column = pa.array([to_row(q) for q in questions], pa.struct(list(arrow_schema(Question))))
    return units_table(Response, units).append_column("question", column)


def _end(rows: "pa.Table") -> "pa.Table":
    units = units_from_table(Response, rows.drop_columns(["question"]))
    units = [u if u.records or u.dropped else _drop_unassigned(u.id) for u in units]
    return units_table(Response, [replace(u, metric_sums=count_responses(u.records)) for u in units])


def _drop_unassigned(id: str) -> Unit[Response]:
    detail = "the question is in no generator's share"
    return Unit(id=id, dropped=(Dropped(stage=STAGE, id=id, reason=DropReason.NO_RESPONSE, detail=detail),))


def _model_digests(config: ResponsesConfig) -> dict[str, str]:
    """Hash the models of the generators. Raises InputError in the driver rather than in an actor."""
    return {f"model {g.name}": model_folder.digest(model_folder.locate(g.engine.model)) for g in config.generators}


def count_responses(responses: Sequence[Response]) -> dict[str, Any]:
    """Count the responses of a unit, those cut at `max_tokens`, and their tokens, by sampler."""
    responses_of, cut, tokens = Counter[str](), Counter[str](), Counter[str]()
    for response in responses:
        responses_of[response.sampler] += 1
        cut[response.sampler] += response.finish == "length"
        tokens[response.sampler] += response.num_tokens
    return {"responses": responses_of, "cut": cut, "tokens": tokens}


def measure_samplers(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Compute responses, the share cut at `max_tokens` and mean tokens by sampler, from sums of `count_responses`."""
    return {
        sampler: {
            "responses": n,
            "cut_share": round(sums["cut"][sampler] / n, 4),
            "mean_tokens": round(sums["tokens"][sampler] / n, 2),
        }
        for sampler, n in sorted(sums.get("responses", {}).items())
    }


def run(
    config: ResponsesConfig,
    *,
    source: StageFolder,
    target: StageFolder,
    seed: int = 0,
    build: GeneratorBuilder | None = None,
    max_dropped: float = MAX_DROPPED,
) -> Manifest:
    """Sample responses to every question of the pool in `source` and write them to `target`.

    Args:
        config: Settings of this stage.
        source: Complete pool stage.
        target: Folder of this stage.
        seed: Seed of the run, used if the configuration has none.
        build: Starts the engine that replaces vLLM.
        max_dropped: Largest share of rows that may be dropped because of a fault.

    Raises:
        InputError: A model folder cannot be used.
        ConfigError: `target` was made with other settings.
        StageError: The pool is incomplete, rows were lost, or too many met a fault.
    """
    seed = seed if config.seed is None else config.seed
    inputs = {"pool": source.data_hash()} | ({} if build else _model_digests(config))

    def work(rows: "Dataset") -> "Dataset":
        rows = rows.map_batches(_begin, **flow.LIGHT)
        first = 0
        for generator in config.generators:
            arguments = (generator, first, seed, config.images, build or VllmGenerator)
            rows = rows.map_batches(_Generate, fn_constructor_args=arguments, **generator.actors.map_batches_args())
            first += generator.n
        return rows.map_batches(_end, **flow.LIGHT)

    return flow.run(
        target,
        flow.read_records(source),
        work,
        total=source.complete().rows_out,
        fingerprint=digest([config.fingerprint(), seed]),
        inputs=inputs,
        max_dropped=max_dropped,
        metrics=lambda _folder, sums: {"samplers": measure_samplers(sums)},
    )
