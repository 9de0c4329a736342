"""slime and miles: `--custom-rm-path vlgenrm_ray.adapters.slime.reward`, with or without `--group-rm`.

Images are those the policy saw (`sample.multimodal_inputs`); a JSON `label` replaces them (`judge/label.py`).
In a group, a sample without a reward is masked: it leaves the loss (`remove_sample`), and its reward is the mean of the
others, which changes no advantage. A single sample, or a group without any reward, raises, see `rewards.py`; with a
substitute reward of the operator, such samples leave the loss as well.
`--eval-reward-key` requires `--reward-key`: otherwise slime's training would take the returned object for a number.
"""

from collections.abc import Sequence
from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, sample_images
from vlgenrm_ray.adapters.rewards import optional_rewards, required_rewards
from vlgenrm_ray.judge.label import read_label
from vlgenrm_ray.judge.protocol import ScoreInput


async def reward(args: Any, samples: Any, **_: Any) -> float | dict[str, float] | list[Any]:
    """Return the reward of a sample, or of each of a list; objects if `--reward-key` or `--eval-reward-key` is set."""
    single = not isinstance(samples, Sequence)
    group = [samples] if single else list(samples)
    replies = await async_judge_client().score([_score_input(sample) for sample in group])
    for sample, reply in zip(group, replies, strict=True):
        if reply.reward is None:
            sample.remove_sample = True
    scored = [reply.reward for reply in replies if reply.reward is not None]
    # The mean is a baseline only within one prompt's group.
    one_group = len({getattr(sample, "group_index", None) for sample in group}) == 1
    if scored and not single and one_group:
        mean = sum(scored) / len(scored)
        rewards = [mean if value is None else value for value in optional_rewards(replies)]
    else:
        rewards = required_rewards(replies)
    # slime's evaluation reads the reward under a key of its own.
    keys = [key for name in ("reward_key", "eval_reward_key") if (key := getattr(args, name, None))]
    results: list[Any] = [dict.fromkeys(keys, value) for value in rewards] if keys else list(rewards)
    return results[0] if single else results


def _score_input(sample: Any) -> ScoreInput:
    images = sample_images({"multimodal_inputs": getattr(sample, "multimodal_inputs", None)})
    return build_score_input(sample.response, prompt=sample.prompt, images=images, label=read_label(sample.label))
