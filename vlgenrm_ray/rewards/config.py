"""Settings of rewards, and the table of reward kinds that builds them."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.remote import AsyncRemoteJudge
from vlgenrm_ray.judge.serve_handle import ServeHandleTransport, present_name
from vlgenrm_ray.rewards.composite import RetryConfig, RetryingReward, RewardTerm, WeightedSumReward
from vlgenrm_ray.rewards.critique_reward import CritiqueReward, CritiqueRewardConfig
from vlgenrm_ray.rewards.function import MAX_CONCURRENCY, FunctionReward, load_function
from vlgenrm_ray.rewards.isolated_function import start_isolated_function
from vlgenrm_ray.rewards.local_judge import LocalJudgeConfig, start_local_judge
from vlgenrm_ray.rewards.reward import Reward
from vlgenrm_ray.rewards.served_judge import ServedJudgeReward
from vlgenrm_ray.settings import Settings

_HANDLE_URL = "http://ray-serve"
"""Base URL of requests that go over a Ray Serve handle; no host is contacted."""


class RewardConfig(Settings):
    """One reward. Exactly one of the settings that `REWARD_KINDS` lists names its kind."""

    name: str = Field(default="judge", pattern=r"^[\w.-]+$")
    """Name in statuses and messages."""
    weight: float = 1.0
    """Factor in the sum of all rewards. A rollout needs the score of each of them."""
    granularity: Literal["response", "claim"] = "response"
    """`response`: one reward for all tokens of a response. `claim`: each segment of a response, such as a sentence, has
    its own (fine-grained RLHF, arXiv 2306.01693). For judges with `unit: sentence`, and functions that return a
    `SegmentedReward`."""
    url: str = ""
    """Address of a served judge."""
    handle: str = Field(default="", pattern=r"^([^:]+(:[^:]+)?)?$")
    """Ray Serve application of a judge served on this cluster (`vlgenrm serve` names it `vlgenrm`), or
    `application:deployment` if the judge's ingress is a deployment of another application."""
    token_variable: str = ""
    """Name of the environment variable that holds the token of the service. The token itself is in no file."""
    mode: Literal["cot", "direct"] | None = None
    """Served judges: with critiques or without. None: as the service is configured."""
    num_critiques: int | None = Field(default=None, ge=1)
    """Served judges: critiques per rollout. None: as the service is configured."""
    retries: int = Field(default=5, ge=0)
    """Served judges: times that a failed request is repeated before the reward counts as unavailable."""
    deadline_s: float = Field(default=300.0, gt=0.0)
    """Seconds after which a rollout that is not scored has no reward. Functions that hang are left behind then."""
    judge: LocalJudgeConfig | None = None
    """A judge in an actor of the run."""
    critique: CritiqueRewardConfig | None = None
    """Verification of critiques, to train a judge: the questions are judge prompts (pool source `judge_prompts`)."""
    function: str = ""
    """`module:function` of (Question, response) -> float, or None for no reward. It may be any callable, and return an
    awaitable."""
    max_concurrency: int = Field(default=MAX_CONCURRENCY, ge=1)
    """Functions: most calls at the same time. 1: for a function that is not thread-safe."""
    isolated: bool = True
    """Functions: call it in a process of its own, which is started again if the function blocks or ends it. False: in
    threads of the rollout orchestrator, which such a function would block or end."""

    @field_validator("handle")
    @classmethod
    def _is_present(cls, handle: str) -> str:
        return present_name(handle)

    @model_validator(mode="after")
    def _names_one_kind(self) -> Self:
        if len(self._kinds()) != 1:
            raise ValueError(
                "give exactly one of url or handle (of a served judge), judge (in an actor of the run), critique (of a "
                "judge in training) and function"
            )
        if urlsplit(self.url).username is not None:
            raise ValueError("url: a token in an address ends up in files and logs; name it by token_variable")
        return self

    @model_validator(mode="after")
    def _has_no_unused_settings(self) -> Self:
        served = self._changed_settings("token_variable", "mode", "num_critiques", "retries")
        if served and not (self.url or self.handle):
            raise ValueError(f"{served}: only for served judges; a judge of the run is set by `judge.judge`")
        if self.granularity == "claim" and self.judge is not None and self.judge.judge.unit != "sentence":
            raise ValueError("granularity: claim needs judge.judge.unit: sentence; set it, or granularity: response")
        if (called := self._changed_settings("max_concurrency", "isolated")) and not self.function:
            raise ValueError(f"{called}: only for functions")
        return self

    def _changed_settings(self, *names: str) -> str:
        return ", ".join(name for name in names if getattr(self, name) != type(self).model_fields[name].default)

    def build(self, limits: ImageLimits) -> Reward:
        """Build the reward, without its weight. Raises ConfigError for settings that cannot be used here."""
        (kind,) = self._kinds()
        return REWARD_KINDS[kind](self, limits)

    def _kinds(self) -> list[str]:
        return [kind for kind in REWARD_KINDS if getattr(self, kind)]


def build_reward(configs: Sequence[RewardConfig], retry: RetryConfig, limits: ImageLimits) -> Reward:
    """Build the reward of a run: the weighted sum of its rewards, with retries.

    Args:
        configs: Settings of each reward.
        retry: Limits of the retries.
        limits: Limits of the images that judges are sent.

    Raises:
        ConfigError: There is no reward, a function cannot be imported, an address is malformed or a token is missing.
    """
    if not configs:
        raise ConfigError("rewards: name at least one, by url, handle, judge, critique or function")
    terms = [RewardTerm(config.name, config.weight, config.build(limits)) for config in configs]
    return RetryingReward(weighted_sum(terms), retry)


def weighted_sum(terms: Sequence[RewardTerm]) -> Reward:
    """Return the weighted sum of rewards; a single reward of weight 1 is returned itself."""
    return terms[0].reward if len(terms) == 1 and terms[0].weight == 1.0 else WeightedSumReward(terms)


def _build_served_judge(config: RewardConfig, limits: ImageLimits) -> Reward:
    token = os.environ.get(config.token_variable) if config.token_variable else None
    if config.token_variable and not token:
        raise ConfigError(f"token_variable: the environment variable {config.token_variable} is not set")
    judge = AsyncRemoteJudge(
        config.url or _HANDLE_URL,
        token=token,
        retries=config.retries,
        limits=limits,
        transport=ServeHandleTransport(config.handle) if config.handle else None,
    )
    return ServedJudgeReward(
        judge,
        mode=config.mode,
        num_critiques=config.num_critiques,
        deadline_s=config.deadline_s,
        by_sentence=config.granularity == "claim",
    )


def _build_local_judge(config: RewardConfig, limits: ImageLimits) -> Reward:
    assert config.judge is not None
    by_sentence = config.granularity == "claim"
    return start_local_judge(config.judge, limits, deadline_s=config.deadline_s, by_sentence=by_sentence)


def _build_critique_reward(config: RewardConfig, limits: ImageLimits) -> Reward:
    assert config.critique is not None
    return CritiqueReward.of_run(config.critique)


def _build_function(config: RewardConfig, limits: ImageLimits) -> Reward:
    function = load_function(config.function)
    options: dict[str, Any] = {
        "max_concurrency": config.max_concurrency,
        "by_segment": config.granularity == "claim",
    }
    if config.isolated and connection.is_connected():
        return start_isolated_function(config.function, config.deadline_s, **options)
    return FunctionReward(function, config.deadline_s, **options)


REWARD_KINDS: Mapping[str, Callable[[RewardConfig, ImageLimits], Reward]] = {
    "url": _build_served_judge,
    "handle": _build_served_judge,
    "judge": _build_local_judge,
    "critique": _build_critique_reward,
    "function": _build_function,
}
"""Setting of `RewardConfig` that selects a kind of reward -> builder of that kind."""
