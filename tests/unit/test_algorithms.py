"""Named algorithms: the defaults they set, their precedence, and algorithms from other packages."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tensors import assert_close

from vlgenrm_ray.policy.algorithms import ALGORITHMS, resolve_algorithm
from vlgenrm_ray.policy.algorithms.algorithm import Algorithm
from vlgenrm_ray.policy.config import AlgorithmConfig, PolicyConfig, PolicyEvaluationConfig
from vlgenrm_ray.policy.losses import PairLogRatios, ResponseTokens, likelihood_loss

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
        ("reinforce_plus_plus", (0.2, 0.2, "token", "tokens", "none", 0.01)),
        ("reinforce_plus_plus_baseline", (0.2, 0.2, "token", "tokens", "none", 0.01)),
        ("ppo", (0.2, 0.28, "token", "tokens", "group", 0.04)),
        ("raft", (0.2, 0.28, "token", "tokens", "none", 0.0)),
    ],
)
def test_defaults_of_named_algorithms(name: str, expected: tuple[Any, ...]) -> None:
    config = algorithm(algorithm=name)
    settings = (config.clip_low, config.clip_high, config.ratio, config.normalise, config.scale, config.kl.coefficient)
    assert settings == expected
    assert config.uses_critic is (name == "ppo")


def test_an_algorithm_has_one_source_of_its_gradient() -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        Algorithm()
    with pytest.raises(ValueError, match="exactly one of"):
        Algorithm(uses_critic=True, pair_loss=lambda pairs, _: pairs.chosen)


def test_reinforce_plus_plus_takes_one_sample_per_question_and_a_kl_penalty_in_the_reward() -> None:
    single = REWARDS | {"rollouts": {"group_size": 1}}
    config = PolicyConfig.model_validate(single | {"algorithm": {"algorithm": "reinforce_plus_plus"}})
    assert (config.algorithm.kl.where, config.algorithm.kl.estimator) == ("reward", "k1")
    with pytest.raises(ValidationError, match=r"rollouts\.group_size \(1\) is below"):
        PolicyConfig.model_validate(single | {"algorithm": {"algorithm": "reinforce_plus_plus_baseline"}})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reinforce_plus_plus", [(1.0, 0.0, None, 0.5), (0.5,) * 4, (0.25, None, None, None)]),
        ("reinforce_plus_plus_baseline", [(0.5, -0.5, None, 0.0), (0.0,) * 4, (None,) * 4]),
        # The best alone; groups that do not differ are not learned from.
        ("raft", [(1.0, None, None, None), (None,) * 4, (None,) * 4]),
    ],
)
def test_advantages_of_groups(name: str, expected: list[tuple[float | None, ...]]) -> None:
    estimate = resolve_algorithm(name).group_advantages
    assert estimate is not None
    groups = estimate([[1.0, 0.0, None, 0.5], [0.5] * 4, [0.25, None, None, None]], algorithm(algorithm=name))
    assert [group.advantages for group in groups] == expected


def test_raft_has_the_loss_of_supervised_fine_tuning_on_the_best_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(5, (2, 3), generator=generator)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    new = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    tokens = ResponseTokens(mask=mask, new=new, old=new.detach(), advantages=torch.ones(2, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(likelihood_loss(tokens, algorithm(algorithm="raft"), 5.0).value, logits)
    expected = torch.nn.functional.cross_entropy(logits[mask], ids[mask])
    assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_dpo_and_mdpo_by_hand() -> None:
    # beta 1/2. DPO: margins 2 and -2 of log-ratios give log(1 + exp(-1)) and log(1 + exp(1)).
    pairs = PairLogRatios(
        chosen=torch.tensor([1.0, -1.0]),
        rejected=torch.tensor([-1.0, 1.0]),
        chosen_other_image=torch.tensor([0.0, 0.0]),
    )
    dpo, mdpo = resolve_algorithm("dpo").pair_loss, resolve_algorithm("mdpo").pair_loss
    assert dpo is not None
    assert mdpo is not None
    config = algorithm(algorithm="mdpo", kl={"coefficient": 0.5})
    by_margin = [math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))]
    assert dpo(pairs, config).tolist() == pytest.approx(by_margin)
    # Conditional on the image: 1/2 x (1 - 0) and 1/2 x (-1 - 0). Anchor: 1/2 x 1 and 1/2 x -1.
    conditional = [math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.5))]
    anchor = conditional
    expected = [sum(terms) for terms in zip(by_margin, conditional, anchor, strict=True)]
    assert mdpo(pairs, config).tolist() == pytest.approx(expected)
    with pytest.raises(ValidationError, match=r"kl\.coefficient is the beta"):
        algorithm(algorithm="dpo", kl={"coefficient": 0.0})
    with pytest.raises(ValueError, match="another image"):
        mdpo(replace(pairs, chosen_other_image=None), config)


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
