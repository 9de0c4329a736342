"""Arguments and environment that follow from an engine's settings, without the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vlgenrm_ray.engines import environment, vllm_config
from vlgenrm_ray.engines.vllm import VllmConfig, mix_seed


def folder(target: Path, positions: int | None = None, **configuration: Any) -> Path:
    """A model folder with a configuration only."""
    text = {} if positions is None else {"max_position_embeddings": positions}
    (target / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": text} | configuration))
    return target


def test_on_the_cpu_prompts_are_prefilled_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_config, "on_cpu", lambda: True)
    arguments = vllm_config.engine_arguments(
        VllmConfig(max_model_len=8192, kv_cache_gib=0.5), folder(tmp_path, 262_144)
    )
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["block_size"] == 32
    assert arguments["max_num_batched_tokens"] == 8192
    assert arguments["kv_cache_memory_bytes"] == 1 << 29
    assert arguments["enforce_eager"] is True


def test_on_a_gpu_the_rest_is_vllms_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_config, "on_cpu", lambda: False)
    arguments = vllm_config.engine_arguments(VllmConfig(vllm_args={"load_format": "dummy"}), folder(tmp_path))
    assert "kv_cache_memory_bytes" not in arguments
    assert "enable_chunked_prefill" not in arguments
    assert (arguments["dtype"], arguments["enforce_eager"], arguments["load_format"]) == ("auto", False, "dummy")


def test_a_cpu_uses_float32_whatever_else_it_computes_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_config, "on_cpu", lambda: True)
    assert vllm_config.engine_arguments(VllmConfig(), folder(tmp_path))["dtype"] == "float32"
    assert vllm_config.engine_arguments(VllmConfig(dtype="bfloat16"), folder(tmp_path))["dtype"] == "bfloat16"


@pytest.mark.parametrize(("setting", "cpu", "expected"), [(None, True, 256), (None, False, None), (7, False, 7)])
def test_a_gpu_decodes_as_many_sequences_as_vllm_chooses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: int | None, cpu: bool, expected: int | None
) -> None:
    monkeypatch.setattr(vllm_config, "on_cpu", lambda: cpu)
    arguments = vllm_config.engine_arguments(VllmConfig(max_num_seqs=setting), folder(tmp_path))
    assert arguments["max_num_seqs"] == expected


def test_max_model_len_is_limited_by_the_model(tmp_path: Path) -> None:
    assert vllm_config.engine_arguments(VllmConfig(max_model_len=4096), folder(tmp_path, 512))["max_model_len"] == 512


def test_an_engine_accepts_the_configured_number_of_images(tmp_path: Path) -> None:
    assert vllm_config.engine_arguments(VllmConfig(), folder(tmp_path))["limit_mm_per_prompt"] == {
        "image": 1,
        "video": 0,
    }
    assert vllm_config.engine_arguments(VllmConfig(max_images=8), folder(tmp_path))["limit_mm_per_prompt"]["image"] == 8


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


def test_no_engine_compiles_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer's needs nvcc and the headers of curand, which a node may not have."""
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    for cpu in (True, False):
        monkeypatch.setattr(vllm_config, "on_cpu", lambda cpu=cpu: cpu)
        assert vllm_config.environment(VllmConfig())["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert vllm_config.environment(VllmConfig())["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


@pytest.mark.parametrize(
    ("configuration", "overrides"),
    [
        ({"model_type": "qwen3_vl"}, {"text_config": {"architectures": ["Qwen3ForCausalLM"]}}),
        ({"model_type": "qwen3_vl", "text_config": {"architectures": ["Mine"]}}, None),
        ({"model_type": "qwen2_5_vl"}, None),
    ],
)
def test_a_published_folder_gets_the_architecture_that_vllm_looks_for_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: dict[str, Any], overrides: Any
) -> None:
    monkeypatch.setattr(vllm_config, "on_cpu", lambda: True)
    arguments = vllm_config.engine_arguments(VllmConfig(), folder(tmp_path, **configuration))
    assert arguments.get("hf_overrides") == overrides
