"""Parity of the losses with TRL's GRPOTrainer, RLOOTrainer and DPOTrainer on the same tensors: values, gradients.

TRL's own method runs on a stand-in for its trainer, which has the settings and returns the test's log-probabilities
instead of running a model.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tensors import assert_close

from vlgenrm_ray.policy.advantages import group_relative_advantages
from vlgenrm_ray.policy.algorithms.dpo import dpo_loss
from vlgenrm_ray.policy.algorithms.rloo import leave_one_out_advantages
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.losses import Normalise, PairLogRatios, ResponseTokens, loss_denominator, policy_loss

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 9
RLOO = {"algorithm": "rloo"}
CLIP = {"clip_low": 0.1, "clip_high": 0.2}
NORMALISE: dict[str, Normalise] = {
    "grpo": "sequences",
    "bnpo": "tokens",
    "dapo": "tokens",
    "dr_grpo": "constant",
}
"""TRL's loss type -> ours."""


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Input of both, [4, 7] each; responses of 7, 3, 1 and 5 tokens."""

    mask: "torch.Tensor"
    new: "torch.Tensor"
    old: "torch.Tensor"
    reference: "torch.Tensor"
    sampled: "torch.Tensor"
    entropy: "torch.Tensor"
    advantages: "torch.Tensor"


@dataclass(frozen=True, slots=True)
class LossResult:
    """Output of both."""

    loss: float
    gradient: "torch.Tensor"
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def step() -> StepTensors:
    import torch

    generator = torch.Generator().manual_seed(11)
    noise = [0.25 * torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(5)]
    return StepTensors(
        mask=torch.arange(7) < torch.tensor([[7], [3], [1], [5]]),
        new=noise[0] - 2.0,
        old=noise[1] - 2.0,
        reference=noise[2] - 2.0,
        sampled=noise[3] - 2.0,
        entropy=noise[4].exp(),
        advantages=torch.tensor([1.2, -0.7, 0.4, -0.9], dtype=torch.float64),
    )


def ours(step: StepTensors, config: AlgorithmConfig) -> LossResult:
    new = step.new.clone().requires_grad_()
    tokens = ResponseTokens(
        mask=step.mask,
        new=new,
        old=step.old,
        advantages=step.advantages,
        sampled=step.sampled,
        reference=step.reference,
        entropy=step.entropy,
    )
    num_tokens, num_sequences = int(step.mask.sum()), len(step.mask)
    whole = loss_denominator(
        config.normalise, num_tokens=num_tokens, num_sequences=num_sequences, max_tokens=MAX_TOKENS
    )
    loss = policy_loss(tokens, config, whole)
    loss.value.backward()
    return LossResult(loss.value.item(), new.grad, loss.metrics.compute())


def theirs(
    step: StepTensors, loss_type: str, parts: int = 1, weights: "torch.Tensor | None" = None, **values: Any
) -> LossResult:
    """Compute TRL's loss of a step in equal parts, one after the other."""
    import torch
    from accelerate import Accelerator
    from trl import GRPOTrainer

    new = step.new.clone().requires_grad_()
    options = {"importance_sampling_level": "token", "beta": 0.0, "corrected": False, "entropy_coef": 0.0} | values
    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(delta=None, steps_per_generation=parts, use_bias_correction_kl=options["corrected"]),
        model=SimpleNamespace(training=True),
        loss_type=loss_type,
        importance_sampling_level=options["importance_sampling_level"],
        beta=options["beta"],
        entropy_coef=options["entropy_coef"],
        epsilon_low=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        max_completion_length=MAX_TOKENS,
        current_gradient_accumulation_steps=parts,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=True,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=options["entropy_coef"] > 0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(step.mask)).chunk(parts):
        trainer._get_per_token_logps_and_entropies = lambda *_, rows=rows, **__: (new[rows], step.entropy[rows], None)
        ids = torch.zeros(len(rows), step.mask.shape[1], dtype=torch.long)
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": step.mask[rows].long(),
            "advantages": step.advantages[rows],
            "old_per_token_logps": step.old[rows],
            "ref_per_token_logps": step.reference[rows],
            "num_items_in_batch": step.mask.sum(),
        }
        if weights is not None:
            inputs["importance_sampling_ratio"] = weights[rows]
        total = total + GRPOTrainer._compute_loss(trainer, None, inputs)
    total.backward()
    metrics = trainer._metrics["train"]
    return LossResult(total.item(), new.grad, {name: sum(v) / len(v) for name, v in metrics.items()})


def config(loss_type: str, **values: Any) -> AlgorithmConfig:
    plain: dict[str, Any] = {"kl": {"coefficient": 0.0}, "importance": None}
    return AlgorithmConfig.model_validate(plain | CLIP | {"normalise": NORMALISE[loss_type]} | values)


def assert_same(mine: LossResult, other: LossResult) -> None:
    assert mine.loss == pytest.approx(other.loss, rel=1e-5)
    assert abs(mine.loss) > 1e-3
    assert_close(mine.gradient, other.gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("loss_type", "parts"), [("grpo", 1), ("grpo", 2), ("bnpo", 1), ("dapo", 2), ("dr_grpo", 2)])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_clipped_loss(step: StepTensors, loss_type: str, parts: int, ratio: str) -> None:
    mine = ours(step, config(loss_type, ratio=ratio))
    other = theirs(step, loss_type, parts, importance_sampling_level=ratio)
    assert_same(mine, other)
    assert (mine.gradient == 0.0).sum() > (~step.mask).sum(), "nothing was clipped"


def test_clipped_shares(step: StepTensors) -> None:
    mine, other = ours(step, config("dapo")).metrics, theirs(step, "dapo").metrics
    assert 0 < mine["clip_low"] == pytest.approx(other["clip_ratio/low_mean"])
    assert 0 < mine["clip_high"] == pytest.approx(other["clip_ratio/high_mean"])
    assert mine["entropy"] == pytest.approx(other["entropy"])


@pytest.mark.parametrize("loss_type", list(NORMALISE))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kl_penalty(step: StepTensors, loss_type: str, weighted: bool) -> None:
    kl = {"coefficient": 0.3, "estimator": "k3", "weighted": weighted}
    mine, other = ours(step, config(loss_type, kl=kl)), theirs(step, loss_type, beta=0.3, corrected=weighted)
    assert_same(mine, other)
    if not weighted:
        assert mine.metrics["reference_kl"] == pytest.approx(other.metrics["kl"])


def test_the_entropy_bonus_of_a_mean_over_tokens(step: StepTensors) -> None:
    assert_same(ours(step, config("dapo", entropy_coefficient=0.2)), theirs(step, "dapo", entropy_coef=0.2))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("outside", ["truncate", "mask"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_importance_weights(step: StepTensors, loss_type: str, level: str, outside: str) -> None:
    """TRL computes its weights while sampling, which cannot be called alone; here they follow its documentation."""
    difference = ((step.old - step.sampled) * step.mask).double()
    raw = (difference.sum(-1, keepdim=True) if level == "sequence" else difference).exp()
    low, high = (0.8, 1.25) if level == "token" else (0.7, 1.5)
    weights = raw.clamp(low, high) if outside == "truncate" else raw * ((raw >= low) & (raw <= high))
    importance = {"level": level, "outside": outside, "low": low, "high": high}
    kl = {"coefficient": 0.3, "weighted": False}
    mine = ours(step, config(loss_type, importance=importance, kl=kl))
    assert_same(mine, theirs(step, loss_type, weights=weights, beta=0.3))
    assert 0 < mine.metrics["importance_outside"] < 1


def test_the_std_of_a_group_with_unscored_samples() -> None:
    import torch
    from trl.trainer.utils import nanstd

    [group] = group_relative_advantages([[0.9, None, 0.2, 0.4]], AlgorithmConfig())
    rewards = torch.tensor([0.9, float("nan"), 0.2, 0.4], dtype=torch.float64)
    expected = ((rewards - rewards.nanmean()) / nanstd(rewards)).tolist()
    assert group.advantages[1] is None
    assert [a for a in group.advantages if a is not None] == pytest.approx([expected[0], *expected[2:]])


def test_leave_one_out_advantages_with_an_unscored_sample() -> None:
    """TRL computes them inside its trainer; here are the lines of `RLOOTrainer._generate_and_score_completions`."""
    import torch

    rewards = torch.tensor([0.9, 0.1, float("nan"), 0.4, 1.0, 0.0, 0.0, 0.5], dtype=torch.float64)
    grouped_rewards = rewards.view(-1, 4)
    scorable_counts = (~torch.isnan(grouped_rewards)).sum(dim=1, keepdim=True)
    grouped_sum = torch.nansum(grouped_rewards, dim=1, keepdim=True)
    expected = (grouped_rewards - (grouped_sum - grouped_rewards) / (scorable_counts - 1)).tolist()
    groups = leave_one_out_advantages([[0.9, 0.1, None, 0.4], [1.0, 0.0, 0.0, 0.5]], AlgorithmConfig(algorithm="rloo"))
    advantages = [float("nan") if a is None else a for group in groups for a in group.advantages]
    assert advantages == pytest.approx([a for group in expected for a in group], nan_ok=True)


def test_rloo_has_trls_gradient_on_the_first_update_of_a_step(step: StepTensors) -> None:
    """TRL clips the ratio of a whole response, we that of a token; while all ratios are 1 they differ by a factor."""
    from accelerate import Accelerator
    from trl import RLOOTrainer

    on_policy = replace(step, old=step.new)
    mine = ours(on_policy, AlgorithmConfig.model_validate(RLOO | {"kl": {"coefficient": 0.0}, "importance": None}))
    new = step.new.clone().requires_grad_()
    trainer = SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        model=SimpleNamespace(training=True),
        epsilon_low=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, step.entropy, None),
    )
    ids = step.mask.long()
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": ids,
        "advantages": step.advantages,
        "old_logps": (step.new * step.mask).sum(1).detach(),
    }
    RLOOTrainer._compute_loss(trainer, None, inputs).backward()
    assert_close(mine.gradient * MAX_TOKENS, new.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_of_dpo(step: StepTensors, beta: float) -> None:
    """The first two responses of the step are chosen, the others rejected."""
    import torch
    from accelerate import Accelerator
    from trl import DPOTrainer

    mine, other = (step.new.clone().requires_grad_() for _ in range(2))
    ratios = ((mine - step.reference) * step.mask).sum(-1)
    config = AlgorithmConfig.model_validate({"algorithm": "dpo", "kl": {"coefficient": beta}})
    dpo_loss(PairLogRatios(chosen=ratios[:2], rejected=ratios[2:]), config).mean().backward()

    def output_of(log_probs: "torch.Tensor") -> SimpleNamespace:
        masked = log_probs * step.mask
        return SimpleNamespace(log_probs=masked, entropy=step.entropy, mean_logits=masked.detach(), is_top1=step.mask)

    model = torch.nn.Identity()
    model.is_gradient_checkpointing = False
    trainer = SimpleNamespace(
        model=model,
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        ref_model=lambda **_: output_of(step.reference),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    # TRL's masks are those of prompt and completion, whose first token has no log-probability.
    mask = torch.nn.functional.pad(step.mask.long(), (1, 0))
    inputs = {"completion_mask": mask, "input_ids": mask, "attention_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, lambda **_: output_of(other), inputs, False)
    loss.backward()
    assert float(loss) == pytest.approx(
        float(dpo_loss(PairLogRatios(chosen=ratios[:2], rejected=ratios[2:]), config).mean())
    )
    assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-7)
