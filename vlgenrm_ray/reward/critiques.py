"""Critiques stage: reads Preference, writes Critique, K for each side, sampled from the current GenRM.

A pairwise GenRM writes K critiques of the pair for each order: the critiques of a side are those that were shown this
side first. A critique without a readable verdict is kept with verdict None: it abstains. If the engine refuses one
side, the whole preference is dropped, because a margin needs critiques of both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator, Refusal
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator, versions
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.verdict import VerdictWords, is_right_verdict
from vlgenrm_ray.records import Critique, Dropped, JudgeCritique, Preference, Side
from vlgenrm_ray.reward.rejection_sampling import is_right
from vlgenrm_ray.settings import Settings, digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "critiques"
EngineFactory = Callable[[VllmConfig], Generator]
"""Starts an engine; called inside the actor that owns it."""


class CritiquesConfig(Settings):
    """Settings of the critiques stage. The judge's settings define the prompts; the round supplies the model."""

    renamed: ClassVar = {"pool": "actors", "limits": "images"}

    num_critiques: int | None = Field(default=None, ge=1, le=256)
    """Critiques K of each side; None takes the judge's. More critiques let selection keep more pairs, while a reward
    is requested far more often than a judge is trained, so K may be larger here than in service."""
    hint: bool = False
    """Hint-and-strip (STaR, arXiv 2203.14465): a side without any right critique gets K more, written with the
    verdict as a hint and scored without it. The prompt is `judge.prompt` with `_hint` after its name."""
    engine: VllmConfig = VllmConfig()
    """vLLM engine of the GenRM. The round sets its model."""
    images: ImageLimits = ImageLimits()
    """Limits of the images that are opened."""
    actors: flow.ActorPoolConfig = flow.ActorPoolConfig()
    """Actors, each with one engine."""


def run(
    config: CritiquesConfig,
    *,
    judge: JudgeConfig,
    model: Path | str,
    round: int,
    source: StageFolder,
    target: StageFolder,
    build: EngineFactory | None = None,
    max_dropped: float = MAX_DROPPED,
) -> Manifest:
    """Write critiques of every preference on Ray Data. A finished `target` is returned, a partial one is continued.

    Args:
        config: Settings of the stage.
        judge: Prompts and sampling of the judge.
        model: Model folder of the GenRM.
        round: Round number, recorded in every critique.
        source: Complete stage of preferences.
        target: Folder of this stage.
        build: Starts the engine that replaces vLLM; `model` then need not exist.
        max_dropped: Largest share of preferences that may be dropped because of a fault.

    Returns:
        The stage's manifest, with `critique_metrics` as its metrics.

    Raises:
        InputError: The model folder or a prompt cannot be used (raised before any actor starts).
        StageError: `source` is unfinished, or too many preferences met a fault.
        ConfigError: `target` was made with other settings.
    """
    if config.num_critiques:
        judge = judge.model_copy(update={"num_critiques": config.num_critiques})
    Judge.check(judge, hint=config.hint)
    folder = Path(model) if build else model_folder.locate(str(model))
    engine = config.engine.model_copy(update={"model": str(folder)})
    actor = {"config": config.model_copy(update={"engine": engine}), "judge": judge, "round": round}
    return flow.run(
        target,
        flow.read_records(source),
        lambda rows: rows.map_batches(
            CritiqueActor,
            fn_constructor_kwargs=actor | {"build": build or VllmGenerator},
            **config.actors.map_batches_args(),
        ),
        total=source.complete().rows_out,
        fingerprint=fingerprint(config, judge, round),
        inputs={"preferences": source.data_hash()} | ({} if build else {"model": model_folder.digest(folder)}),
        metrics=lambda _folder, sums: critique_metrics(sums),
        max_dropped=max_dropped,
    )


def fingerprint(config: CritiquesConfig, judge: JudgeConfig, round: int) -> str:
    """Hash of everything that decides which critiques are written; the number of actors does not."""
    # The model itself is an input of the stage, by its content.
    settings = config.model_copy(update={"engine": config.engine.model_copy(update={"model": ""})}).result_settings()
    texts = {name: prompts.load(name) for name in judge.prompt_names(hint=config.hint)}
    return digest([settings, judge.result_settings(), texts, round])


class CritiqueActor:
    """Ray actor that owns the GenRM: maps a table of Preferences to units of Critique."""

    def __init__(self, config: CritiquesConfig, judge: JudgeConfig, round: int, build: EngineFactory) -> None:
        self.judge = Judge(judge, build(config.engine), config.images)
        self.hint = config.hint
        self.round = round

    @flow.exit_if_engine_lost
    def __call__(self, rows: "pa.Table") -> "pa.Table":
        units = write_critiques(self.judge, from_table(Preference, rows), round=self.round, hint=self.hint)
        return units_table(Critique, units)


def write_critiques(
    judge: Judge[Generator], preferences: Sequence[Preference], *, round: int, hint: bool
) -> list[Unit[Critique]]:
    """Write critiques of both sides of each preference; return one unit per preference, in order."""
    pairwise, words = judge.config.is_pairwise, judge.config.verdict_words
    items = [judge_item(p, side, pairwise=pairwise) for p in preferences for side in Side]
    outcomes = dict(zip([i.id for i in items], judge.critique(items), strict=True))
    if hint:
        sides = {f"{p.id}/{side}": side for p in preferences for side in Side}
        items_to_hint = [
            replace(item, hint=right_verdict(sides[item.id], words))
            for item in items
            if needs_hint(outcomes[item.id], sides[item.id])
        ]
        for id, hinted in _write_with_hint(judge, items_to_hint).items():
            unhinted = outcomes[id]
            assert not isinstance(unhinted, Refusal)
            outcomes[id] = (*unhinted, *hinted)
    return [_build_unit(p, {s: outcomes[f"{p.id}/{s}"] for s in Side}, round) for p in preferences]


def judge_item(preference: Preference, side: Side, *, pairwise: bool = False) -> JudgeInput:
    """Build the judge's input for one side of a preference; of a pairwise judge, for the pair with this side first."""
    return JudgeInput(
        id=f"{preference.id}/{side}",
        images=preference.question.images,
        question=preference.question.text,
        response=preference.response(side),
        other=preference.response(side.other) if pairwise else "",
    )


def right_verdict(side: Side, words: VerdictWords) -> str:
    """Return the right verdict on a side: "Yes" for a chosen response, or "A" where it is shown first."""
    return words.better if side is Side.CHOSEN else words.worse


def needs_hint(outcome: Sequence[JudgeCritique] | Refusal, side: Side) -> bool:
    """Return True if critiques were written and none has the right verdict."""
    if isinstance(outcome, Refusal):
        return False
    return not any(is_right_verdict(r.verdict, side) for r in outcome)


def _write_with_hint(judge: Judge[Generator], hinted_items: Sequence[JudgeInput]) -> dict[str, list[JudgeCritique]]:
    """Write critiques with the right verdict as a hint, and read their verdicts with prompts without the hint."""
    items = [replace(item, hint="") for item in hinted_items]
    written = [
        (item, rationale)
        for item, outcome in zip(items, judge.critique(hinted_items), strict=True)
        if not isinstance(outcome, Refusal)
        for rationale in outcome
    ]
    verdicts = judge.reread([item for item, _ in written], [rationale.text for _, rationale in written])
    rationales: dict[str, list[JudgeCritique]] = {item.id: [] for item in items}
    for (item, rationale), verdict in zip(written, verdicts, strict=True):
        if not isinstance(verdict, Refusal):
            # The word is the one in the text; the probability is that of the judge without the hint.
            word = rationale.verdict if verdict.p_yes is not None else None
            rationales[item.id].append(replace(rationale, verdict=word, p_yes=verdict.p_yes, verdict_mass=verdict.mass))
    return rationales


def _build_unit(
    preference: Preference, outcomes: Mapping[Side, Sequence[JudgeCritique] | Refusal], round: int
) -> Unit[Critique]:
    """Build the unit with all critiques of a preference, or with its `Dropped` if a side was refused."""
    critiques: list[Critique] = []
    num_tokens = sum(r.num_tokens for o in outcomes.values() if not isinstance(o, Refusal) for r in o)
    for side, outcome in outcomes.items():
        if isinstance(outcome, Refusal):
            dropped = Dropped(stage=STAGE, id=preference.id, reason=outcome.reason, detail=f"{side}: {outcome.detail}")
            return Unit(id=preference.id, dropped=(dropped,), num_tokens=num_tokens)
        critiques += [_build_critique(preference, side, k, r, round) for k, r in enumerate(outcome)]
    return Unit(
        id=preference.id,
        records=tuple(critiques),
        num_tokens=num_tokens,
        metric_sums=count_critiques(critiques),
    )


def _build_critique(preference: Preference, side: Side, k: int, rationale: JudgeCritique, round: int) -> Critique:
    return Critique(
        id=f"{preference.id}/{side}/c{k}",
        preference_id=preference.id,
        side=side,
        round=round,
        text=rationale.text,
        verdict=rationale.verdict,
        p_yes=rationale.p_yes,
        verdict_mass=rationale.verdict_mass,
        num_tokens=rationale.num_tokens,
        seed=rationale.seed,
    )


def count_critiques(critiques: Sequence[Critique]) -> dict[str, Any]:
    """Count the critiques of a unit, the readable and the right ones, and sum up their verdict mass and tokens."""
    return {
        "critiques": len(critiques),
        "readable": sum(critique.verdict is not None for critique in critiques),
        "right": sum(map(is_right, critiques)),
        "verdict_mass": sum(critique.verdict_mass for critique in critiques),
        "tokens": sum(critique.num_tokens for critique in critiques),
    }


def critique_metrics(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the share of readable verdicts, the share of right ones, the mean verdict mass and the mean length.

    Args:
        sums: Sum of `count_critiques` over the units of the stage.
    """
    count, num_readable = sums.get("critiques", 0), sums.get("readable", 0)
    return {
        "num_critiques": count,
        "readable_share": num_readable / count if count else None,
        "right_share": sums["right"] / num_readable if num_readable else None,
        "mean_verdict_mass": sums["verdict_mass"] / count if count else None,
        "tokens_per_critique": sums["tokens"] / count if count else None,
        "versions": versions(),
    }
