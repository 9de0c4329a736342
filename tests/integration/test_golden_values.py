"""Golden values that a refactoring must not change: GRPO and PPO steps, and a judge's rewards.

Those of whole trainings are in test_training.py and test_policy_training.py. To regenerate them, see `golden_files`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import policy_runs
import pytest
from factories import rollout
from golden_files import by_metric, compare, cpu_only
from workers import run_on_workers

from vlgenrm_ray import config
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.records import Preference, Rollout
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.pairs import gold_pairs

pytestmark = cpu_only

SEED = 23

POLICY = ("policy.steps=3", "policy.updates_per_step=2", "policy.engine.precision=fp32", "policy.engine.zero_stage=1")
ALGORITHMS = {
    "grpo": (),
    "ppo": (
        "policy.steps=2",
        "policy.algorithm.algorithm=ppo",
        "policy.algorithm.kl.where=reward",
        "policy.algorithm.kl.estimator=k1",
        "policy.critic.learning_rate=3e-3",
        "policy.critic.freeze_vision=false",
        "policy.critic.precision=fp32",
    ),
}
METRICS = (
    "loss",
    "grad_norm",
    "reference_kl",
    "step_kl",
    "entropy",
    "ratio",
    "clip_low",
    "clip_high",
    "mismatch",
    "importance_weight",
    "value_loss",
    "value_grad_norm",
    "value_error",
)
"""Metrics of a step; the `value_*` ones belong to PPO's critic."""

JUDGE = ("judge.num_critiques=2", "evaluation.engine.kv_cache_gib=0.05", "evaluation.engine.threads=1")


@pytest.fixture(scope="module")
def learner_metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """Run the learner of every algorithm on the same rollouts; return the metrics of each step."""
    folder = tmp_path_factory.mktemp("learner")
    recipe = policy_runs.write_recipe(folder)
    settings = {name: config.load_policy(recipe, (*POLICY, *more)).policy for name, more in ALGORITHMS.items()}
    pairs = list(gold_pairs(folder / "images", seed=SEED, split="train", count=4))
    run_on_workers(learn, folder, folder / "metrics.json", settings, pairs)
    metrics: dict[str, list[dict[str, float]]] = json.loads((folder / "metrics.json").read_text())
    return metrics


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_golden_steps_of_a_policy_learner(learner_metrics: dict[str, list[dict[str, float]]], algorithm: str) -> None:
    steps = learner_metrics[algorithm]
    compare(f"learner_{algorithm}", by_metric(steps, *(name for name in METRICS if name in steps[0])), 1e-5)


def learn(target: Path, settings: Mapping[str, Any], pairs: Sequence[Preference]) -> None:
    """Entry point of the workers: take the steps of each algorithm; rank 0 writes their metrics to `target`."""
    import torch.distributed as dist

    from vlgenrm_ray.engines.critic import Critic
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder
    from vlgenrm_ray.policy.batching import build_training_samples, plan_micro_batches
    from vlgenrm_ray.policy.updater import PolicyUpdater

    base = pack_path("vlm")
    metrics: dict[str, list[dict[str, float]]] = {}
    for name, its in settings.items():
        learner = Learner(base, its.engine, seed=0, keep_reference=True)
        critic = Critic(base, its.critic, seed=0) if name == "ppo" else None
        encoder = VlmEncoder(base, its.images)
        updater = PolicyUpdater(its, encoder, learner, critic, rank=dist.get_rank())
        groups = rollouts(encoder, learner, pairs)
        metrics[name] = []
        for step in range(its.steps):
            samples = build_training_samples(groups, its, encoder)
            assert not samples.num_skipped
            batch = plan_micro_batches(
                samples.samples,
                shared_width=learner.shared_width,
                step=step,
                seed=its.seed,
                num_updates=its.updates_per_step,
                tokens_per_batch=its.tokens_per_batch,
                num_workers=dist.get_world_size(),
            )
            metrics[name].append(updater.update(batch, step=step))
        learner.close()
        if critic is not None:
            critic.close()
    if dist.get_rank() == 0:
        target.write_text(json.dumps(metrics))


def rollouts(encoder: Any, learner: Any, pairs: Sequence[Preference]) -> list[tuple[Rollout, ...]]:
    """Build one group of rollouts per pair: a right, a wrong, a truncated and an unrelated answer, with fixed rewards.

    One group has equal rewards, and another lacks its last one. Log-probabilities are the learner's plus up to 0.3.
    """
    rewards: list[tuple[float | None, ...]] = [
        (1.0, 0.0, 0.6, 0.3),
        (0.7, 0.2, 0.9, 0.1),
        (0.5, 0.5, 0.5, 0.5),
        (0.8, 0.1, 0.4, None),
    ]
    groups = []
    for number, pair in enumerate(pairs):
        image, asked = pair.question.image, pair.question.text
        answers = [pair.chosen, pair.rejected, pair.chosen, pairs[number - 1].chosen]
        written = [encoder.encode((image,), asked, answer) for answer in answers]
        ids = [tokens.ids[tokens.num_prompt :] for tokens in written]
        ids[2] = ids[2][: len(ids[2]) // 2]
        samples = [encoder.encode_rollout((image,), asked, of) for of in ids]
        (values,) = learner.logprobs([encoder.batch([(tokens, (image,), 1.0) for tokens in samples])])
        groups.append(
            tuple(
                rollout(
                    f"{pair.question.id}/s0/r{place}",
                    question=pair.question,
                    ids=ids[place],
                    logprobs=tuple(
                        value + 0.3 * math.sin(at)
                        for at, value in enumerate(values[place, tokens.num_prompt : len(tokens)].tolist())
                    ),
                    text=answers[place],
                    finish="length" if place == 2 else "stop",
                    reward=reward,
                    status="timeout" if reward is None else "ok",
                )
                for place, (tokens, reward) in enumerate(zip(samples, rewards[number], strict=True))
            )
        )
    return groups


def test_golden_rewards_of_a_judge(tmp_path: Path) -> None:
    """Judge both sides of held-out pairs, with critiques and in direct mode."""
    from vlgenrm_ray.engines.vllm import VllmGenerator
    from vlgenrm_ray.judge.judge import Judge, JudgeInput

    settings = config.load(shipped_recipe("shapes"), JUDGE)
    items = [
        JudgeInput(
            id=f"{pair.id}/{side}", images=(pair.question.image,), question=pair.question.text, response=response
        )
        for pair in gold_pairs(tmp_path, seed=SEED, split="heldout", count=12)
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]
    generator = VllmGenerator(settings.evaluation.engine.model_copy(update={"model": str(pack_path("vlm"))}))
    rewards = {}
    for mode in ("cot", "direct"):
        judged = Judge(settings.judge.model_copy(update={"mode": mode}), generator).score(items)
        rewards[mode] = {one.id: one.reward for one in judged}
    generator.close()
    compare("rewards", rewards, 1e-6)
