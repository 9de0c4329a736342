"""The generator on vLLM, on GPUs or on the CPU: one engine inside the calling process (or, on GPUs, below it)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Prompt, Refused, Sample, Sampling
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments, set_environment, versions
from vlgenrm_ray.engines.vllm_requests import Requests, check_sampling, refusal, spread, summary
from vlgenrm_ray.errors import ConfigError, DropReason, StageError

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

__all__ = ["VllmConfig", "VllmGenerator", "versions"]


class VllmGenerator:
    """A `contracts.Generator` on `vllm.LLM`, for the chat models with images that vLLM knows (Qwen2-VL to Qwen3-VL).

    Samples of one prompt share its prefill. A seed decides a prompt's samples whatever else is in the batch (up to
    rounding, which a batch's shape can change). What is asked, and how answers are read: `vllm_requests.Requests`.
    """

    def __init__(self, config: VllmConfig) -> None:
        """Start the engine.

        Raises InputError, before it starts, for a model folder that cannot be used; ConfigError where vLLM will not
        start on that folder with these settings.
        """
        folder = model_folder.locate(config.model)
        set_environment(config)

        import vllm

        self.config = config
        try:
            self._llm: LLM = vllm.LLM(str(folder), **engine_arguments(config, model_folder.max_positions(folder)))
        except ValueError as error:
            raise ConfigError(f"vLLM does not start with model folder {folder}: {summary(error)}") from error
        self.requests = Requests(self._llm, folder.name, config.max_images)
        self.vocabulary = self.requests.vocabulary

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refused]:
        """See `contracts.Generator`. Raises ConfigError for several samples at temperature 0."""
        check_sampling(sampling)
        if seeds is None:
            seeds = [(sampling.seed or 0) + i for i in range(len(prompts))]
        watched = self.vocabulary.ids_of(sampling.watch)
        requests = [
            (self.requests.request(prompt), self.requests.params(sampling, watched, spread(seed)))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        outcomes = self._run_isolated(requests)
        return [o if isinstance(o, Refused) else self._samples(o, watched) for o in outcomes]

    def versions(self) -> dict[str, str]:
        """Versions of the engine and of what it stands on."""
        return versions()

    def close(self) -> None:
        """Stop the engine and give back its memory. The generator is of no use afterwards."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm.llm_engine.renderer.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    # -- running -----------------------------------------------------------------------------------------------

    def _run_isolated(
        self, requests: "Sequence[tuple[dict[str, Any] | Refused, SamplingParams]]"
    ) -> "list[RequestOutput | Refused]":
        """Run all together; if the engine fails on them, each alone, so that only the culprits are refused."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return self._run(requests)
        except EngineDeadError:
            raise  # Nothing can be asked of it any more: whoever holds this generator must start another.
        except Exception as error:
            self._forget_unfinished()
            if len(requests) == 1:
                return [Refused(reason=DropReason.ENGINE_ERROR, detail=summary(error))]
            outcomes = [self._run_isolated([request])[0] for request in requests]
            if all(isinstance(o, Refused) and o.reason is DropReason.ENGINE_ERROR for o in outcomes):
                raise StageError(f"vLLM fails on every prompt: {summary(error)}") from error
            return outcomes

    def _run(
        self, requests: "Sequence[tuple[dict[str, Any] | Refused, SamplingParams]]"
    ) -> "list[RequestOutput | Refused]":
        outcomes: dict[int, RequestOutput | Refused] = {}
        places: dict[str, int] = {}
        for place, (request, params) in enumerate(requests):
            if isinstance(request, Refused):
                outcomes[place] = request
                continue
            try:
                (internal,) = self._llm.enqueue(request, params, use_tqdm=False)
            # vLLM's own refusals, and whatever the model's image processor raises for an image it cannot take.
            except Exception as error:
                outcomes[place] = refusal(error)
            else:
                # vLLM appends a random part to the number by which it will name the output.
                places[internal.split("-")[0]] = place
        for output in self._llm.wait_for_completion(use_tqdm=False):
            outcomes[places[output.request_id]] = output
        return [outcomes[place] for place in range(len(requests))]

    def _forget_unfinished(self) -> None:
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        # Blocks of the failed step count as computed, and are not.
        engine.reset_prefix_cache(reset_running_requests=True)

    # -- results -----------------------------------------------------------------------------------------------

    def _samples(self, output: "RequestOutput", watched: Mapping[str, Sequence[int]]) -> list[Sample] | Refused:
        samples = []
        for completion in output.outputs:
            sample = self.requests.sample(completion, watched)
            if isinstance(sample, Refused):
                return sample
            samples.append(sample)
        return samples
