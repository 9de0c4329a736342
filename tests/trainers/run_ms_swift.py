"""ms-swift: a reward function of an external plugin, resolved and called as its GRPO trainer does.

`--external_plugins plugin.py --reward_funcs vlgenrm`; the samples are those of a rollout.
"""

# /// script
# dependencies = [
#     "ms-swift==4.6.0", "dacite==1.9.2", "json-repair==0.64.6", "modelscope==1.40.2", "modelscope-hub==0.5.1",
# ]
# ///

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond
from swift.arguments import BaseArguments
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import score_completions
from swift.rlhf_trainers.utils import resolve_reward_funcs


def run(request: Request) -> dict[str, Outcome]:
    """Score all samples in one call."""
    plugin = Path("plugin.py").absolute()
    plugin.write_text("import vlgenrm_ray.adapters.ms_swift\n")
    BaseArguments._import_external_plugins(SimpleNamespace(external_plugins=[str(plugin)], custom_register_path=[]))
    functions, names = resolve_reward_funcs(["vlgenrm"], args=SimpleNamespace())
    assert names == ["JudgeReward"]

    def rewards(samples: list[Sample]) -> list[float]:
        rollouts = [build_sample(sample) for sample in samples]
        return score_completions(rollouts, functions, [None], False, torch.device("cpu")).squeeze(1).tolist()

    return {"reward_funcs": Outcome(rewards(request.samples), outcome_of(lambda: rewards([request.empty])))}


def build_sample(sample: Sample) -> GRPOSample:
    """Return a sample as it is after the rollout: the answer is the last message, images are as in the data set."""
    messages = [
        {"role": "user", "content": f"<image>{sample.question}"},
        {"role": "assistant", "content": sample.response + END_OF_TURN},
    ]
    return GRPOSample(messages=messages, images=[{"bytes": None, "path": sample.image}])


if __name__ == "__main__":
    respond(version("ms-swift"), run)
