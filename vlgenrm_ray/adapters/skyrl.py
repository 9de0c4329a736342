"""SkyRL: `skyrl_gym.register("vlgenrm", entry_point="vlgenrm_ray.adapters.skyrl:JudgeEnv")`, rows with
`env_class: vlgenrm`.

The images are those of the prompt's `image_url` parts; `reward_spec.ground_truth` is a label, see `judge/label.py`, or
a plain right answer, which is shown to the judge.
SkyRL has no way to mask a sample: no reward raises, see `failures.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.adapters.asking import ask, peer
from vlgenrm_ray.adapters.connection import judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import read


class JudgeEnv(peer("skyrl_gym.envs.base_text_env:BaseTextEnv")):  # type: ignore[misc]
    """A one-turn environment. `step` blocks; SkyRL runs it in its pool of threads, which share one client."""

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        spec = (extras or {}).get("reward_spec") or {}
        self._label = read(spec.get("ground_truth"))
        self._prompt: Sequence[Any] = ()

    def init(self, prompt: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Keeps the prompt, to show it to the judge."""
        self._prompt = prompt
        return prompt, {}

    def step(self, action: str) -> dict[str, Any]:
        """The reward of the policy's answer; the episode ends."""
        replies = judge().score([ask(action, prompt=self._prompt, label=self._label)])
        (reward,) = required(replies)
        metadata = {"verdict_mass": replies[0].verdict_mass, "scored": replies[0].reward is not None}
        return {"observations": [], "reward": reward, "done": True, "metadata": metadata}
