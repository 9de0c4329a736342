"""slime and miles: `--custom-rm-path vlgenrm_ray.adapters.slime.reward`, with or without `--group-rm`.

Images are those the policy saw (`sample.multimodal_inputs`); a JSON `label` may say otherwise, see `judge/label.py`.
In a group, a sample without a reward is masked: it leaves the loss (`remove_sample`) and has the mean of the others as
its reward, which moves no advantage. Alone, or in a group without any reward, it raises, see `failures.py`; where the
operator named a number for such samples, they leave the loss as well.
`--eval-reward-key` needs `--reward-key` beside it: slime's training would take the object it asks for as a number.
"""

from collections.abc import Sequence
from typing import Any

from vlgenrm_ray.adapters.asking import ask
from vlgenrm_ray.adapters.connection import async_judge
from vlgenrm_ray.adapters.failures import masked, required
from vlgenrm_ray.judge.label import read
from vlgenrm_ray.judge.protocol import ScoreInput


async def reward(args: Any, samples: Any, **_: Any) -> float | dict[str, float] | list[Any]:
    """The reward of one sample, or of each of a list; objects where `--reward-key` or `--eval-reward-key` is."""
    alone = not isinstance(samples, Sequence)
    group = [samples] if alone else list(samples)
    replies = await async_judge().score([_ask(sample) for sample in group])
    for sample, reply in zip(group, replies, strict=True):
        if reply.reward is None:
            sample.remove_sample = True
    known = [reply.reward for reply in replies if reply.reward is not None]
    # Of samples of several prompts, the mean over all would be no baseline: then none is made up.
    one_group = len({getattr(sample, "group_index", None) for sample in group}) == 1
    if known and not alone and one_group:
        mean = sum(known) / len(known)
        rewards = [mean if value is None else value for value in masked(replies)]
    else:
        rewards = required(replies)
    # slime's evaluation reads by its own key, where it has one.
    keys = [key for name in ("reward_key", "eval_reward_key") if (key := getattr(args, name, None))]
    told: list[Any] = [dict.fromkeys(keys, value) for value in rewards] if keys else list(rewards)
    return told[0] if alone else told


def _ask(sample: Any) -> ScoreInput:
    images = (getattr(sample, "multimodal_inputs", None) or {}).get("images") or ()
    return ask(sample.response, prompt=sample.prompt, images=images, label=read(sample.label))
