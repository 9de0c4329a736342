"""Arguments and environment that follow from an engine's settings, without the engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.engines import environment, vllm_config
from vlgenrm_ray.engines.vllm import VllmConfig, mix_seed


def test_on_the_cpu_prompts_are_prefilled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_config, "_on_cpu", lambda: True)
    arguments = vllm_config.engine_arguments(VllmConfig(max_model_len=8192, kv_cache_gib=0.5), 262_144)
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["block_size"] == 32
    assert arguments["max_num_batched_tokens"] == 8192
    assert arguments["kv_cache_memory_bytes"] == 1 << 29
    assert arguments["enforce_eager"] is True


def test_on_a_gpu_the_rest_is_vllms_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_config, "_on_cpu", lambda: False)
    arguments = vllm_config.engine_arguments(VllmConfig(vllm_args={"load_format": "dummy"}), None)
    assert "kv_cache_memory_bytes" not in arguments
    assert "enable_chunked_prefill" not in arguments
    assert (arguments["dtype"], arguments["enforce_eager"], arguments["load_format"]) == ("auto", False, "dummy")


def test_a_cpu_uses_float32_whatever_else_it_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_config, "_on_cpu", lambda: True)
    assert vllm_config.engine_arguments(VllmConfig(), None)["dtype"] == "float32"
    assert vllm_config.engine_arguments(VllmConfig(dtype="bfloat16"), None)["dtype"] == "bfloat16"


def test_max_model_len_is_limited_by_the_model() -> None:
    assert vllm_config.engine_arguments(VllmConfig(max_model_len=4096), 512)["max_model_len"] == 512


def test_an_engine_accepts_the_configured_number_of_images() -> None:
    assert vllm_config.engine_arguments(VllmConfig(), 512)["limit_mm_per_prompt"] == {"image": 1, "video": 0}
    assert vllm_config.engine_arguments(VllmConfig(max_images=8), 512)["limit_mm_per_prompt"]["image"] == 8


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not environment.has_gpu()


def test_threads_are_few_and_sleep_while_they_wait() -> None:
    variables = environment.thread_variables(2)
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("settings", [{"max_model_len": 0}, {"gpu_memory_utilization": 1.5}, {"dtypes": "auto"}])
def test_settings_out_of_range_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        VllmConfig.model_validate(settings)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_neighbouring_seeds_are_spread_far_apart(first: int, second: int) -> None:
    assert 0 <= mix_seed(first) < 2**62
    if first != second:
        assert abs(mix_seed(first) - mix_seed(second)) > 256, "the samples of two prompts must not share their seeds"
