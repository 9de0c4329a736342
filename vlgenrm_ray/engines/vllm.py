"""Generator on vLLM for batches, on GPUs or CPUs. The engine runs in the calling process or, on GPUs, in a child."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments, on_cpu, set_environment, versions
from vlgenrm_ray.engines.vllm_requests import (
    RESET_POLL_S,
    RESET_TIMEOUT_S,
    STALE_PREFIXES,
    VllmRequests,
    error_summary,
    mix_seed,
    refusal,
)
from vlgenrm_ray.engines.vllm_worker import CpuWorkerExtension
from vlgenrm_ray.errors import ConfigError, DropReason, EngineLostError, StageError, WeightSyncError

if TYPE_CHECKING:
    import torch
    from vllm import LLM, RequestOutput, SamplingParams

    _Requests = Mapping[int, tuple[dict[str, Any] | Refusal, SamplingParams]]

__all__ = ["VllmConfig", "VllmGenerator", "versions"]


_FUSED_LAYERS = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
"""Linear layers that vLLM fuses into one. From a part of them it would make a layer with random rest."""


class VllmGenerator:
    """A `contracts.PolicyGenerator` on `vllm.LLM`, for chat models that vLLM supports (Qwen2-VL to Qwen3-VL).

    Samples of one prompt share its prefill. They depend on the prompt's seed, not on the batch, except for rounding.
    `vllm_requests.VllmRequests` builds requests and reads completions.
    """

    def __init__(self, config: VllmConfig) -> None:
        """Start the engine.

        Raises:
            InputError: The model folder cannot be used.
            ConfigError: vLLM does not start with these settings.
        """
        folder = model_folder.locate(config.model)
        set_environment(config)

        import vllm

        self.config = config
        try:
            self._llm: LLM = vllm.LLM(str(folder), **engine_arguments(config, folder))
        except ValueError as error:
            raise ConfigError(f"vLLM does not start with model folder {folder}: {error_summary(error)}") from error
        self.requests = VllmRequests(self._llm, folder.name, config)
        self.vocabulary = self.requests.vocabulary

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        """See `contracts.Generator`. Raises ConfigError for sampling parameters that the engine does not support."""
        outcomes = dict(self.generate_stream(prompts, sampling, seeds))
        return [outcomes[place] for place in range(len(prompts))]

    def generate_stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[int, list[Sample] | Refusal]]:
        """See `contracts.StreamingGenerator`. Only one such iterator may be open."""
        tracked = self.requests.tracked_ids(sampling)
        if seeds is None:
            seeds = [(sampling.seed or 0) + i for i in range(len(prompts))]
        requests = {
            place: (self.requests.request(prompt), self.requests.params(sampling, tracked, mix_seed(seed)))
            for place, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        }
        for place, outcome in self._run_isolated(requests):
            yield place, outcome if isinstance(outcome, Refusal) else self._samples(outcome, sampling, tracked)

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """See `contracts.PolicyGenerator`. Layers that vLLM fuses (q, k, v) must come together."""
        names: list[str] = []

        def passing() -> "Iterator[tuple[str, torch.Tensor]]":
            for name, tensor in weights:
                names.append(name)
                yield name, tensor

        # With several GPUs the workers are processes, to which an iterator cannot be passed.
        iterator = passing() if self.config.tensor_parallel_size == 1 else list(passing())
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
        except Exception as error:
            raise WeightSyncError(f"vLLM does not accept the weights: {error_summary(error)}") from error
        if missing := missing_fused_layers(names):
            raise WeightSyncError(f"weights of a fused layer come together; {missing[0]} did not come")
        if on_cpu():
            self._llm.collective_rpc(CpuWorkerExtension.extension_repack_head.__name__)
        reset_caches(self._llm)

    @property
    def llm(self) -> "LLM":
        """The `vllm.LLM`. See `contracts.PolicyGenerator`."""
        return self._llm

    def versions(self) -> dict[str, str]:
        """Return the versions of vLLM, torch and transformers."""
        return versions()

    def close(self) -> None:
        """Stop the engine and free its memory. The generator cannot be used afterwards."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm.llm_engine.renderer.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    # -- running -----------------------------------------------------------------------------------------------

    def _run_isolated(self, requests: "_Requests") -> "Iterator[tuple[int, RequestOutput | Refusal]]":
        """Run all requests together. If the engine fails, run each alone, so that only failing ones are refused."""
        from vllm.v1.engine.exceptions import EngineDeadError

        left, failed = dict(requests), 0
        try:
            for place, outcome in self._run(requests):
                del left[place]
                yield place, outcome
        except EngineDeadError as error:
            # The generator cannot be used any more; its owner must start another one.
            raise EngineLostError(error_summary(error)) from error
        except Exception as error:
            self._forget_unfinished()
            for place, request in left.items():
                try:
                    ((_, outcome),) = self._run({place: request})
                except EngineDeadError as death:
                    raise EngineLostError(error_summary(death)) from death
                except Exception as again:
                    self._forget_unfinished()
                    failed += 1
                    outcome = Refusal(reason=DropReason.ENGINE_ERROR, detail=error_summary(again))
                yield place, outcome
            if failed == len(requests) > 1:
                raise StageError(f"vLLM fails on every prompt: {error_summary(error)}") from error
        except GeneratorExit:
            self._forget_unfinished()
            raise

    def _run(self, requests: "_Requests") -> "Iterator[tuple[int, RequestOutput | Refusal]]":
        from vllm.v1.engine.exceptions import EngineDeadError

        places: dict[str, int] = {}
        refused: list[tuple[int, Refusal]] = []
        for place, (request, params) in requests.items():
            if isinstance(request, Refusal):
                refused.append((place, request))
                continue
            try:
                (internal,) = self._llm.enqueue(request, params, use_tqdm=False)
            # No refusal of this prompt: all others would be refused as well.
            except EngineDeadError:
                raise
            # Refusals of vLLM, and any error of the model's image processor.
            except Exception as error:
                refused.append((place, refusal(error)))
            else:
                # vLLM appends a random part to the request id.
                places[internal.split("-")[0]] = place
        yield from refused
        # Like `LLM.wait_for_completion`, which would return finished outputs only when all are finished.
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield places[output.request_id], output

    def _forget_unfinished(self) -> None:
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        # Blocks of the failed step are marked as computed, which they are not.
        engine.reset_prefix_cache(reset_running_requests=True)

    # -- results -----------------------------------------------------------------------------------------------

    def _samples(
        self, output: "RequestOutput", sampling: Sampling, tracked: Mapping[str, Sequence[int]]
    ) -> list[Sample] | Refusal:
        samples = []
        for completion in output.outputs:
            sample = self.requests.sample(completion, sampling, tracked, output.prompt_token_ids)
            if isinstance(sample, Refusal):
                return sample
            samples.append(sample)
        return samples


def missing_fused_layers(names: Iterable[str]) -> list[str]:
    """Return the weights that are missing in `names`, although vLLM fuses them with some of `names`."""
    present = set(names)
    needed = set()
    for name in present:
        path, _, kind = name.rpartition(".")
        parent, _, layer = path.rpartition(".")
        needed |= {f"{parent}.{sibling}.{kind}" for fused in _FUSED_LAYERS if layer in fused for sibling in fused}
    return sorted(needed - present)


def reset_caches(llm: "LLM") -> None:
    """Drop the cached prefixes and image embeddings; those of the previous weights are wrong for new ones.

    Raises WeightSyncError if a running request still uses them: its text would mix both weights.
    """
    deadline = time.monotonic() + RESET_TIMEOUT_S
    # A request that was just aborted gives its blocks back when the step in flight has ended.
    while not llm.reset_prefix_cache():
        if time.monotonic() > deadline:
            raise WeightSyncError(STALE_PREFIXES)
        time.sleep(RESET_POLL_S)
    llm.llm_engine.reset_encoder_cache()
