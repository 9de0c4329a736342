"""The table of contents: every stage of a run, in order. Each is resumable, so a run is, too.

pool -> responses -> experts -> preferences              heldout-pool -> heldout
    then, for round 1 ... T:  critiques -> selection -> training -> evaluation

<run>/config.yaml                     the resolved configuration
<run>/<stage>/                        see store.py
<run>/round-<t>/<stage>/, lineage.json
<run>/summary.json, best.json, best   the best round's model, by held-out accuracy
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray import recipe
from vlgenrm_ray.config import RunConfig
from vlgenrm_ray.curation import experts, pool, preferences, responses
from vlgenrm_ray.data.store import Manifest, StageFolder, read_json, write_json
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.evaluation import evidence_quality, heldout, pairs
from vlgenrm_ray.evaluation.metrics import plain
from vlgenrm_ray.experts.claims import VocabularyExtractor
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.records import CheckedResponse, Preference
from vlgenrm_ray.report.lineage import lineage
from vlgenrm_ray.report.summary import summary
from vlgenrm_ray.reward import critiques, rounds, selection, training
from vlgenrm_ray.reward.refutation import Evidence
from vlgenrm_ray.reward.rounds import Round, Steps, Trained


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder and the configuration that fills it."""

    config: RunConfig
    folder: Path

    def stage(self, name: str) -> StageFolder:
        """Folder of a stage before the first round."""
        return StageFolder(self.folder / name)


def run(config: RunConfig, folder: Path, *, report: Callable[[Round], None] = lambda done: None) -> dict[str, Any]:
    """Make, or finish, the run in `folder`; `report` hears of each round. Returns what `summary.json` holds.

    Raises the errors of `errors.py`; whatever was done by then stays, and the same call goes on from there.
    """
    began = time.monotonic()
    made = Run(config, folder.absolute())
    recipe.claim(config, made.folder)
    before = _seconds(made)
    prepared = prepare(made)
    done: list[Round] = []
    for finished in improve(made):
        done.append(finished)
        write_json(made.folder / f"round-{finished.round}" / "lineage.json", lineage(finished, prepared))
        _name_best(made, rounds.best(done))
        seconds = before + time.monotonic() - began
        write_json(made.folder / "summary.json", summary(config.seed, seconds, done, prepared, _gains(made, done)))
        report(finished)
    return read_json(made.folder / "summary.json")


def prepare(run: Run) -> dict[str, Manifest]:
    """From images and questions to preference pairs with evidence, and the labelled pairs to measure on."""
    config, stage = run.config, run.stage
    done = {
        "pool": pool.run(config.pool, target=stage("pool"), seed=config.seed),
        "responses": responses.run(config.responses, seed=config.seed, source=stage("pool"), target=stage("responses")),
        "experts": experts.run(config.experts, source=stage("responses"), target=stage("experts")),
        "preferences": preferences.run(
            config.preferences,
            experts=config.experts,
            seed=config.seed,
            source=stage("experts"),
            target=stage("preferences"),
        ),
        "heldout-pool": pool.run(config.heldout, target=stage("heldout-pool"), seed=config.seed),
        "heldout": heldout.run(source=stage("heldout-pool"), target=stage("heldout")),
    }
    if config.pool.source == "shapes":
        write_json(run.folder / "quality.json", quality(run))
    return done


def improve(run: Run) -> Iterator[Round]:
    """Evaluate the base, then make the GenRM better round by round; yields each as it is finished."""
    base = model_folder.locate(run.config.base)
    return rounds.run(run.config.rounds, run.folder, base=base, steps=_steps(run))


def quality(run: Run) -> Mapping[str, Any]:
    """How right the experts and the preference labels were, where the embedded world's truth is known."""
    from vlgenrm_ray.shapes import world

    return {
        "experts": evidence_quality.expert_quality(run.stage("experts").records(CheckedResponse), world.claim_is_true),
        "preferences": evidence_quality.label_quality(
            run.stage("preferences").records(Preference), world.response_is_true
        ),
    }


def _steps(run: Run) -> Steps:
    config = run.config
    vocabulary = load_vocabulary(config.experts.vocabulary)
    # What wrote the critiques and what learns them must see a picture alike.
    seen_as = config.training.image_processor or config.critiques.engine.image_processor
    learning = config.training.model_copy(update={"image_processor": seen_as})

    def criticise(model: Path, number: int, target: StageFolder) -> Manifest:
        return critiques.run(
            config.critiques,
            judge=config.judge,
            model=model,
            round=number,
            source=run.stage("preferences"),
            target=target,
        )

    def select(number: int, source: StageFolder, target: StageFolder) -> Manifest:
        return selection.run(
            config.selection,
            prompt=config.judge.prompt,
            direct_prompt=config.judge.direct_prompt,
            evidence=Evidence(VocabularyExtractor(vocabulary), vocabulary, config.experts.thresholds),
            source=source,
            target=target,
        )

    def train(model: Path, number: int, examples: StageFolder, target: Path) -> Trained:
        result = training.run(learning, base=model, examples=examples, target=target, round=number)
        return Trained(model=result.model, seconds=result.seconds, report=result.report)

    def evaluate(model: Path, target: StageFolder) -> Manifest:
        return pairs.run(config.evaluation, judge=config.judge, model=model, source=run.stage("heldout"), target=target)

    return Steps(critiques=criticise, selection=select, training=train, evaluation=evaluate)


def _gains(run: Run, done: Sequence[Round]) -> dict[int, Mapping[str, Any]]:
    """Round -> its gain in held-out accuracy over the base, on the same pairs."""
    base, *later = [StageFolder(run.folder / f"round-{r.round}" / "evaluation") for r in done]
    return {r.round: plain(pairs.gain(base, folder)) for r, folder in zip(done[1:], later, strict=True)}


def _name_best(run: Run, best: Round) -> None:
    write_json(
        run.folder / "best.json",
        {"round": best.round, "model": str(best.model), "pairwise_accuracy": best.accuracy},
    )
    link = run.folder / "best"
    fresh = run.folder / ".best"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(best.model)
    fresh.replace(link)


def _seconds(run: Run) -> float:
    """Seconds of earlier, interrupted attempts at this run."""
    path = run.folder / "summary.json"
    return float(read_json(path)["seconds"]) if path.exists() else 0.0
