"""DPO on critiques: a selected critique is preferred to one of the same response with the wrong verdict.

It learns from the same selection as fine-tuning does, and from the critiques that the selection leaves out as well. A
pair of critiques is a preference pair whose question is the judge's prompt; the training is that of `vlgenrm policy`.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vlgenrm_ray import recipe
from vlgenrm_ray.ablation.trainers import SupervisedTrainer, TrainerTask
from vlgenrm_ray.data.store import StageFolder, Unit, units_table, write_units
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.records import Checkpoint, Critique, Example, ExampleKind, Origin, Preference, Question
from vlgenrm_ray.reward.rejection_sampling import is_right
from vlgenrm_ray.reward.training import TrainingResult
from vlgenrm_ray.rewards.critique_checks import cut_after_verdict
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    from vlgenrm_ray.config import PolicyRunConfig


class CritiqueDpoTrainer(SupervisedTrainer):
    """DPO on pairs of critiques. Its judge is measured as a fine-tuned one is."""

    def train(self, task: TrainerTask) -> TrainingResult:
        """Train with the offline algorithm `dpo` of `vlgenrm policy`, on the settings of `config.training`.

        Raises:
            StageError: No selected critique has a counterpart with the wrong verdict.
        """
        from vlgenrm_ray import policy_pipeline

        folder = StageFolder(task.target)
        inputs = {"examples": task.examples.data_hash(), "base": model_folder.digest(task.start)}
        folder.begin(digest([task.config.training.fingerprint(), task.round, "dpo"]), inputs)
        model = task.target / "dpo" / "policy" / "model"
        if (manifest := folder.manifest()) is not None:
            return TrainingResult(model=model, manifest=manifest)
        started_at = time.monotonic()
        num_pairs = _write_critique_pairs(task)
        summary = policy_pipeline.train(_dpo_config(task), task.target / "dpo")
        checkpoint = Checkpoint(uri=str(model), round=task.round, parent=str(task.start), metrics={})
        folder.write_shard(units_table(Checkpoint, [Unit(id=f"round-{task.round}", records=(checkpoint,))]))
        num_unpaired = task.examples.complete().rows_out - num_pairs
        metrics = {"steps": summary["steps"], "num_examples": num_pairs, "num_unpaired": num_unpaired}
        manifest = folder.finish(seconds=time.monotonic() - started_at, metrics=metrics)
        return TrainingResult(model=model, manifest=manifest)


def _write_critique_pairs(task: TrainerTask) -> int:
    """Write the pairs of critiques into the task's folder; return their number."""
    folder = StageFolder(task.target / "pairs" / "preferences")
    if (manifest := folder.manifest()) is not None:
        return manifest.rows_out
    if task.critiques is None:
        raise StageError(
            f"round {task.round}: a discriminative judge writes no critiques, which DPO on critiques needs"
        )
    preferences = critique_pairs(task.examples.records(Example), list(task.critiques.records(Critique)))
    if not preferences:
        raise StageError(
            f"round {task.round}: no selected critique has a counterpart with the wrong verdict, which DPO needs; "
            "raise critiques.num_critiques"
        )
    folder.begin(digest("dpo"), {"examples": task.examples.data_hash(), "critiques": task.critiques.data_hash()})
    write_units(folder, Preference, [Unit(id=p.id, records=(p,)) for p in preferences])
    return folder.finish(seconds=0.0).rows_out


def _dpo_config(task: TrainerTask) -> "PolicyRunConfig":
    """Return the recipe of the offline training: the settings of the supervised one, on pairs of critiques."""
    from vlgenrm_ray.config import PolicyRunConfig

    training_config = task.config.training
    pairs_folder = {"source": "run", "path": str(task.target / "pairs")}
    policy = {
        "algorithm": {"algorithm": "dpo"},
        "steps": training_config.max_steps,
        # A pair is two sequences.
        "questions_per_step": max(1, training_config.examples_per_step // 2),
        "tokens_per_batch": training_config.tokens_per_batch,
        "workers": training_config.workers,
        "num_cpus": training_config.num_cpus,
        "num_gpus": training_config.num_gpus,
        "engine": training_config.engine.model_dump(exclude_unset=True),
        "evaluation": {"every": training_config.max_steps},
    }
    values = {
        "base": str(task.start),
        "seed": training_config.seed,
        "engine": task.config.engine.model_dump(exclude_unset=True),
        "images": task.config.images.model_dump(exclude_unset=True),
        "pool": pairs_folder,
        "heldout": pairs_folder,
        "policy": policy,
    }
    return recipe.build(PolicyRunConfig, values)


def critique_pairs(examples: Iterable[Example], critiques: Sequence[Critique]) -> list[Preference]:
    """Pair each selected critique with one of the same response whose verdict is wrong.

    The wrong ones of a response are taken in turn, the surest first. Selected critiques with a wrong verdict, and those
    without a counterpart, are left out.

    Args:
        examples: Selected examples.
        critiques: All critiques of their pairs.

    Returns:
        Preferences whose question is the judge's prompt, and whose responses are critiques up to their verdict.
    """
    by_id = {critique.id: critique for critique in critiques}
    wrong: dict[tuple[str, str], list[Critique]] = {}
    for critique in sorted(critiques, key=lambda c: (-abs((c.p_yes or 0.5) - 0.5), c.id)):
        if critique.p_yes is not None and not is_right(critique) and cut_after_verdict(critique.text) is not None:
            wrong.setdefault((critique.preference_id, critique.side), []).append(critique)
    num_taken: Counter[tuple[str, str]] = Counter()
    preferences = []
    for example in sorted(examples, key=lambda e: e.id):
        selected = by_id.get(example.id.removesuffix("/example"))
        if example.kind is not ExampleKind.CRITIQUE or selected is None or not is_right(selected):
            continue
        response = (selected.preference_id, selected.side)
        if not (counterparts := wrong.get(response)):
            continue
        rejected = counterparts[num_taken[response] % len(counterparts)]
        num_taken[response] += 1
        question = Question(
            id=example.id,
            image=example.image,
            more_images=example.more_images,
            text=example.prompt,
            source="critiques",
        )
        preferences.append(
            Preference(
                id=f"{example.id}/dpo",
                question=question,
                chosen=example.completion,
                rejected=cut_after_verdict(rejected.text) or "",
                origin=Origin.VERIFIED,
                evidence=f"selected; {rejected.id} has the wrong verdict",
            )
        )
    return preferences
