"""What the workers of a policy's training are told, and where they write."""

from dataclasses import dataclass
from pathlib import Path

from vlgenrm_ray.policy.training_config import PolicyConfig


@dataclass(frozen=True, slots=True)
class PolicyJob:
    """One training."""

    config: PolicyConfig
    base: Path
    """Folder of the policy as it begins."""
    target: Path
    collector: str
    """Name of the run's collector."""

    @property
    def model(self) -> Path:
        """The policy after the last step; there when complete."""
        return self.target / "model"

    @property
    def best(self) -> Path:
        """The policy at its best evaluation; there when complete."""
        return self.target / "best"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.target / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON line per evaluation."""
        return self.target / "evaluations.jsonl"

    @property
    def best_evaluation(self) -> Path:
        """The line of the evaluation that `best` was exported at."""
        return self.target / "best.json"

    @property
    def samples(self) -> Path:
        """One JSON line per question shown: its answers, critiques and rewards."""
        return self.target / "samples.jsonl"

    @property
    def plan(self) -> Path:
        """How many steps there are to do."""
        return self.target / "plan.json"

    @property
    def result(self) -> Path:
        """Written last of all by the workers."""
        return self.target / "result.json"

    @property
    def failure(self) -> Path:
        """Why the workers gave up, where another attempt of theirs would only repeat it."""
        return self.target / "failure.json"
