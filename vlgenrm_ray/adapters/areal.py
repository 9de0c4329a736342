"""AReaL: `reward_fn="vlgenrm_ray.adapters.areal.vlgenrm_reward"` of its workflows (vision_rlvr, rlvr).

`data` has the sample's `messages` and `images`; a column `label` may say otherwise, see `judge/label.py`, and a column
`answer` is shown to the judge.
AReaL turns a reward that takes longer than its own limit (15 s by default) into 0, without a word. This function
therefore answers or raises within VLGENRM_DEADLINE_S (12): what it raises is tried again and then raised by AReaL.
Raise both limits together where critiques are long. No reward raises, see `failures.py`.
"""

import os
from typing import Any

from vlgenrm_ray.adapters.asking import ask
from vlgenrm_ray.adapters.connection import judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.label import Label, read

DEADLINE = "VLGENRM_DEADLINE_S"


def vlgenrm_reward(
    prompt: str,
    completions: str,
    prompt_ids: list[int] | None = None,
    completion_ids: list[int] | None = None,
    **data: Any,
) -> float:
    """The reward of one completion. Runs in AReaL's process pool, hence is a plain function."""
    label = (
        read(data["label"]) if data.get("label") is not None else Label(reference=read(data.get("answer")).reference)
    )
    # AReaL's messages may already be rendered by the processor's template.
    asked = ask(completions, prompt=data.get("messages") or prompt, images=data.get("images"), label=label)
    (reward,) = required(judge().score([asked], deadline_s=_deadline_s()))
    return reward


def _deadline_s() -> float:
    text = os.environ.get(DEADLINE, "12")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"{DEADLINE}={text!r}: must be seconds above 0, 3600 at most")
    return seconds
