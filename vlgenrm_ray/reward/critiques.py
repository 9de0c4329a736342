"""Reads Preference. Writes Critique: K of each side, from the current GenRM.

A critique whose verdict cannot be read is kept, with verdict None: it abstains. Where the engine refuses a side, the
preference is dropped, for a margin needs both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator, Refused
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator, versions
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput
from vlgenrm_ray.judge.verdict import NO, YES
from vlgenrm_ray.records import Critique, Dropped, JudgeCritique, Preference, Side
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "critiques"
Build = Callable[[VllmConfig], Generator]
"""Starts an engine; called inside the actor that owns it."""

_RIGHT = {Side.CHOSEN: YES, Side.REJECTED: NO}


class CritiquesConfig(Settings):
    """How critiques are written. How the judge is asked is the run's, the model the round's: both come with `run`."""

    num_critiques: int | None = Field(default=None, ge=1, le=256)
    """K of each side here; None: the judge's. The more there are to choose from, the more selection keeps, and a reward
    is asked for more often than a judge is trained."""
    hint: bool = False
    """Hint-and-strip (STaR, arXiv 2203.14465): a side none of whose critiques is right gets K more, written by a
    judge that was told the verdict, and read by one that was not."""
    engine: VllmConfig = VllmConfig()
    limits: ImageLimits = ImageLimits()
    pool: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors, each with an engine."""


def run(
    config: CritiquesConfig,
    *,
    judge: JudgeConfig,
    model: Path | str,
    round: int,
    source: StageFolder,
    target: StageFolder,
    build: Build | None = None,
) -> Manifest:
    """Critique every preference of `source` with the GenRM in folder `model`. Needs a running Ray.

    `build` starts another engine than vLLM, which need not find a model in the folder.
    Raises InputError for a model folder or a prompt that cannot be used, before any actor starts; StageError if
    `source` is unfinished; ConfigError if `target` was made with other settings.
    """
    if config.num_critiques:
        judge = judge.model_copy(update={"num_critiques": config.num_critiques})
    Judge.check(judge)
    folder = Path(model) if build else model_folder.locate(str(model))
    engine = config.engine.model_copy(update={"model": str(folder)})
    actor = {"config": config.model_copy(update={"engine": engine}), "judge": judge, "round": round}
    return flow.run(
        target,
        flow.read_records(source, Preference),
        lambda rows: rows.map_batches(
            CritiqueActor,
            fn_constructor_kwargs=actor | {"build": build or VllmGenerator},
            **config.pool.map_batches_args(),
        ),
        total=source.complete().rows_out,
        fingerprint=fingerprint(config, judge, round),
        inputs={"preferences": source.data_hash()} | ({} if build else {"model": model_folder.digest(folder)}),
        metrics=metrics,
    )


def fingerprint(config: CritiquesConfig, judge: JudgeConfig, round: int) -> str:
    """Of what decides which critiques are written; how many actors write them does not."""
    settings = config.model_dump(mode="json", exclude={"pool": True, "engine": {"model", "threads"}})
    texts = {name: prompts.load(name) for name in judge.prompt_names()}
    return digest([settings, judge.model_dump(mode="json"), texts, round])


class CritiqueActor:
    """A Ray actor with the GenRM: a table of Preferences -> units of Critique."""

    def __init__(self, config: CritiquesConfig, judge: JudgeConfig, round: int, build: Build) -> None:
        self.judge = Judge(judge, build(config.engine), config.limits)
        self.hint = config.hint
        self.round = round

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        units = write(self.judge, from_table(Preference, rows), round=self.round, hint=self.hint)
        return units_table(Critique, units)


def write(
    judge: Judge[Generator], preferences: Sequence[Preference], *, round: int, hint: bool
) -> list[Unit[Critique]]:
    """Critiques of both sides of each preference, one unit per preference, in order."""
    items = [item_of(p, side) for p in preferences for side in Side]
    outcomes = dict(zip([i.id for i in items], judge.critique(items), strict=True))
    if hint:
        sides = {f"{p.id}/{side}": side for p in preferences for side in Side}
        wrong = [item for item in items if needs_hint(outcomes[item.id], sides[item.id])]
        for id, more in _hinted(judge, wrong, sides).items():
            first = outcomes[id]
            assert not isinstance(first, Refused)
            outcomes[id] = (*first, *more)
    return [unit(p, {s: outcomes[f"{p.id}/{s}"] for s in Side}, round) for p in preferences]


def item_of(preference: Preference, side: Side) -> JudgeInput:
    """What the judge is asked about one side."""
    question, response = preference.question, preference.response(side)
    return JudgeInput(id=f"{preference.id}/{side}", images=(question.image,), question=question.text, response=response)


def needs_hint(outcome: Sequence[JudgeCritique] | Refused, side: Side) -> bool:
    """True where critiques were written and none has the right verdict."""
    if isinstance(outcome, Refused):
        return False
    return all(r.verdict != _RIGHT[side].casefold() for r in outcome)


def _hinted(
    judge: Judge[Generator], items: Sequence[JudgeInput], sides: Mapping[str, Side]
) -> dict[str, list[JudgeCritique]]:
    """Critiques written with the verdict told, with the verdict the judge reads off them when it is not told."""
    told = [replace(item, hint=_RIGHT[sides[item.id]]) for item in items]
    written = [
        (item, rationale)
        for item, outcome in zip(items, judge.critique(told), strict=True)
        if not isinstance(outcome, Refused)
        for rationale in outcome
    ]
    read = judge.reread([item for item, _ in written], [rationale.text for _, rationale in written])
    found: dict[str, list[JudgeCritique]] = {item.id: [] for item in items}
    for (item, rationale), verdict in zip(written, read, strict=True):
        if not isinstance(verdict, Refused):
            # The word stays the one in the text; how sure of it is the judge that was not told?
            word = rationale.verdict if verdict.p_yes is not None else None
            found[item.id].append(replace(rationale, verdict=word, p_yes=verdict.p_yes, verdict_mass=verdict.mass))
    return found


def unit(
    preference: Preference, outcomes: Mapping[Side, Sequence[JudgeCritique] | Refused], round: int
) -> Unit[Critique]:
    """All critiques of a preference, or its `Dropped` where a side was refused."""
    critiques: list[Critique] = []
    num_tokens = sum(r.num_tokens for o in outcomes.values() if not isinstance(o, Refused) for r in o)
    for side, outcome in outcomes.items():
        if isinstance(outcome, Refused):
            dropped = Dropped(stage=STAGE, id=preference.id, reason=outcome.reason, detail=f"{side}: {outcome.detail}")
            return Unit(id=preference.id, dropped=(dropped,), num_tokens=num_tokens)
        critiques += [record(preference, side, k, r, round) for k, r in enumerate(outcome)]
    return Unit(id=preference.id, records=tuple(critiques), num_tokens=num_tokens)


def record(preference: Preference, side: Side, k: int, rationale: JudgeCritique, round: int) -> Critique:
    """One rationale as the record that goes to selection."""
    return Critique(
        id=f"{preference.id}/{side}/c{k}",
        preference=preference,
        side=side,
        round=round,
        text=rationale.text,
        verdict=rationale.verdict,
        p_yes=rationale.p_yes,
        verdict_mass=rationale.verdict_mass,
        num_tokens=rationale.num_tokens,
        seed=rationale.seed,
    )


def metrics(folder: StageFolder) -> dict[str, Any]:
    """Share of critiques with a readable verdict, and of those with the right one; mean mass; mean length in tokens."""
    count = readable = right = num_tokens = 0
    mass = 0.0
    for critique in folder.records(Critique):
        count += 1
        readable += critique.verdict is not None
        right += critique.verdict == _RIGHT[critique.side].casefold()
        mass += critique.verdict_mass
        num_tokens += critique.num_tokens
    return {
        "critiques": count,
        "readable_share": readable / count if count else None,
        "right_share": right / readable if readable else None,
        "mean_verdict_mass": mass / count if count else None,
        "tokens_per_critique": num_tokens / count if count else None,
        "versions": versions(),
    }
