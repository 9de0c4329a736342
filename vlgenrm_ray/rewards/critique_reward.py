"""Reward of a judge that is trained as a policy: its critiques are verified, not judged.

A rollout is a critique, its question the judge's prompt (pool source `judge_prompts`). Verified are, each as 0 or 1:

    verdict      it is the one of the preference, which the experts decided
    evidence     no statement of the critique about the image is contradicted by the experts' detections
    format       steps "Claim: ... Image: ... Right.", in both sections of a pairwise critique, and one last verdict
    consistency  the steps quote the claims of the response, and the verdict follows from them

and the reward is their weighted mean. Evidence and consistency count only in the right format: what says nothing cannot
be contradicted, and would be rewarded for it. (R1-Reward, arXiv 2505.02835, rewards verdict, consistency and format;
LLaVA-Critic-R1, arXiv 2509.00676, verdict and format. The experts' evidence is ours.)
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, field_validator, model_validator

from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.calibration import calibrated
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.judge.verdict import A_OR_B, PAIR_VERDICTS, TIE, YES_NO, is_right_verdict
from vlgenrm_ray.records import Critique, Preference, Question, Rollout, Side
from vlgenrm_ray.rewards.critique_checks import (
    CritiqueChecker,
    cut_after_verdict,
    follows_from_steps,
    parse_steps,
    split_sections,
)
from vlgenrm_ray.rewards.reward import OK, RewardOutput
from vlgenrm_ray.settings import Settings

UNKNOWN_PROMPT = "unknown_prompt"
"""Status of a rollout whose question is no judge prompt about a preference of the run."""
TERMS = ("verdict", "evidence", "format", "consistency")


class CritiqueRewardConfig(Settings):
    """Verification of a judge's critiques against the preferences and experts of a reward-model run."""

    run: Path
    """Folder of the reward-model run whose preferences the judge prompts are about; all nodes read it."""
    verdict: float = Field(default=1.0, ge=0.0)
    """Weight of a right verdict."""
    evidence: float = Field(default=0.5, ge=0.0)
    """Weight of statements about the image that the experts do not contradict."""
    format: float = Field(default=0.1, ge=0.0)
    """Weight of the form of a critique."""
    consistency: float = Field(default=0.4, ge=0.0)
    """Weight of a verdict that follows from the steps, and of steps that quote the response."""

    @field_validator("run")
    @classmethod
    def _make_absolute(cls, run: Path) -> Path:
        # The reward is built in another process, with another working directory.
        return run.absolute()

    @model_validator(mode="after")
    def _rewards_something(self) -> Self:
        if not sum(self.weights.values()):
            raise ValueError("all weights are 0: set at least one of verdict, evidence, format and consistency above 0")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each of `TERMS`."""
        return {term: float(getattr(self, term)) for term in TERMS}


class CritiqueReward:
    """A `Reward` that verifies critiques, in threads of this process. It needs no engine."""

    def __init__(self, checker: CritiqueChecker, index: RecordIndex, weights: Mapping[str, float]) -> None:
        """Create the reward.

        Args:
            checker: Reads critiques and compares them with responses and detections.
            index: Index of the preferences.
            weights: Weight of each of `TERMS`.
        """
        self._checker = checker
        self._index = index
        self._ids = frozenset(index.table.column("id").to_pylist())
        self._weights = dict(weights)

    @classmethod
    def of_run(cls, config: CritiqueRewardConfig) -> Self:
        """Read preferences, vocabulary and thresholds of a run. Raises ConfigError if it is no finished one."""
        preferences, recipe = StageFolder(config.run / "preferences"), config.run / "config.yaml"
        if preferences.manifest() is None:
            raise ConfigError(
                f"critique.run: {config.run} holds no finished preferences; name a reward-model run's folder"
            )
        try:
            experts = yaml.safe_load(recipe.read_text(encoding="utf-8"))["experts"]
            thresholds = calibrated(Thresholds.model_validate(experts["thresholds"]), experts["calibration"])
            checker = CritiqueChecker.from_vocabulary(experts["vocabulary"], thresholds)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise ConfigError(f"critique.run: the experts in {recipe} cannot be read ({error})") from error
        return cls(checker, RecordIndex.build(preferences), config.weights)

    async def score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        """See `Reward.score`."""
        return await asyncio.to_thread(self._score, rollouts)

    async def check(self) -> None:
        """See `Reward.check`."""

    async def close(self) -> None:
        """See `Reward.close`."""

    def image_dependent_part(self) -> None:
        """Return None: the detections are those of the original image."""

    def _score(self, rollouts: Sequence[Rollout]) -> list[RewardOutput]:
        owners = {rollout.question.id: rollout.question.id.rpartition("/")[::2] for rollout in rollouts}
        known = {id: (pair, side) for id, (pair, side) in owners.items() if pair in self._ids and side in set(Side)}
        preferences = self._index.read(Preference, sorted({pair for pair, _ in known.values()}))

        # Most samples of a confident judge are the same text.
        @cache
        def verify(id: str, text: str, pairwise: bool) -> dict[str, bool]:
            pair, side = known[id]
            return verify_critique(text, preferences[pair], Side(side), self._checker, pairwise=pairwise)

        outputs = []
        for rollout in rollouts:
            if (id := rollout.question.id) not in known:
                detail = f"{id} is no judge prompt of the run; use the pool source judge_prompts with the same run"
                outputs.append(RewardOutput(reward=None, status=UNKNOWN_PROMPT, detail=detail))
                continue
            terms = verify(id, rollout.text, rollout.question.reference in A_OR_B.tracked)
            reward = sum(self._weights[t] * terms[t] for t in TERMS) / sum(self._weights.values())
            note = ", ".join(f"{term} {'passed' if terms[term] else 'failed'}" for term in TERMS)
            outputs.append(RewardOutput(reward=reward, status=OK, critique=note))
        return outputs


def verify_critique(
    text: str, preference: Preference, side: Side, checker: CritiqueChecker, *, pairwise: bool
) -> dict[str, bool]:
    """Verify a critique of one side of a preference; of a pairwise judge, of the pair with this side shown first.

    Returns:
        For each of `TERMS` whether it is passed.
    """
    verdict = written_verdict(text)
    if verdict is None or (verdict in PAIR_VERDICTS) is not pairwise:
        return dict.fromkeys(TERMS, False)
    critique = Critique(
        id="",
        preference_id=preference.id,
        side=side,
        round=0,
        text=text,
        verdict=verdict,
        p_yes=None,
        verdict_mass=0.0,
        num_tokens=0,
        seed=0,
    )
    well_formed = has_format(text, verdict)
    return {
        "verdict": is_right_verdict(verdict, side),
        "evidence": well_formed and not checker.is_contradicted(critique, preference),
        "format": well_formed,
        "consistency": well_formed and follows_from_steps(text, verdict) and checker.is_faithful(critique, preference),
    }


def written_verdict(text: str) -> str | None:
    """Read the verdict that a critique writes, as it is recorded ("yes", "b", "tie"); None without exactly one."""
    cut = cut_after_verdict(text)
    if cut is None:
        return None
    word = cut.split()[-1].strip("*_.: ").casefold()
    return TIE if word == A_OR_B.tie.casefold() else word


def has_format(text: str, verdict: str) -> bool:
    """Check the form of a critique: assessed steps, in both sections of a pairwise one, then the verdict alone."""
    if (cut_after_verdict(text) or "") != text.rstrip(" \t\n.*_"):
        return False
    parts = split_sections(text) if verdict in PAIR_VERDICTS else (text,)
    steps = [parse_steps(part) for part in parts or ()]
    return bool(steps) and all(part and all(step.right is not None for step in part) for part in steps)


def verdict_is_right(question: Question, response: str) -> float | None:
    """Return 1 if a critique's verdict is the reference of its judge prompt, else 0: a measure of a judge in training.

    None for a question that has no verdict as its reference.
    """
    words = {word.casefold() for word in (*YES_NO.tracked, *A_OR_B.tracked)}
    if (question.reference or "").casefold() not in words:
        return None
    return float(written_verdict(response) == (question.reference or "").casefold())
