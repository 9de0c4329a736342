"""Learner and critic under a policy's loss, with two workers: ZeRO 0-3 and LoRA.

1. Log-probabilities and entropies equal those of a plain forward pass, before updates and (of the export) after.
2. A loss of log-probabilities gives the same step as in plain torch, whatever the division into micro-batches.
3. The reference stays the initial model; the weights for the engines equal those of an export.
4. A critic learns a constant, and resumes bit for bit.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from distributed_learner_worker import (
    CONFIGS,
    CRITIC_SAVED_AT,
    DENOMINATOR,
    ROWS,
    TEMPERATURE,
    WITH_CRITIC,
    batches,
    run_learner_checks,
)
from fp32_model import copy_in_fp32
from plain_inputs import plain_inputs
from tensors import assert_close
from workers import NUM_WORKERS, run_on_workers
from world_examples import draw_examples

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.records import Example
from vlgenrm_ray.shapes import pack_path

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return draw_examples(tmp_path_factory.mktemp("images"), 2)


@pytest.fixture(scope="module")
def folder(samples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the results."""
    folder = tmp_path_factory.mktemp("results")
    run_on_workers(run_learner_checks, folder, copy_in_fp32(pack_path("vlm"), folder / "base"), folder, samples)
    return folder


def results_of(folder: Path, name: str, worker: int) -> dict[str, Any]:
    import torch

    results: dict[str, Any] = torch.load(folder / name / f"results-{worker}.pt", weights_only=False)
    return results


class PlainModel:
    """The same model in plain transformers, on the rows of both workers."""

    def __init__(self, model: Path, samples: list[Example]) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.rows = [batches(model, samples, worker, (ROWS,))[0] for worker in range(NUM_WORKERS)]

    def log_probs(self, worker: int, temperature: float = 1.0) -> "tuple[torch.Tensor, torch.Tensor]":
        """Compute log-probabilities and entropies of tokens, [B, T]; 0 outside completions."""
        import torch

        batch = self.rows[worker]
        every = (self.model(**plain_inputs(batch)).logits / temperature).log_softmax(-1)
        of_tokens = every[:, :-1].gather(-1, batch.inputs["input_ids"][:, 1:, None]).squeeze(-1)
        entropy = torch.distributions.Categorical(logits=every[:, :-1]).entropy()
        # The first token of a row has none before it.
        first = torch.zeros(ROWS, 1)
        mask = batch.weights > 0
        return torch.cat([first, of_tokens], 1) * mask, torch.cat([first, entropy], 1) * mask


@pytest.fixture(scope="module")
def plain(folder: Path, samples: list[Example]) -> PlainModel:
    return PlainModel(folder / "base", samples)


def test_a_rollout_is_the_prompt_and_the_ids(folder: Path, samples: list[Example]) -> None:
    from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder

    encoder, e = VlmEncoder(folder / "base", ImageLimits()), samples[0]
    written = encoder.encode(e.images, e.prompt, e.completion)
    ids = written.ids[written.num_prompt :]
    assert encoder.encode_rollout(e.images, e.prompt, ids) == written
    assert encoder.encode_rollout(e.images, e.prompt, ids[:3]).ids == written.ids[: written.num_prompt + 3]
    for broken in ((), (ids[0], encoder.image_token)):
        with pytest.raises(TextError):
            encoder.encode_rollout(e.images, e.prompt, broken)


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_and_entropies_are_those_of_a_plain_forward(
    folder: Path, plain: PlainModel, name: str, worker: int
) -> None:
    results = results_of(folder, name, worker)
    expected, _ = plain.log_probs(worker)
    tempered, entropy = plain.log_probs(worker, TEMPERATURE)
    assert_close(results["before"], expected.detach(), atol=1e-4)
    assert_close(results["tempered"], tempered.detach(), atol=1e-4)
    assert_close(results["training"], tempered.detach(), atol=1e-4)
    assert_close(results["entropy"], entropy.detach(), atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loss_has_the_gradient_that_plain_torch_has(folder: Path, plain: PlainModel, name: str) -> None:
    plain.model.zero_grad()
    loss = 0.0
    for worker in range(NUM_WORKERS):
        of_tokens, entropy = plain.log_probs(worker, TEMPERATURE)
        part = -(of_tokens + entropy).sum() / DENOMINATOR
        part.backward()
        loss += float(part.detach())
    step = results_of(folder, name, 0)["steps"][0]
    assert step.loss == pytest.approx(loss, rel=1e-4)
    if name != "lora":
        learns = {n: p for n, p in plain.model.named_parameters() if name != "zero-0" or "visual" not in n}
        norm = sum(float(p.grad.square().sum()) for p in learns.values() if p.grad is not None) ** 0.5
        assert step.grad_norm == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_division_and_fillers_change_nothing_and_step_is_the_cross_entropy(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        results = results_of(folder, name, worker)
        for whole, cut in zip(results["steps"], results["cut"], strict=True):
            assert (cut.loss, cut.grad_norm) == pytest.approx((whole.loss, whole.grad_norm), rel=1e-3)
        assert_close(results["cut_after"], results["after"], atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_prompts_train_like_separate_rows(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        results = results_of(folder, name, worker)
        (values, entropy, apart), (same_values, same_entropy, shared) = (
            results["shared: False"],
            results["shared: True"],
        )
        assert int((values != 0).any(-1).sum()) == 3 * ROWS
        assert_close(same_values, values, atol=1e-4)
        assert_close(same_entropy, entropy, atol=1e-4)
        assert (shared.loss, shared.grad_norm) == pytest.approx((apart.loss, apart.grad_norm), rel=1e-3)


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_critic_gives_the_same_values_with_shared_prompts(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        apart, shared = results_of(folder, name, worker)["critic"]["shared_prompts"]
        assert float(apart.abs().max()) > 1e-2
        assert_close(shared, apart, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_non_finite_loss_names_the_examples_of_its_micro_batch(folder: Path, name: str) -> None:
    assert results_of(folder, name, 1)["non_finite_examples"] == [(1, row) for row in range(ROWS - 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_non_finite_gradient_leaves_the_weights_unchanged(folder: Path, name: str) -> None:
    """`run_learner_checks` asserts that the step is refused."""
    for worker in range(NUM_WORKERS):
        results = results_of(folder, name, worker)
        assert results["after_failed_steps"].equal(results["cut_after"])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_is_the_initial_model(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        results = results_of(folder, name, worker)
        assert_close(results["reference"], results["before"], atol=1e-5)
        assert float((results["after"] - results["before"]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_equal_those_of_the_export(folder: Path, samples: list[Example], name: str) -> None:
    import torch
    from safetensors.torch import load_file

    exported = load_file(folder / name / "model" / "model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    for worker in range(NUM_WORKERS):
        weights = results_of(folder, name, worker)["weights"]
        assert exported.keys() == base.keys() == weights.keys()
        assert all(torch.equal(exported[key], weights[key]) for key in exported)
        after, _ = PlainModel(folder / name / "model", samples).log_probs(worker)
        assert_close(results_of(folder, name, worker)["after"], after.detach(), atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_only_leaves_out_frozen_weights(folder: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file

    results, base = results_of(folder, name, 0), load_file(folder / "base" / "model.safetensors")
    changed = {key for key, weight in results["weights"].items() if not torch.equal(weight, base[key])}
    assert changed <= set(results["trained"])
    assert ("model.visual.pos_embed.weight" in results["trained"]) == (name not in ("zero-0", "lora"))
    assert (len(results["trained"]) == len(base)) == (name not in ("zero-0", "lora"))


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_critic_learns_a_constant(folder: Path, name: str) -> None:
    results = results_of(folder, name, 0)["critic"]
    assert all(not values.any() for values in results["begin"])
    assert results["losses"][-1] < 0.2 * results["losses"][0]
    assert all(set(values[values != 0].sign().tolist()) == {1.0} for values in results["end"])


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_resumed_critic_continues_bit_for_bit(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        results = results_of(folder, name, worker)["critic"]
        assert results["resumed"] == results["losses"][CRITIC_SAVED_AT:]
        for resumed, end in zip(results["resumed_end"], results["end"], strict=True):
            assert_close(resumed, end, rtol=0.0, atol=0.0)
