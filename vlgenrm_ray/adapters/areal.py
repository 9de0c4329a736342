"""AReaL: `reward_fn="vlgenrm_ray.adapters.areal.vlgenrm_reward"` of its workflows (vision_rlvr, rlvr).

Question and images are the sample's `messages` and `images`; a column `label` replaces them (`judge/label.py`), and a
column `answer` is the reference.
AReaL silently turns a reward that takes longer than its own limit (15 s by default) into 0. This function therefore
returns or raises within VLGENRM_DEADLINE_S (12); AReaL retries an error and then raises it. Raise both limits together
if critiques are long. An item without a reward raises, see `rewards.py`.
"""

import os
from typing import Any

from vlgenrm_ray.adapters.clients import judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.label import Label, read_label

DEADLINE_VARIABLE = "VLGENRM_DEADLINE_S"


def vlgenrm_reward(
    prompt: str,
    completions: str,
    prompt_ids: list[int] | None = None,
    completion_ids: list[int] | None = None,
    **data: Any,
) -> float:
    """Return the reward of one completion. AReaL calls it in a process pool, so it is a plain function."""
    if data.get("label") is not None:
        label = read_label(data["label"])
    else:
        label = Label(reference=read_label(data.get("answer")).reference)
    # `messages` may be text already rendered by the processor's template.
    score_input = build_score_input(
        completions, prompt=data.get("messages") or prompt, images=sample_images(data), label=label
    )
    (reward,) = required_rewards(judge_client().score([score_input], deadline_s=_deadline_s()))
    return reward


def _deadline_s() -> float:
    text = os.environ.get(DEADLINE_VARIABLE, "12")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"{DEADLINE_VARIABLE}={text!r}: must be seconds above 0, 3600 at most")
    return seconds
