"""The learner in bf16, in which GPUs train: every ZeRO stage, adapters, checkpoints and exports, on two workers.

bf16 has 8 bits: log-probabilities around -5 are exact to about 0.03, and sums in another order differ by several times
that. What must be equal exactly is stated so: a resumed training, the reference model, the names of weights.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from bf16_learner_worker import CONFIGS, largest_difference, run_bf16_checks
from model_families_folders import FAMILIES, write_family
from workers import NUM_WORKERS, run_on_workers

ROUNDING = 0.15
"""Largest difference of log-probabilities that differ only in the order of sums in bf16."""
FAMILY_CASES = [(family, tied) for family in FAMILIES for tied in (True, False)]
BF16 = [name for name in CONFIGS if name != "fp32"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=FAMILY_CASES, ids=lambda case: f"{case[0]}-{'tied' if case[1] else 'untied'}")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Base folder, folder of the exports, and results by configuration and rank."""
    import torch

    family, tied = request.param
    base = write_family(tmp_path_factory.mktemp("base") / family, family, tied=tied)
    folder = tmp_path_factory.mktemp("trained")
    run_on_workers(run_bf16_checks, folder, base, folder)
    ranks = range(NUM_WORKERS)
    return base, folder, {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in ranks] for name in CONFIGS}


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_losses_fall_as_in_fp32(trained: tuple[Path, Path, Any]) -> None:
    *_, results = trained
    exact = results["fp32"][0]["losses"]
    for name in BF16:
        losses = results[name][0]["losses"]
        assert all(map(math.isfinite, losses)), name
        assert losses == results[name][1]["losses"], "a loss is the sum over all workers"
        assert losses[0] == pytest.approx(exact[0], rel=0.02), name
        assert losses[-1] < losses[0], name
        if "lora" not in name:
            assert losses[-1] == pytest.approx(exact[-1], rel=0.1), name


@pytest.mark.parametrize("name", BF16)
def test_a_resumed_training_continues_exactly(trained: tuple[Path, Path, Any], name: str) -> None:
    *_, results = trained
    for result in results[name]:
        assert result["resumed"] == result["losses"][-len(result["resumed"]) :]
        assert largest_difference(result["resumed_after"], result["after"]) == 0.0


@pytest.mark.parametrize("name", BF16)
def test_the_reference_stays_the_initial_model(trained: tuple[Path, Path, Any], name: str) -> None:
    *_, results = trained
    for result in results[name]:
        assert largest_difference(result["reference"], result["before"]) <= ROUNDING
        assert largest_difference(result["after"], result["before"]) > 2 * ROUNDING


@pytest.mark.parametrize("name", BF16)
def test_samples_that_share_a_prompt_have_the_values_of_rows_of_their_own(
    trained: tuple[Path, Path, Any], name: str
) -> None:
    *_, results = trained
    for result in results[name]:
        assert largest_difference(result["shared"], result["before"]) <= ROUNDING
        assert math.isfinite(result["shared_loss"])


@pytest.mark.parametrize("name", BF16)
def test_an_export_is_the_trained_model_under_the_hubs_names(trained: tuple[Path, Path, Any], name: str) -> None:
    base, folder, results = trained
    before, after = stored(base), stored(folder / name / "model")
    assert after.keys() == before.keys()
    assert {tensor.dtype for tensor in after.values()} == {tensor.dtype for tensor in before.values()}
    changed = {key for key in before if not before[key].equal(after[key])}
    frozen_tower = CONFIGS[name].freeze_vision or CONFIGS[name].lora is not None
    assert any("visual" in key for key in changed) != frozen_tower
    assert any("layers.1" in key for key in changed)
    for result in results[name]:
        assert set(result["trained"]) >= changed
        assert largest_difference(result["exported"], result["after"]) <= ROUNDING
