"""Requests and completions of both vLLM engines: prompt -> vLLM request, vLLM completion -> sample."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlgenrm_ray.data.pixels import to_rgb
from vlgenrm_ray.engines.contracts import (
    Conversation,
    Prompt,
    Refusal,
    Sample,
    Sampling,
    Token,
    cut_at_stop,
    refuse_extra_images,
)
from vlgenrm_ray.engines.tokens import TokenVocabulary
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import ConfigError, DropReason, InputError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput

IMAGE_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Entries of a model's configuration that name its image placeholders."""
RESET_TIMEOUT_S = 5.0
"""Longest wait for the end of the last requests after new weights were loaded."""
RESET_POLL_S = 0.05
STALE_PREFIXES = (
    "vLLM keeps cached prefixes of the previous weights, because a request still runs; load weights between requests"
)
_TEXT_MARKER = "vlgenrm text goes here"


class VllmRequests:
    """Builder of vLLM requests for one model, and reader of its completions.

    A prompt is one user turn in the model's own chat template: the images, then the text. A conversation has turns of
    its own. Special tokens in their texts are escaped, and image placeholders are banned from sampling.
    """

    def __init__(self, llm: Any, name: str, config: VllmConfig) -> None:
        """Read tokenizer and chat template from a started engine.

        Args:
            llm: `LLM` or `AsyncLLM`.
            name: Name of the model, for messages.
            config: Settings of the engine.

        Raises:
            InputError: The chat template changes the user's text.
        """
        self.vocabulary = TokenVocabulary(llm.get_tokenizer().backend_tokenizer)
        configuration = llm.model_config.hf_config.to_dict()
        self._processor = llm.renderer.get_mm_processor().info.get_hf_processor()
        self._banned = {configuration[k]: -math.inf for k in IMAGE_TOKENS if isinstance(configuration.get(k), int)}
        self._config = config
        self._turns = [_turn(self._processor, name, num_images) for num_images in range(config.max_images + 1)]

    def request(self, prompt: Prompt | Conversation) -> dict[str, Any] | Refusal:
        """Return a prompt as vLLM takes it, or a refusal if it has too many images or its turns are not accepted."""
        if refused := refuse_extra_images(len(prompt.images), self._config.max_images):
            return refused
        if isinstance(prompt, Conversation):
            text = self._render(prompt)
            if isinstance(text, Refusal):
                return text
        else:
            before, after = self._turns[len(prompt.images)]
            escape = self.vocabulary.escape_special_tokens
            text = f"{before}{escape(prompt.text)}{after}{escape(prompt.prefix)}"
        if not prompt.images:
            return {"prompt": text}
        try:
            pixels = [to_rgb(image) for image in prompt.images]
        # Images that `images.decode` returned are pixels already; others may fail in any way as they are loaded.
        except Exception as error:
            return Refusal(reason=DropReason.IMAGE_UNREADABLE, detail=error_summary(error))
        return {"prompt": text, "multi_modal_data": {"image": pixels}}

    def _render(self, conversation: Conversation) -> str | Refusal:
        """Return a conversation in the model's chat template, which refuses some orders of turns by an exception."""
        escape = self.vocabulary.escape_special_tokens
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if part is None else {"type": "text", "text": escape(part)} for part in turn.parts
                ],
            }
            for turn in conversation.turns
        ]
        try:
            return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:
            detail = f"the model's chat template does not accept these turns: {error_summary(error)}"
            return Refusal(reason=DropReason.PROMPT_REFUSED, detail=detail)

    def tracked_ids(self, sampling: Sampling) -> dict[str, tuple[int, ...]]:
        """Return the token ids of the tracked words. Raises ConfigError for sampling that is not supported."""
        check_sampling(sampling, self._config)
        return self.vocabulary.token_ids(sampling.tracked_words)

    def params(self, sampling: Sampling, tracked: Mapping[str, Sequence[int]], seed: int) -> "SamplingParams":
        """Return vLLM's sampling parameters; `seed` must be mixed by `mix_seed`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        ids = _tracked_columns(tracked)
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed + sampling.first,
            # Both include the log-probability of the sampled token; NaN there means broken logits.
            logprobs=None if ids else 0,
            logprob_token_ids=ids or None,
            allowed_token_ids=ids if sampling.only_tracked and ids else None,
            flat_logprobs=True,
            stop=list(sampling.stop) or None,
            # vLLM looks for stop texts in the text; otherwise `sample` alone makes text of tokens.
            detokenize=bool(sampling.stop),
            logit_bias=self._banned or None,
            structured_outputs=StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def sample(
        self,
        completion: "CompletionOutput",
        sampling: Sampling,
        tracked: Mapping[str, Sequence[int]],
        prompt_ids: Sequence[int] | None = None,
    ) -> Sample | Refusal:
        """Return a finished completion as a sample, or a refusal if it failed or has NaN log-probabilities."""
        if completion.finish_reason not in ("stop", "length"):
            return Refusal(reason=DropReason.ENGINE_ERROR, detail=f"vLLM ended with {completion.finish_reason!r}")
        logprobs = completion.logprobs
        sampled = tuple(logprobs.logprobs[start] for start in logprobs.start_indices)
        if any(map(math.isnan, sampled)):
            return Refusal(reason=DropReason.ENGINE_ERROR, detail="the model's logits are not numbers (NaN)")
        special = self.vocabulary.special
        text_tokens = [(at, token) for at, token in enumerate(completion.token_ids) if token not in special]
        text, pieces = self.vocabulary.split_text([token for _, token in text_tokens])
        probabilities = word_probabilities(logprobs, [at for at, _ in text_tokens], tracked)
        tokens = [
            Token(id=token, text=piece, tracked_probabilities=words)
            for (_, token), piece, words in zip(text_tokens, pieces, probabilities, strict=True)
        ]
        sample = Sample(
            text=cut_at_stop(text, sampling.stop),
            tokens=tuple(tokens),
            finish=completion.finish_reason,
            num_prompt_tokens=len(prompt_ids or ()),
        )
        return replace(sample, ids=tuple(completion.token_ids), logprobs=sampled) if sampling.logprobs else sample


def word_probabilities(
    logprobs: "FlatLogprobs", positions: Sequence[int], tracked: Mapping[str, Sequence[int]]
) -> list[dict[str, float]]:
    """Return the probability of each tracked word at positions of a sample: the sum over the word's token forms.

    Args:
        logprobs: vLLM's log-probabilities. At each position the sampled token comes first, then the tokens that
            `VllmRequests.params` asked for, then padding to what other requests of the batch asked for.
        positions: Positions in the sample.
        tracked: Word -> ids of its token forms.
    """
    if not tracked or not positions:
        return [{} for _ in positions]
    columns = {token: column for column, token in enumerate(_tracked_columns(tracked))}
    first = np.asarray(logprobs.start_indices)[list(positions)] + 1
    table = np.asarray(logprobs.logprobs)[first[:, None] + np.arange(len(columns))]
    words = [np.exp(table[:, [columns[i] for i in ids]]).sum(axis=1).tolist() for ids in tracked.values()]
    return [dict(zip(tracked, row, strict=True)) for row in zip(*words, strict=True)]


def _tracked_columns(tracked: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the ids of all tracked words, in the order in which vLLM is asked for them."""
    return sorted({i for forms in tracked.values() for i in forms})


def check_sampling(sampling: Sampling, config: VllmConfig) -> None:
    """Raise ConfigError for several samples at temperature 0, and for probabilities that the engine does not return.

    An engine returns one kind of log-probabilities; those of tracked words are the ones before temperature.
    """
    if sampling.n > 1 and sampling.temperature == 0:
        raise ConfigError(f"n = {sampling.n} at temperature 0 would repeat the same text; use n = 1")
    if sampling.logprobs and config.logprobs == "raw":
        raise ConfigError("log-probabilities as sampled need an engine of rollouts (RolloutVllmConfig)")
    if sampling.tracked_words and config.logprobs == "sampled":
        raise ConfigError(
            f"the words {list(sampling.tracked_words)} cannot be tracked by an engine of rollouts; use VllmConfig"
        )


def mix_seed(seed: int) -> int:
    """Map a prompt's seed to [0, 2^62), such that neighbouring seeds are far apart (the finaliser of splitmix64).

    vLLM seeds the k-th sample of a prompt with its seed + k. With neighbouring seeds, sample 1 of one prompt and sample
    0 of the next would use the same random numbers.
    """
    mask = (1 << 64) - 1
    value = (seed + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 2


def refusal(error: Exception) -> Refusal:
    """Return the refusal of a prompt from the error of vLLM or of the model's image processor."""
    from vllm.exceptions import VLLMValidationError

    too_long = isinstance(error, VLLMValidationError) and (
        error.parameter in ("input_text", "input_tokens") or "maximum model length" in str(error)
    )
    # Both check what they are given with errors of these types; others say that the engine is not well.
    refused = DropReason.PROMPT_REFUSED if isinstance(error, (ValueError, TypeError)) else DropReason.ENGINE_ERROR
    reason = DropReason.PROMPT_TOO_LONG if too_long else refused
    return Refusal(reason=reason, detail=error_summary(error))


def error_summary(error: Exception) -> str:
    """Return an error on one line of at most about 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _turn(processor: Any, name: str, num_images: int) -> tuple[str, str]:
    """Return the chat template's text before and after the user's text, with a placeholder for each image."""
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": _TEXT_MARKER}]
    rendered = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    parts = rendered.split(_TEXT_MARKER)
    if len(parts) != 2:
        raise InputError(
            f"model {name}: its chat template does not write the user's text once, as it is; fix the template"
        )
    return parts[0], parts[1]
