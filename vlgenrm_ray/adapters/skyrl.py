"""SkyRL (run: skyrl-gym 0.4.0): `skyrl_gym.register("vlgenrm", entry_point="vlgenrm_ray.adapters.skyrl:JudgeEnv")`,
rows with `env_class: vlgenrm`.

Images are the prompt's `image_url` parts; `reward_spec.ground_truth` is a label (`judge/label.py`) or a plain text,
which becomes the reference answer.
SkyRL cannot mask a sample: an item without a reward raises, see `rewards.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.clients import check_service, judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.label import read_label


class JudgeEnv(optional_import("skyrl_gym.envs.base_text_env:BaseTextEnv")):  # type: ignore[misc]
    """One-turn environment. `step` blocks; SkyRL calls it in a thread pool, whose threads share one client."""

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        check_service()
        spec = (extras or {}).get("reward_spec") or {}
        self._label = read_label(spec.get("ground_truth"))
        self._prompt: Sequence[Any] = ()

    def init(self, prompt: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Store the prompt for the judge."""
        self._prompt = prompt
        return prompt, {}

    def step(self, action: str) -> dict[str, Any]:
        """Score the policy's answer and end the episode."""
        replies = judge_client().score([build_score_input(action, prompt=self._prompt, label=self._label)])
        (reward,) = required_rewards(replies)
        metadata = {"verdict_mass": replies[0].verdict_mass, "scored": replies[0].reward is not None}
        return {"observations": [], "reward": reward, "done": True, "metadata": metadata}
