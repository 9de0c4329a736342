"""NeMo-RL: `register_env("vlgenrm", "vlgenrm_ray.adapters.nemo_rl.JudgeEnvironment")`, with `env.vlgenrm: {}` or
`{url: ..., token: ...}` in the configuration; NeMo-RL needs the same name in its `ACTOR_ENVIRONMENT_REGISTRY`.

An environment receives role and content of a message. Images are those of the messages' content, as NeMo-RL's VLM
processors write it; where a processor has rendered the content into text, its `extra_env_info` must be the label with
question and image (`judge/label.py`; `ground_truth` is accepted for `reference`).
NeMo-RL cannot mask a sample: an item without a reward raises, see `rewards.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.clients import check_service, judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.chat_templates import last_question
from vlgenrm_ray.judge.conversation import message_text
from vlgenrm_ray.judge.label import read_label
from vlgenrm_ray.judge.protocol import ScoreInput

_MAX_RESTARTS = 3


class Environment(optional_import("nemo_rl.environments.interfaces:EnvironmentInterface")):  # type: ignore[misc]
    """One-turn environment. `JudgeEnvironment` is its Ray actor class."""

    def __init__(self, cfg: Mapping[str, Any] | None = None) -> None:
        self.cfg = dict(cfg or {})
        check_service(self.cfg.get("url"), self.cfg.get("token"))

    def step(self, message_log_batch: Sequence[Sequence[Mapping[str, Any]]], metadata: Sequence[Any]) -> Any:
        """Score a batch of conversations that end with the policy's answer. Every episode ends here."""
        import torch

        inputs = [_score_input(log, info) for log, info in zip(message_log_batch, metadata, strict=True)]
        rewards = required_rewards(judge_client(self.cfg.get("url"), self.cfg.get("token")).score(inputs))
        environment_return: Any = optional_import("nemo_rl.environments.interfaces:EnvironmentReturn", dict)
        return environment_return(
            observations=[{"role": "environment", "content": ""} for _ in rewards],
            metadata=list(metadata),
            next_stop_strings=[None] * len(rewards),
            rewards=torch.tensor(rewards),
            terminateds=torch.ones(len(rewards)),
            answers=None,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """Return the batch unchanged, and the mean reward."""
        return batch, {"vlgenrm/mean_reward": float(batch["rewards"].float().mean())}

    def shutdown(self) -> None:
        """Do nothing: the process closes the client."""


def __getattr__(name: str) -> Any:
    """Create `JudgeEnvironment` on access, so that importing this file does not import Ray."""
    if name != "JudgeEnvironment":
        raise AttributeError(name)
    import ray

    return ray.remote(max_restarts=_MAX_RESTARTS)(Environment)


def _score_input(log: Sequence[Mapping[str, Any]], info: Any) -> ScoreInput:
    """Build the input of a conversation: its last assistant turns are the response."""
    # Without the tokens that NeMo-RL keeps in each message.
    turns = [{"role": str(turn["role"]), "content": _content(turn)} for turn in log]
    start = len(turns)
    while start and turns[start - 1]["role"] == "assistant":
        start -= 1
    fields = dict(info or {})
    fields.setdefault("reference", fields.get("ground_truth"))
    response = "".join(message_text(turn) for turn in turns[start:])
    return build_score_input(response, prompt=turns[:start], images=sample_images(fields), label=read_label(fields))


def _content(turn: Mapping[str, Any]) -> Any:
    """Return the content of a turn: a list with images, or a text, which may be rendered by the chat template."""
    content = turn["content"]
    return last_question(content) if isinstance(content, str) and turn["role"] != "assistant" else content
