"""ROLL: `rewards.<tag>.worker_cls: vlgenrm_ray.adapters.roll.JudgeRewardWorker`.

ROLL passes decoded tokens and `ground_truth`, where a JSON label says question and image, see `judge/label.py`.
It has no way to mask a sample: no reward raises, see `failures.py`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from vlgenrm_ray.adapters.asking import ask, peer
from vlgenrm_ray.adapters.connection import judge
from vlgenrm_ray.adapters.failures import required
from vlgenrm_ray.judge.label import read

_Method = TypeVar("_Method", bound=Callable[..., Any])


def rewards(prompts: list[str], responses: list[str], truths: list[Any], ids: list[Any]) -> list[float]:
    """The reward of each response, all asked for together."""
    if not len(prompts) == len(responses) == len(truths) == len(ids):
        raise ValueError("prompts, responses, ground_truth and id must be of one length")
    asks = [ask(r, prompt=p, label=read(t)) for p, r, t in zip(prompts, responses, truths, strict=True)]
    return required(judge().score(asks))


def _spread(how: str) -> Callable[[_Method], _Method]:
    """ROLL's mark on a method that its ranks run; where ROLL is not installed, none."""
    register = peer("roll.distributed.scheduler.decorator:register", None)
    if register is None:
        return lambda method: method
    dispatch = peer("roll.distributed.scheduler.decorator:Dispatch")
    return register(dispatch_mode=getattr(dispatch, how))  # type: ignore[no-any-return]


class JudgeRewardWorker(peer("roll.distributed.executor.worker:Worker")):  # type: ignore[misc]
    """A reward worker of ROLL; needs a CPU only."""

    tokenizer: Any = None

    def __init__(self, worker_config: Any = None) -> None:
        # Without ROLL the base is `object`, which takes nothing.
        if type(self).__base__ is not object:
            super().__init__(worker_config=worker_config)
            self.rank_info.dp_rank = self.rank_info.rank
            self.rank_info.dp_size = self.rank_info.world_size
        self.worker_config = worker_config

    @_spread("ONE_TO_ALL")
    def initialize(self, pipeline_config: Any) -> None:
        """Loads the tokenizer, and nothing else."""
        super().initialize(pipeline_config)
        provider = peer("roll.models.model_providers:default_tokenizer_provider")
        self.tokenizer = provider(model_args=self.worker_config.model_args)

    @_spread("DP_MP_COMPUTE")
    def compute_rewards(self, data: Any) -> Any:
        """Rewards of a batch, in ROLL's three forms."""
        import torch

        prompts = self.tokenizer.batch_decode(data.batch["prompts"], skip_special_tokens=False)
        responses = self.tokenizer.batch_decode(data.batch["responses"], skip_special_tokens=True)
        fields = data.non_tensor_batch
        scores = torch.tensor(rewards(prompts, responses, list(fields["ground_truth"]), list(fields["id"])))
        tensors = {
            "token_level_rewards": torch.zeros_like(data.batch["responses"], dtype=torch.float32),
            "response_level_rewards": scores,
            "scores": scores,
        }
        return type(data).from_dict(tensors=tensors)
