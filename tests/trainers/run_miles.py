"""miles, and slime, from which it has this code: its reward hub, with `/rm` and with the adapter.

`--rm-type remote_rm --rm-url .../rm`, `--custom-rm-path` for single samples, and with `--group-rm` for groups.
"""

# /// script
# dependencies = ["miles-rl==0.0.2", "pylatexenc==2.11"]
# ///

import asyncio
import os
from importlib.metadata import version
from types import SimpleNamespace

from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond
from miles.rollout.rm_hub import async_rm, batched_async_rm
from miles.utils.types import Sample as Rollout

ADAPTER = SimpleNamespace(custom_rm_path="vlgenrm_ray.adapters.slime.reward", reward_key=None, eval_reward_key=None)


def run(request: Request) -> dict[str, Outcome]:
    """Score the samples with every entrance."""
    address = os.environ["VLGENRM_URL"].replace("://", f"://any:{os.environ['VLGENRM_TOKEN']}@")
    gateway = SimpleNamespace(custom_rm_path=None, rm_type="remote_rm", rm_url=f"{address}/rm")
    group = [build_rollout(sample) for sample in request.samples]
    asyncio.run(batched_async_rm(ADAPTER, group, inplace_set_reward_field=True))
    return {
        "/rm": score_each(gateway, request, with_label=True),
        "custom_rm_path": score_each(ADAPTER, request, with_label=False),
        "group_rm": Outcome([rollout.reward for rollout in group], score_group_with_empty(request)),
    }


def score_each(args: SimpleNamespace, request: Request, *, with_label: bool) -> Outcome:
    """Score all samples one by one, concurrently."""

    async def rewards(samples: list[Sample]) -> list[float]:
        return await asyncio.gather(*(async_rm(args, build_rollout(sample, with_label)) for sample in samples))

    return Outcome(asyncio.run(rewards(request.samples)), outcome_of(lambda: asyncio.run(rewards([request.empty]))))


def score_group_with_empty(request: Request) -> str:
    """Return the rewards of two responses, one of which is empty, and whether each leaves the loss."""
    group = [build_rollout(request.samples[0]), build_rollout(request.empty)]
    asyncio.run(batched_async_rm(ADAPTER, group, inplace_set_reward_field=True))
    scored, empty = group
    return f"the mean of the others: {empty.reward == scored.reward}, removed: {empty.remove_sample}"


def build_rollout(sample: Sample, with_label: bool = False) -> Rollout:
    """Return a sample as it is after the rollout."""
    return Rollout(
        group_index=0,
        prompt=f"<|im_start|>user\n<image>{sample.question}<|im_end|>\n<|im_start|>assistant\n",
        response=sample.response + END_OF_TURN,
        label=sample.label if with_label else None,
        multimodal_inputs=None if with_label else {"images": [sample.open_image()]},
    )


if __name__ == "__main__":
    respond(version("miles-rl"), run)
