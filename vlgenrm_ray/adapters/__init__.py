"""Reward functions, managers and environments for other trainers, one small file each, over a served judge.

    export VLGENRM_URL=http://judge:8000 VLGENRM_TOKEN=...

Importing an adapter imports neither Ray, torch nor vLLM, and its trainer only if installed. The helpers below are
public: an adapter for another trainer, in this package or elsewhere, builds inputs (`inputs.py`), scores them with a
shared client (`clients.py`) and turns replies into rewards (`rewards.py`). README.md lists the adapters and shows a new
one.
"""

from vlgenrm_ray.adapters.clients import async_judge_client, check_service, judge_client
from vlgenrm_ray.adapters.inputs import (
    build_score_input,
    decode_response,
    optional_import,
    response_text,
    sample_images,
)
from vlgenrm_ray.adapters.rewards import optional_rewards, required_rewards
from vlgenrm_ray.judge.label import Label, read_label, write_label
from vlgenrm_ray.judge.protocol import ScoreInput

__all__ = [
    "Label",
    "ScoreInput",
    "async_judge_client",
    "build_score_input",
    "check_service",
    "decode_response",
    "judge_client",
    "optional_import",
    "optional_rewards",
    "read_label",
    "required_rewards",
    "response_text",
    "sample_images",
    "write_label",
]
