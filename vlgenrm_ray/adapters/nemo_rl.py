"""NeMo-RL: `register_env("vlgenrm", "vlgenrm_ray.adapters.nemo_rl.JudgeEnvironment")`, with `env.vlgenrm: {}` or
`{url: ..., token: ...}` in the configuration; NeMo-RL wants the same name in its `ACTOR_ENVIRONMENT_REGISTRY`.

Only role and text of a message reach an environment: the processor's `extra_env_info` says question and image, see
`judge/label.py` (`ground_truth` is another name of `reference`).
NeMo-RL has no way to mask a sample: no reward raises, see `failures.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.asking import ask, peer
from vlgenrm_ray.adapters.connection import judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import read
from vlgenrm_ray.judge.protocol import ScoreInput

_MAX_RESTARTS = 3


class Environment(peer("nemo_rl.environments.interfaces:EnvironmentInterface")):  # type: ignore[misc]
    """A one-turn environment; `JudgeEnvironment` is the Ray actor of it."""

    def __init__(self, cfg: Mapping[str, Any] | None = None) -> None:
        self.cfg = dict(cfg or {})

    def step(self, message_log_batch: Sequence[Sequence[Mapping[str, Any]]], metadata: Sequence[Any]) -> Any:
        """Rewards of a batch of conversations that end with the policy's answer; every episode ends here."""
        import torch

        asks = [_ask(log, info) for log, info in zip(message_log_batch, metadata, strict=True)]
        rewards = required(judge(self.cfg.get("url"), self.cfg.get("token")).score(asks))
        made: Any = peer("nemo_rl.environments.interfaces:EnvironmentReturn", dict)
        return made(
            observations=[{"role": "environment", "content": ""} for _ in rewards],
            metadata=list(metadata),
            next_stop_strings=[None] * len(rewards),
            rewards=torch.tensor(rewards),
            terminateds=torch.ones(len(rewards)),
            answers=None,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The batch as it is, and the mean reward."""
        return batch, {"vlgenrm/mean_reward": float(batch["rewards"].float().mean())}

    def shutdown(self) -> None:
        """Nothing is held that the process does not close."""


def __getattr__(name: str) -> Any:
    """`JudgeEnvironment`, made when asked for: importing this file imports no Ray."""
    if name != "JudgeEnvironment":
        raise AttributeError(name)
    import ray

    return ray.remote(max_restarts=_MAX_RESTARTS)(Environment)


def _ask(log: Sequence[Mapping[str, Any]], info: Any) -> ScoreInput:
    """The last run of assistant turns is judged; tokens, which NeMo-RL keeps beside the text, are left out."""
    turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in log]
    start = len(turns)
    while start and turns[start - 1]["role"] == "assistant":
        start -= 1
    told = dict(info or {})
    told.setdefault("reference", told.get("ground_truth"))
    return ask("".join(t["content"] for t in turns[start:]), prompt=turns[:start], label=read(told))
