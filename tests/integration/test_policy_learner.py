"""What a policy's loss needs of learner and critic, with two workers: ZeRO 0-3 and LoRA.

1. Log-probabilities and entropies are those of a plain forward pass, before and (of the exported folder) after updates.
2. A loss of log-probabilities gives the step that the same loss gives in plain torch; how it is cut does not matter.
3. The reference stays what the learner began with; the weights handed out are what an export writes.
4. A critic learns a constant, and goes on after a restart as if never stopped.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.distributed_learner_worker import (
    CONFIGS,
    CRITIC_KEPT_AT,
    DENOMINATOR,
    ROWS,
    TEMPERATURE,
    WITH_CRITIC,
    batches,
    laboratory,
)
from tests.fp32_model import in_fp32
from tests.plain_inputs import plain_inputs
from tests.tensors import assert_close
from tests.workers import NUM_WORKERS, run_on_workers
from tests.world_examples import examples
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.records import Example
from vlgenrm_ray.shapes import pack_path

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return examples(tmp_path_factory.mktemp("images"), 2)


@pytest.fixture(scope="module")
def folder(made: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what the laboratory found."""
    folder = tmp_path_factory.mktemp("laboratory")
    run_on_workers(laboratory, folder, in_fp32(pack_path("vlm"), folder / "base"), folder, made)
    return folder


def found_by(folder: Path, name: str, worker: int) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = torch.load(folder / name / f"found-{worker}.pt", weights_only=False)
    return found


class Plain:
    """What transformers and torch alone say of both workers' rows."""

    def __init__(self, model: Path, made: list[Example]) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.rows = [batches(model, made, worker, (ROWS,))[0] for worker in range(NUM_WORKERS)]

    def log_probs(self, worker: int, temperature: float = 1.0) -> "tuple[torch.Tensor, torch.Tensor]":
        """Log-probabilities of tokens and entropies, [B, T], 0 outside completions."""
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
def plain(folder: Path, made: list[Example]) -> Plain:
    return Plain(folder / "base", made)


def test_a_rollout_is_the_prompt_and_the_ids(folder: Path, made: list[Example]) -> None:
    from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder

    encoder, e = VlmEncoder(folder / "base", ImageLimits()), made[0]
    written = encoder.encode(e.image, e.prompt, e.completion)
    ids = written.ids[written.num_prompt :]
    assert encoder.rollout(e.image, e.prompt, ids) == written
    assert encoder.rollout(e.image, e.prompt, ids[:3]).ids == written.ids[: written.num_prompt + 3]
    for broken in ((), (ids[0], encoder.image_token)):
        with pytest.raises(TextError):
            encoder.rollout(e.image, e.prompt, broken)


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_and_entropies_are_those_of_a_plain_forward(
    folder: Path, plain: Plain, name: str, worker: int
) -> None:
    found = found_by(folder, name, worker)
    expected, _ = plain.log_probs(worker)
    tempered, entropy = plain.log_probs(worker, TEMPERATURE)
    assert_close(found["before"], expected.detach(), atol=1e-4)
    assert_close(found["tempered"], tempered.detach(), atol=1e-4)
    assert_close(found["learning"], tempered.detach(), atol=1e-4)
    assert_close(found["entropy"], entropy.detach(), atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loss_has_the_gradient_that_plain_torch_has(folder: Path, plain: Plain, name: str) -> None:
    plain.model.zero_grad()
    loss = 0.0
    for worker in range(NUM_WORKERS):
        of_tokens, entropy = plain.log_probs(worker, TEMPERATURE)
        part = -(of_tokens + entropy).sum() / DENOMINATOR
        part.backward()
        loss += float(part.detach())
    step = found_by(folder, name, 0)["steps"][0]
    assert step.loss == pytest.approx(loss, rel=1e-4)
    if name != "lora":
        learns = {n: p for n, p in plain.model.named_parameters() if name != "zero-0" or "visual" not in n}
        norm = sum(float(p.grad.square().sum()) for p in learns.values() if p.grad is not None) ** 0.5
        assert step.grad_norm == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_cuts_and_fillers_change_nothing_and_step_is_the_cross_entropy(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        found = found_by(folder, name, worker)
        for whole, cut in zip(found["steps"], found["cut"], strict=True):
            assert (cut.loss, cut.grad_norm) == pytest.approx((whole.loss, whole.grad_norm), rel=1e-3)
        assert_close(found["cut_after"], found["after"], atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_samples_that_share_their_prompt_are_learnt_as_if_apart(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        found = found_by(folder, name, worker)
        (values, entropy, apart), (same_values, same_entropy, shared) = found["shared: False"], found["shared: True"]
        assert int((values != 0).any(-1).sum()) == 3 * ROWS
        assert_close(same_values, values, atol=1e-4)
        assert_close(same_entropy, entropy, atol=1e-4)
        assert (shared.loss, shared.grad_norm) == pytest.approx((apart.loss, apart.grad_norm), rel=1e-3)


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_critic_says_the_same_of_samples_that_share_their_prompt(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        apart, shared = found_by(folder, name, worker)["critic"]["families"]
        assert float(apart.abs().max()) > 1e-2
        assert_close(shared, apart, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_scalar_that_is_not_finite_accuses_its_micro_batch(folder: Path, name: str) -> None:
    assert found_by(folder, name, 1)["accused"] == [(1, row) for row in range(ROWS - 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gradient_that_is_not_finite_is_not_learnt_from(folder: Path, name: str) -> None:
    """That it is refused the laboratory itself asserts."""
    for worker in range(NUM_WORKERS):
        found = found_by(folder, name, worker)
        assert found["unharmed"].equal(found["cut_after"])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_is_what_the_learner_began_with(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        found = found_by(folder, name, worker)
        assert_close(found["reference"], found["before"], atol=1e-5)
        assert float((found["after"] - found["before"]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_are_those_of_the_export_and_those_that_learnt(
    folder: Path, made: list[Example], name: str
) -> None:
    import torch
    from safetensors.torch import load_file

    exported = load_file(folder / name / "model" / "model.safetensors")
    base = load_file(folder / "base" / "model.safetensors")
    for worker in range(NUM_WORKERS):
        weights = found_by(folder, name, worker)["weights"]
        assert exported.keys() == base.keys() == weights.keys()
        assert all(torch.equal(exported[key], weights[key]) for key in exported)
        after, _ = Plain(folder / name / "model", made).log_probs(worker)
        assert_close(found_by(folder, name, worker)["after"], after.detach(), atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_trained_weights_when_asked(folder: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file

    found, base = found_by(folder, name, 0), load_file(folder / "base" / "model.safetensors")
    changed = {key for key, weight in found["weights"].items() if not torch.equal(weight, base[key])}
    assert changed <= set(found["trained"])
    assert ("model.visual.pos_embed.weight" in found["trained"]) == (name not in ("zero-0", "lora"))
    assert (len(found["trained"]) == len(base)) == (name not in ("zero-0", "lora"))


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_critic_learns_a_constant(folder: Path, name: str) -> None:
    found = found_by(folder, name, 0)["critic"]
    assert all(not values.any() for values in found["begin"])
    assert found["losses"][-1] < 0.2 * found["losses"][0]
    assert all(set(values[values != 0].sign().tolist()) == {1.0} for values in found["end"])


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_a_resumed_critic_goes_on_as_if_never_stopped(folder: Path, name: str) -> None:
    for worker in range(NUM_WORKERS):
        found = found_by(folder, name, worker)["critic"]
        assert found["resumed"] == found["losses"][CRITIC_KEPT_AT:]
        for resumed, end in zip(found["resumed_end"], found["end"], strict=True):
            assert_close(resumed, end, rtol=0.0, atol=0.0)
