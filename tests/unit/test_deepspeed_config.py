"""Settings of training, learning-rate schedule and DeepSpeed's configuration."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.engines.deepspeed import Learner
from vlgenrm_ray.engines.deepspeed_config import (
    DeepSpeedConfig,
    LoraConfig,
    engine_settings,
    frozen_settings,
    lr_factor,
    worker_environment,
)


def test_cosine_schedule_by_hand() -> None:
    config = DeepSpeedConfig(schedule="cosine", warmup_ratio=0.2, min_lr_ratio=0.1)
    factors = [lr_factor(step, 10, config) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[-1] == pytest.approx(0.1)
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_constant_schedule_by_hand() -> None:
    config = DeepSpeedConfig(schedule="constant", warmup_ratio=0.25)
    assert [lr_factor(step, 8, config) for step in range(8)] == [0.5, 1, 1, 1, 1, 1, 1, 1]


@given(st.integers(1, 300), st.floats(0, 0.99), st.floats(0, 1), st.sampled_from(["cosine", "constant"]))
def test_the_learning_rate_is_never_zero_nor_above_its_maximum(
    total: int, warmup: float, least: float, schedule: str
) -> None:
    config = DeepSpeedConfig.model_validate({"schedule": schedule, "warmup_ratio": warmup, "min_lr_ratio": least})
    for step in range(total):
        share = lr_factor(step, total, config)
        assert min(least, 1 / total) - 1e-9 <= share <= 1.0 + 1e-9


def test_offload_must_fit_the_stage() -> None:
    with pytest.raises(ValidationError, match="offload = cpu needs zero_stage 2 or 3, got 1"):
        DeepSpeedConfig(zero_stage=1, offload="cpu")
    with pytest.raises(ValidationError, match="offload = nvme needs zero_stage = 3 and nvme_path"):
        DeepSpeedConfig(zero_stage=3, offload="nvme")


def test_lora_needs_a_rank() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        LoraConfig(rank=0)


def test_zero_0_in_bf16_runs_under_autocast_with_whole_weights() -> None:
    settings = engine_settings(DeepSpeedConfig(zero_stage=0, precision="bf16"), gpu=False)
    assert settings["torch_autocast"]["enabled"]
    assert not settings["bf16"]["enabled"]


def test_zero_3_offloads_weights_as_well() -> None:
    cpu = DeepSpeedConfig(zero_stage=3, offload="cpu")
    zero = engine_settings(cpu, gpu=True)["zero_optimization"]
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert (
        "offload_param"
        not in engine_settings(DeepSpeedConfig(zero_stage=2, offload="cpu"), gpu=True)["zero_optimization"]
    )
    nvme = DeepSpeedConfig(zero_stage=3, offload="nvme", nvme_path="/fast")
    assert engine_settings(nvme, gpu=True)["zero_optimization"]["offload_param"]["nvme_path"] == "/fast"


def test_a_cpu_worker_has_the_cpu_accelerator_and_sleeping_threads() -> None:
    there = worker_environment(2, gpu=False)
    assert there["DS_ACCELERATOR"] == "cpu"
    assert (there["OMP_NUM_THREADS"], there["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    assert "DS_ACCELERATOR" not in worker_environment(2, gpu=True)


def test_precision_follows_the_device_unless_named() -> None:
    for gpu in (True, False):
        assert engine_settings(DeepSpeedConfig(), gpu=gpu)["bf16"]["enabled"] is gpu
        assert engine_settings(DeepSpeedConfig(precision="bf16"), gpu=gpu)["bf16"]["enabled"]
        assert not engine_settings(DeepSpeedConfig(precision="fp32"), gpu=gpu)["bf16"]["enabled"]


@pytest.mark.parametrize("gpu", [True, False])
def test_a_frozen_model_is_sharded_only_in_zero_3(gpu: bool) -> None:
    for stage in (0, 1, 2):
        settings = engine_settings(DeepSpeedConfig.model_validate({"zero_stage": stage}), gpu=gpu)
        frozen = frozen_settings(settings)
        assert frozen["zero_optimization"] == {"stage": 0}
        assert (frozen["bf16"], frozen["torch_autocast"]) == (settings["bf16"], settings["torch_autocast"])
    zero = frozen_settings(engine_settings(DeepSpeedConfig(zero_stage=3, offload="cpu"), gpu=gpu))["zero_optimization"]
    assert zero["stage"] == 3
    assert "offload_param" in zero
    assert "offload_optimizer" not in zero


def test_samples_have_rows_of_their_own_where_the_settings_say_so() -> None:
    """A learner that gives no width shares no rows (`batching`, `preference_pairs`)."""
    for shared, expected in ((True, 64), (False, None)):
        learner = Learner.__new__(Learner)
        learner.config = DeepSpeedConfig(shared_prompts=shared)
        learner.module = SimpleNamespace(
            config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=64, layer_types=None))
        )
        assert learner.shared_width == expected
