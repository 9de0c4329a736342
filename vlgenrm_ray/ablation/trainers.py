"""Ways to make a judge of labelled pairs, which an ablation compares: the table that `trainer` of a variant names.

A trainer of your own is a class with the methods of `JudgeTrainer`, named by its import path.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.evaluation import pairs
from vlgenrm_ray.reward import training
from vlgenrm_ray.reward.training import TrainingResult

if TYPE_CHECKING:
    from vlgenrm_ray.config import RunConfig

SUPERVISED = "supervised"
TRAINERS: Mapping[str, str] = {
    SUPERVISED: "vlgenrm_ray.ablation.trainers:SupervisedTrainer",
    "dpo": "vlgenrm_ray.ablation.critique_dpo:CritiqueDpoTrainer",
}
"""Name in a recipe -> import path of the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerTask:
    """Inputs of one training, and the folder for its result."""

    config: "RunConfig"
    """Settings of the cell. `training.max_steps` is the number of steps that every cell has, `training.seed` its seed.
    """
    round: int
    start: Path
    """Model folder to start from."""
    preferences: StageFolder
    """Labelled pairs, stage of Preference: those that examples may come from."""
    critiques: StageFolder | None
    """Critiques of both sides of these pairs by the round's judge, stage of Critique; a discriminative one has none."""
    examples: StageFolder
    """Selected examples, stage of Example: the same number for every cell. For a discriminative judge
    (`training.objective: bradley_terry`) pairs, half as many."""
    num_pairs: int
    """Pairs that a trainer on whole pairs takes: half of the number of examples, as each pair has two sides."""
    target: Path
    """Folder for the result, a stage folder."""


class JudgeTrainer(Protocol):
    """A way to make a judge of labelled pairs, and to measure it."""

    is_generative: bool
    """True if its model writes critiques: it can be measured untrained, and a further round can start from it."""

    def train(self, task: TrainerTask) -> TrainingResult:
        """Train a judge. A finished `task.target` is returned unchanged, a partial one is continued."""
        ...

    def evaluate(self, config: "RunConfig", *, model: Path, source: StageFolder, target: StageFolder) -> Manifest:
        """Judge the pairs of `source` and write a stage of PairResult to `target`.

        A share `config.evaluation.no_image_share` of the pairs is judged without its image as well; see
        `evaluation/pairs.py`.
        """
        ...


class SupervisedTrainer:
    """Fine-tuning on the selected examples, as in `vlgenrm run`."""

    is_generative = True

    def train(self, task: TrainerTask) -> TrainingResult:
        """Train with Ray Train and DeepSpeed; see `reward/training.py`."""
        return training.run(
            task.config.training,
            base=task.start,
            examples=task.examples,
            target=task.target,
            round=task.round,
            judge=task.config.judge,
        )

    def evaluate(self, config: "RunConfig", *, model: Path, source: StageFolder, target: StageFolder) -> Manifest:
        """Judge the pairs with the prompts and the mode of `config.judge`."""
        return pairs.run(config.evaluation, judge=config.judge, model=model, source=source, target=target)
