"""SkyRL: an environment of skyrl-gym made by its registry.

The steps are those of SkyRL's generator: `make`, `init` with the row's prompt, `step` with the policy's answer.
"""

# /// script
# dependencies = ["skyrl-gym==0.4.0", "func-timeout==4.3.5"]
# ///

from importlib.metadata import version

import skyrl_gym
from exchange import END_OF_TURN, Outcome, Request, Sample, outcome_of, respond


def run(request: Request) -> dict[str, Outcome]:
    """Play one episode per sample."""
    skyrl_gym.register("vlgenrm", entry_point="vlgenrm_ray.adapters.skyrl:JudgeEnv")
    rewards = [play(sample) for sample in request.samples]
    return {"environment": Outcome(rewards, outcome_of(lambda: play(request.empty)))}


def play(sample: Sample) -> float:
    """Return the reward of an episode."""
    env = skyrl_gym.make("vlgenrm", env_config={}, extras={"reward_spec": {"method": "rule", "ground_truth": None}})
    env.init(sample.messages)
    step = env.step(sample.response + END_OF_TURN)
    assert step["done"]
    env.close()
    return step["reward"]


if __name__ == "__main__":
    respond(version("skyrl-gym"), run)
