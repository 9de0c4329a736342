"""Reads Question. Writes Response.

A unit is a question. Each generator answers in a pool of actors of its own; several stand one behind another in the
same stream. A question that came with a chosen and a rejected response is not asked: those two are its responses.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import arrow_schema, from_row, from_table, to_row
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refused, Sample, Sampling
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
_DECODERS = 8
"""Threads that open a batch's images; Pillow decodes outside Python's lock."""

Build = Callable[[VllmConfig], Generator]
"""Starts an engine; called inside the actor that owns it."""


class GeneratorConfig(Settings):
    """One policy model and how it is sampled."""

    name: str = Field(min_length=1, pattern=r"^[\w.+-]+$")
    """Stands as `sampler` in each of its responses."""
    engine: VllmConfig
    pool: flow.ActorPoolConfig = flow.ActorPoolConfig()
    n: int = Field(default=4, ge=1)
    """Responses per question."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    share: float = Field(default=1.0, gt=0, le=1)
    """Part of the questions it is asked, picked by their ids: for a model too costly to ask everything."""

    @model_validator(mode="after")
    def _differ(self) -> "GeneratorConfig":
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"at temperature 0 all {self.n} responses are the same; set n to 1 or raise temperature")
        return self

    def asked(self, question: Question, seed: int) -> bool:
        """Whether this generator gets a question."""
        return question.chosen is None and chance(seed, self.name, "share", question.id) < self.share

    def sampling(self) -> Sampling:
        """The settings as an engine takes them."""
        return Sampling(n=self.n, temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


class ResponsesConfig(Settings):
    """Who answers."""

    generators: tuple[GeneratorConfig, ...] = Field(min_length=1)
    seed: int | None = None
    """None: the run's."""
    limits: ImageLimits = ImageLimits()

    @field_validator("generators")
    @classmethod
    def _named_apart(cls, generators: tuple[GeneratorConfig, ...]) -> tuple[GeneratorConfig, ...]:
        names = Counter(g.name for g in generators)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two generators are named '{twice[0]}'; give each a name of its own")
        return generators


def chance(*parts: object) -> float:
    """A number in [0, 1) that the parts decide, and nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) / 2**64


def seed_of(seed: int, question: str, generator: str) -> int:
    """Sampling seed of one question to one generator: the same in whatever batch it is asked."""
    return int(chance(seed, question, generator) * 2**31)


def imported(question: Question) -> Unit[Response]:
    """The responses that a question came with, as r0 and r1; nothing where it came with none."""
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


def ask(
    questions: Sequence[Question],
    generator: Generator,
    config: GeneratorConfig,
    *,
    first: int,
    seed: int,
    limits: ImageLimits,
) -> list[Unit[Response]]:
    """One generator's responses to each question, numbered from `first`. Every number is a response or a drop."""
    shown = _open(questions, limits)
    pictures = [shown[q.image.sha256] for q in questions]
    able = [(q, p) for q, p in zip(questions, pictures, strict=True) if not isinstance(p, ImageError)]
    seeds = {q.id: seed_of(seed, q.id, config.name) for q, _ in able}
    answers: dict[str, list[Sample] | Refused] = {}
    if able:
        prompts = [Prompt(images=(picture,), text=q.text) for q, picture in able]
        said = generator.generate(prompts, config.sampling(), list(seeds.values()))
        answers = {q.id: answer for (q, _), answer in zip(able, said, strict=True)}
    units: list[Unit[Response]] = []
    for question, picture in zip(questions, pictures, strict=True):
        ids = [f"{question.id}/r{first + i}" for i in range(config.n)]
        answer = picture if isinstance(picture, ImageError) else answers[question.id]
        if isinstance(answer, (ImageError, Refused)):
            lost = [Dropped(stage=STAGE, id=id, reason=answer.reason, detail=answer.detail) for id in ids]
            units.append(Unit(id=question.id, dropped=tuple(lost)))
        else:
            units.append(_settled(question, ids, answer, config.name, seeds[question.id]))
    return units


def _open(questions: Sequence[Question], limits: ImageLimits) -> "dict[str, PIL.Image.Image | ImageError]":
    """Each distinct image once, or why it cannot be read."""
    refs = {q.image.sha256: q.image for q in questions}

    def read(sha256: str) -> "PIL.Image.Image | ImageError":
        try:
            return images.read(refs[sha256], limits)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(_DECODERS) as threads:
        return dict(zip(refs, threads.map(read, refs), strict=True))


def _settled(
    question: Question, ids: Sequence[str], samples: Sequence[Sample], sampler: str, seed: int
) -> Unit[Response]:
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


def merged(before: Unit[Response], more: Unit[Response]) -> Unit[Response]:
    """Two generators' units of one question as one."""
    return Unit(
        id=before.id,
        records=before.records + more.records,
        dropped=before.dropped + more.dropped,
        num_tokens=before.num_tokens + more.num_tokens,
    )


# -- Ray: the stream holds the units so far, each with its question in one more column --------------------------------


class Sampler:
    """One generator in an actor: adds its responses to the units that stream by."""

    def __init__(self, config: GeneratorConfig, first: int, seed: int, limits: ImageLimits, build: Build) -> None:
        self.config = config
        self.first = first
        self.seed = seed
        self.limits = limits
        self.generator = build(config.engine)

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        questions = [from_row(Question, row) for row in rows.column("question").to_pylist()]
        asked = [q for q in questions if self.config.asked(q, self.seed)]
        said = ask(asked, self.generator, self.config, first=self.first, seed=self.seed, limits=self.limits)
        more = {unit.id: unit for unit in said}
        units = units_from_table(Response, rows.drop_columns(["question"]))
        return _with_questions([merged(u, more[u.id]) if u.id in more else u for u in units], questions)


def _begin(rows: "pa.Table") -> "pa.Table":
    questions = from_table(Question, rows)
    return _with_questions([imported(q) for q in questions], questions)


def _with_questions(units: Sequence[Unit[Response]], questions: Sequence[Question]) -> "pa.Table":
    import pyarrow as pa

    column = pa.array([to_row(q) for q in questions], pa.struct(list(arrow_schema(Question))))
    return units_table(Response, units).append_column("question", column)


def _end(rows: "pa.Table") -> "pa.Table":
    units = units_from_table(Response, rows.drop_columns(["question"]))
    return units_table(Response, [u if u.records or u.dropped else _unasked(u.id) for u in units])


def _unasked(id: str) -> Unit[Response]:
    detail = "no generator's share of the questions holds it"
    return Unit(id=id, dropped=(Dropped(stage=STAGE, id=id, reason=DropReason.NO_RESPONSE, detail=detail),))


def _model_digests(config: ResponsesConfig) -> dict[str, str]:
    """Which models answer; raises InputError here rather than in an actor if one cannot be used."""
    return {f"model {g.name}": model_folder.digest(model_folder.locate(g.engine.model)) for g in config.generators}


def figures(folder: StageFolder) -> dict[str, Any]:
    """Per sampler: responses, the share that was cut at `max_tokens`, mean tokens of a response."""
    responses: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    for response in folder.records(Response):
        responses[response.sampler] += 1
        tokens[response.sampler] += response.num_tokens
        cut[response.sampler] += response.finish == "length"
    return {
        sampler: {"responses": n, "cut_share": round(cut[sampler] / n, 4), "mean_tokens": round(tokens[sampler] / n, 2)}
        for sampler, n in sorted(responses.items())
    }


def run(
    config: ResponsesConfig, *, source: StageFolder, target: StageFolder, seed: int = 0, build: Build | None = None
) -> Manifest:
    """Have every question of the pool in `source` answered.

    `seed` is the run's, used if the configuration has none; `build` starts another engine than vLLM.
    Raises StageError while the pool is incomplete, InputError for a model folder that cannot be used, ConfigError if
    `target` was made with other settings.
    """
    seed = seed if config.seed is None else config.seed
    inputs = {"pool": source.data_hash()} | ({} if build else _model_digests(config))

    def work(rows: "Dataset") -> "Dataset":
        rows = rows.map_batches(_begin, **flow.LIGHT)
        first = 0
        for generator in config.generators:
            arguments = (generator, first, seed, config.limits, build or VllmGenerator)
            rows = rows.map_batches(Sampler, fn_constructor_args=arguments, **generator.pool.map_batches_args())
            first += generator.n
        return rows.map_batches(_end, **flow.LIGHT)

    return flow.run(
        target,
        flow.read_records(source, Question),
        work,
        total=source.complete().rows_out,
        fingerprint=digest([config.fingerprint(), seed]),
        inputs=inputs,
        metrics=lambda folder: {"samplers": figures(folder)},
    )
