"""Named algorithms: the defaults they set, their precedence, and algorithms from other packages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from vlgenrm_ray.policy.algorithms import ALGORITHMS, resolve_algorithm
from vlgenrm_ray.policy.config import AlgorithmConfig, PolicyConfig, PolicyEvaluationConfig
from vlgenrm_ray.policy.losses import ResponseTokens

REWARDS = {"rewards": [{"function": "a:b"}]}

PACKAGE = """
from vlgenrm_ray.policy.advantages import advantages_by_group
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.losses import Loss, policy_loss


def doubled(rewards, config):
    return advantages_by_group(rewards, config, lambda group: 2 * (group - group.mean()))


def halved(tokens, config, denominator):
    loss = policy_loss(tokens, config, denominator)
    return Loss(loss.value / 2, loss.metrics)


DEFAULTS = {"kl": {"coefficient": 0.0}, "importance": None}
MINE = Algorithm(group_advantages=doubled, policy_loss=halved, defaults=DEFAULTS)
NOT_ONE = 3
"""


def algorithm(**values: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(values)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Clip below and above, ratio, normalisation, scale, KL coefficient.
        ("grpo", (0.2, 0.28, "token", "tokens", "group", 0.04)),
        ("dr_grpo", (0.2, 0.2, "token", "constant", "none", 0.0)),
        ("gspo", (3e-4, 4e-4, "sequence", "sequences", "group", 0.04)),
        ("dapo", (0.2, 0.28, "token", "tokens", "group", 0.0)),
        ("rloo", (0.2, 0.2, "token", "constant", "none", 0.04)),
        ("ppo", (0.2, 0.28, "token", "tokens", "group", 0.04)),
    ],
)
def test_defaults_of_named_algorithms(name: str, expected: tuple[Any, ...]) -> None:
    config = algorithm(algorithm=name)
    settings = (config.clip_low, config.clip_high, config.ratio, config.normalise, config.scale, config.kl.coefficient)
    assert settings == expected
    assert config.uses_critic is (name == "ppo")


def test_dapo_resamples_and_penalises_overlong_responses() -> None:
    config = algorithm(algorithm="dapo")
    assert (config.resample_rounds, config.overlong.handling) == (2, "penalty")


def test_the_default_algorithm_is_grpo() -> None:
    assert AlgorithmConfig() == algorithm(algorithm="grpo")


def test_explicit_settings_take_precedence_over_defaults_of_the_algorithm() -> None:
    config = algorithm(algorithm="dr_grpo", scale="batch", kl={"estimator": "k2"})
    assert (config.scale, config.kl.estimator, config.kl.coefficient, config.normalise) == (
        "batch",
        "k2",
        0.0,
        "constant",
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_dumped_configuration_reads_back_equal(name: str) -> None:
    config = algorithm(algorithm=name, clip_high=0.5)
    assert AlgorithmConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grop", "use one of grpo, dr_grpo"),
        ("nowhere.at_all:MINE", "cannot be imported"),
        ("os:NOTHING", "cannot be imported"),
        ("os:sep", "it must be an Algorithm"),
    ],
)
def test_an_unknown_algorithm_is_refused_with_a_remedy(name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        algorithm(algorithm=name)


def test_an_algorithm_of_another_package_gives_advantages_and_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_algorithms"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    config = PolicyConfig.model_validate(REWARDS | {"algorithm": {"algorithm": "my_algorithms:MINE"}}).algorithm
    assert (config.kl.coefficient, config.importance) == (0.0, None)
    mine = resolve_algorithm(config.algorithm)
    assert mine.group_advantages is not None
    (group,) = mine.group_advantages([[1.0, 0.0]], config)
    assert group.advantages == (1.0, -1.0)
    log_probs = torch.full((2, 1), -1.0, requires_grad=True)
    tokens = ResponseTokens(
        mask=torch.ones(2, 1, dtype=torch.bool),
        new=log_probs,
        old=log_probs.detach(),
        advantages=torch.tensor(group.advantages),
    )
    mine.policy_loss(tokens, config, 2.0).value.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.flatten().tolist() == [-0.25, 0.25]
    with pytest.raises(ValidationError, match="is a int; it must be an Algorithm"):
        algorithm(algorithm="my_algorithms:NOT_ONE")


def test_settings_are_read_by_their_old_names() -> None:
    old = {
        "sight": {"stop": True},
        "hacking": None,
        "failures": {"window": 2},
        "patience": {"run_s": 3},
        "algorithm": {"min_spread": 0.5},
    }
    with pytest.warns(FutureWarning, match="'sight' is now 'image_ablation'"):
        config = PolicyConfig.model_validate(REWARDS | old)
    assert (config.image_ablation.stop, config.reward_hacking, config.reward_failures.window) == (True, None, 2)
    assert (config.reward_retry.outage_timeout_s, config.algorithm.min_std) == (3.0, 0.5)
    with pytest.warns(FutureWarning):
        assert PolicyEvaluationConfig.model_validate({"blank": 3}).num_image_ablations == 3
