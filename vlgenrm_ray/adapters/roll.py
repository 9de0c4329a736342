"""ROLL: `rewards.<tag>.worker_cls: vlgenrm_ray.adapters.roll.JudgeRewardWorker`.

ROLL passes decoded tokens and `ground_truth`, a JSON label with question and image (`judge/label.py`), and in some
pipelines the images in `multi_modal_data`.
It cannot mask a sample: an item without a reward raises, see `rewards.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vlgenrm_ray.adapters.clients import check_service, judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.judge.label import read_label

_Method = TypeVar("_Method", bound=Callable[..., Any])


def rewards(
    prompts: list[str],
    responses: list[str],
    truths: list[Any],
    ids: list[Any],
    images: Sequence[Sequence[Any]] | None = None,
) -> list[float]:
    """Return the reward of each response, scored in one call. `images`: those of each sample, if ROLL passes them."""
    images = [()] * len(ids) if images is None else images
    if not len(prompts) == len(responses) == len(truths) == len(ids) == len(images):
        raise ValueError("prompts, responses, ground_truth, id and images must be of one length")
    inputs = [
        build_score_input(response, prompt=prompt, images=shown, label=read_label(truth))
        for prompt, response, truth, shown in zip(prompts, responses, truths, images, strict=True)
    ]
    return required_rewards(judge_client().score(inputs))


def _register(dispatch_mode: str) -> Callable[[_Method], _Method]:
    """Return ROLL's decorator for methods its ranks run, or one that does nothing if ROLL is not installed."""
    register = optional_import("roll.distributed.scheduler.decorator:register", None)
    if register is None:
        return lambda method: method
    dispatch = optional_import("roll.distributed.scheduler.decorator:Dispatch")
    return register(dispatch_mode=getattr(dispatch, dispatch_mode))  # type: ignore[no-any-return]


class JudgeRewardWorker(optional_import("roll.distributed.executor.worker:Worker")):  # type: ignore[misc]
    """Reward worker of ROLL. Needs no GPU."""

    tokenizer: Any = None

    def __init__(self, worker_config: Any = None) -> None:
        # Without ROLL the base is `object`, which takes no argument.
        if type(self).__base__ is not object:
            super().__init__(worker_config=worker_config)
            self.rank_info.dp_rank = self.rank_info.rank
            self.rank_info.dp_size = self.rank_info.world_size
        self.worker_config = worker_config

    @_register("ONE_TO_ALL")
    def initialize(self, pipeline_config: Any) -> None:
        """Load the tokenizer."""
        check_service()
        super().initialize(pipeline_config)
        provider = optional_import("roll.models.model_providers:default_tokenizer_provider")
        self.tokenizer = provider(model_args=self.worker_config.model_args)

    @_register("DP_MP_COMPUTE")
    def compute_rewards(self, data: Any) -> Any:
        """Return the rewards of a batch under ROLL's three keys, per token and per response."""
        import torch

        prompts = self.tokenizer.batch_decode(data.batch["prompts"], skip_special_tokens=False)
        responses = self.tokenizer.batch_decode(data.batch["responses"], skip_special_tokens=True)
        fields = data.non_tensor_batch
        ids = list(fields["id"])
        images = [sample_images({name: values[row] for name, values in fields.items()}) for row in range(len(ids))]
        scores = torch.tensor(rewards(prompts, responses, list(fields["ground_truth"]), ids, images))
        tensors = {
            "token_level_rewards": torch.zeros_like(data.batch["responses"], dtype=torch.float32),
            "response_level_rewards": scores,
            "scores": scores,
        }
        return type(data).from_dict(tensors=tensors)
