"""The generator on vLLM, on GPUs or on the CPU: one engine inside the calling process (or, on GPUs, below it)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Prompt, Refused, Sample, Sampling, Token
from vlgenrm_ray.engines.tokens import Vocabulary
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments, set_environment, versions
from vlgenrm_ray.errors import ConfigError, DropReason, InputError, StageError

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.outputs import CompletionOutput

__all__ = ["VllmConfig", "VllmGenerator", "versions"]

_IMAGE_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


class VllmGenerator:
    """A `contracts.Generator` on `vllm.LLM`, for the chat models with images that vLLM knows (Qwen2-VL to Qwen3-VL).

    One prompt is one user turn: the image, then the text, in the model's own chat template. Samples of one prompt share
    its prefill. Image placeholders are never sampled. A seed decides a prompt's samples whatever else is in the batch
    (up to rounding, which a batch's shape can change).
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
            raise ConfigError(f"vLLM does not start with model folder {folder}: {_summary(error)}") from error
        tokenizer = self._llm.get_tokenizer()
        self.vocabulary = Vocabulary(tokenizer.backend_tokenizer)
        hf_config = self._llm.model_config.hf_config.to_dict()
        self._banned = {hf_config[k]: -math.inf for k in _IMAGE_TOKENS if isinstance(hf_config.get(k), int)}
        processor = self._llm.renderer.get_mm_processor().info.get_hf_processor()
        self._turns = {seen: _turn(processor, folder.name, with_image=seen) for seen in (True, False)}

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refused]:
        """See `contracts.Generator`. Raises ConfigError for several samples at temperature 0."""
        if sampling.n > 1 and sampling.temperature == 0:
            raise ConfigError(f"n = {sampling.n} at temperature 0 would be {sampling.n} times the same text; use n = 1")
        if seeds is None:
            seeds = [(sampling.seed or 0) + i for i in range(len(prompts))]
        watched = self.vocabulary.ids_of(sampling.watch)
        requests = [
            (self._request(prompt), self._params(sampling, watched, seed))
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

    # -- requests ----------------------------------------------------------------------------------------------

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        before, after = self._turns[prompt.image is not None]
        neutral = self.vocabulary.neutral
        text = f"{before}{neutral(prompt.text)}{after}{neutral(prompt.prefix)}"
        if prompt.image is None:
            return {"prompt": text}
        return {"prompt": text, "multi_modal_data": {"image": prompt.image}}

    def _params(self, sampling: Sampling, watched: Mapping[str, Sequence[int]], seed: int) -> "SamplingParams":
        from vllm import SamplingParams

        ids = sorted({i for forms in watched.values() for i in forms})
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=spread(seed),
            # The sampled token's own log-probability comes with either; NaN there means broken logits.
            logprobs=None if ids else 0,
            logprob_token_ids=ids or None,
            flat_logprobs=True,
            detokenize=False,
            logit_bias=self._banned or None,
        )

    # -- running -----------------------------------------------------------------------------------------------

    def _run_isolated(
        self, requests: "Sequence[tuple[dict[str, Any], SamplingParams]]"
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
                return [Refused(reason=DropReason.ENGINE_ERROR, detail=_summary(error))]
            outcomes = [self._run_isolated([request])[0] for request in requests]
            if all(isinstance(o, Refused) and o.reason is DropReason.ENGINE_ERROR for o in outcomes):
                raise StageError(f"vLLM fails on every prompt: {_summary(error)}") from error
            return outcomes

    def _run(self, requests: "Sequence[tuple[dict[str, Any], SamplingParams]]") -> "list[RequestOutput | Refused]":
        from vllm.exceptions import VLLMValidationError

        outcomes: dict[int, RequestOutput | Refused] = {}
        places: dict[str, int] = {}
        for place, (request, params) in enumerate(requests):
            try:
                (internal,) = self._llm.enqueue(request, params, use_tqdm=False)
            except VLLMValidationError as error:
                reason = DropReason.PROMPT_TOO_LONG if _is_about_length(error) else DropReason.ENGINE_ERROR
                outcomes[place] = Refused(reason=reason, detail=_summary(error))
            # The model's image processor raises whatever it likes for an image it cannot take.
            except Exception as error:
                outcomes[place] = Refused(reason=DropReason.ENGINE_ERROR, detail=_summary(error))
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
            if completion.finish_reason not in ("stop", "length"):
                return Refused(reason=DropReason.ENGINE_ERROR, detail=f"vLLM ended with {completion.finish_reason!r}")
            found = completion.logprobs
            if any(math.isnan(found.logprobs[start]) for start in found.start_indices):
                return Refused(reason=DropReason.ENGINE_ERROR, detail="the model's logits are not numbers (NaN)")
            samples.append(self._sample(completion, watched))
        return samples

    def _sample(self, completion: "CompletionOutput", watched: Mapping[str, Sequence[int]]) -> Sample:
        special = self.vocabulary.special
        kept = [(at, token) for at, token in enumerate(completion.token_ids) if token not in special]
        text, pieces = self.vocabulary.pieces([token for _, token in kept])
        found = completion.logprobs
        tokens = []
        for (at, token), piece in zip(kept, pieces, strict=True):
            # First comes the sampled token, then the watched ones.
            start, end = found.start_indices[at] + 1, found.end_indices[at]
            logprob = dict(zip(found.token_ids[start:end], found.logprobs[start:end], strict=True))
            chances = {word: sum(math.exp(logprob[i]) for i in ids) for word, ids in watched.items()}
            tokens.append(Token(id=token, text=piece, watched=chances))
        return Sample(text=text, tokens=tuple(tokens), finish=completion.finish_reason)


def spread(seed: int) -> int:
    """A prompt's seed -> a number in [0, 2^62) far from those of its neighbours (the finaliser of splitmix64).

    vLLM gives the k-th sample of a prompt its seed + k; with neighbouring seeds, sample 1 of one prompt and sample 0 of
    the next would draw the same chances.
    """
    mask = (1 << 64) - 1
    value = (seed + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 2


def _is_about_length(error: "VLLMValidationError") -> bool:
    return error.parameter in ("input_text", "input_tokens") or "maximum model length" in str(error)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


_MARK = "vlgenrm text goes here"


def _turn(processor: Any, name: str, *, with_image: bool) -> tuple[str, str]:
    """What the chat template writes before and after the user's text."""
    content = [{"type": "image"}] * with_image + [{"type": "text", "text": _MARK}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    parts = rendered.split(_MARK)
    if len(parts) != 2:
        raise InputError(
            f"model {name}: its chat template does not write the user's text once, as it is; fix the template"
        )
    return parts[0], parts[1]
