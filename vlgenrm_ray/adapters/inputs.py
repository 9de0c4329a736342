"""Score inputs from a trainer's samples, and base classes of trainers that may not be installed."""

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.judge.chat_templates import last_question
from vlgenrm_ray.judge.conversation import message_images, message_text, refers_to_image
from vlgenrm_ray.judge.label import Label, is_missing
from vlgenrm_ray.judge.protocol import ScoreInput
from vlgenrm_ray.judge.thinking import normalize_thinking, resume_thinking

ALLOW_BLIND_VARIABLE = "VLGENRM_ALLOW_BLIND"
_IMAGE_COLUMNS = ("images", "image", "multi_modal_data", "multi_modal_inputs", "multimodal_inputs")
"""Fields in which trainers keep the images of a sample; the last three are mappings that have the first two."""


def build_score_input(
    response: Any, *, prompt: Any = None, images: Iterable[Any] | None = (), label: Label | None = None
) -> ScoreInput:
    """Build the judge's input from a sample of a trainer.

    A sample without a question has the status `no_question`, and one without an image `no_image` unless the service or
    VLGENRM_ALLOW_BLIND allows blind judging.

    Args:
        response: The policy's answer, as a text or messages.
        prompt: Messages, or text rendered by a chat template.
        images: Images the policy saw, in order. Messages that contain images contain the same ones.
        label: Question, images and reference from the data set. Its question replaces the prompt's text, its images
            replace all others.

    Raises:
        ConfigError: VLGENRM_ALLOW_BLIND is neither 0 nor 1.
        InputError: The prompt is neither a text nor messages.
    """
    label = label or Label()
    # Data frames hold lists as arrays.
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    prompt = "" if is_missing(prompt) else prompt
    if not isinstance(prompt, str):
        prompt = [as_mapping(message) for message in prompt]
    prompt_images = () if isinstance(prompt, str) else message_images(prompt)
    own_images = label.images or tuple(image for image in (() if images is None else images) if not is_missing(image))
    answer = response_text(response)
    if isinstance(prompt, str):
        answer = resume_thinking(answer, prompt)
    fields: dict[str, Any] = {"response": answer, "reference": label.reference}
    fields["allow_blind"] = _allow_blind()
    if label.question is None and prompt and not isinstance(prompt, str):
        # The messages carry their images themselves.
        return ScoreInput(messages=prompt, images=label.images if prompt_images else own_images, **fields)
    # The label replaces the prompt's words, not the images the policy saw.
    shown = own_images or prompt_images
    return ScoreInput(
        question=label.question or (last_question(prompt) if isinstance(prompt, str) else ""),
        images=shown,
        image_expected=not shown and refers_to_image(prompt),
        **fields,
    )


def sample_images(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the images of a sample from the field in which its trainer keeps them; () if there are none.

    Args:
        fields: Fields of one sample: `images` (a list), `image` (one or a list), or a mapping under `multi_modal_data`,
            `multi_modal_inputs` or `multimodal_inputs` that has these.
    """
    for name in _IMAGE_COLUMNS:
        value: Any = fields.get(name)
        if hasattr(value, "tolist"):
            value = value.tolist()
        if name not in ("images", "image"):
            images = sample_images(value) if isinstance(value, Mapping) else ()
        elif is_missing(value):
            images = ()
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            images = tuple(image for image in value if not is_missing(image))
        else:
            images = (value,)
        if images:
            return images
    return ()


def _allow_blind() -> bool:
    text = os.environ.get(ALLOW_BLIND_VARIABLE, "0")
    if text not in ("", "0", "1"):
        raise ConfigError(f"{ALLOW_BLIND_VARIABLE}={text!r}: must be 1 to judge samples without an image, or 0")
    return text == "1"


def response_text(response: Any) -> str:
    """Return the text of a response given as text or messages."""
    if isinstance(response, str):
        return response
    return "\n".join(message_text(as_mapping(message)) for message in response)


def decode_response(tokenizer: Any, ids: Any) -> str:
    """Decode the tokens of a response, without special tokens other than those that mark its thinking.

    Args:
        tokenizer: Tokenizer of the policy, as in transformers.
        ids: Token ids, without padding.
    """
    special = getattr(tokenizer, "all_special_tokens", ())
    if all(normalize_thinking(token) == token for token in special):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    return normalize_thinking(str(tokenizer.decode(ids, skip_special_tokens=False)))


def as_mapping(message: Any) -> Any:
    """Return a message as a mapping; pydantic models are dumped."""
    return message.model_dump() if hasattr(message, "model_dump") else message


def optional_import(path: str, default: Any = object) -> Any:
    """Import `package.module:Name` of a trainer, or return `default` if its package is not installed."""
    module, _, name = path.partition(":")
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return default
    return getattr(importlib.import_module(module), name)
