"""Score inputs from a trainer's samples, and base classes of trainers that may not be installed."""

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import image_urls, last_question, message_text, to_openai_messages
from vlgenrm_ray.judge.label import Label
from vlgenrm_ray.judge.protocol import ScoreInput


def build_score_input(
    response: Any, *, prompt: Any = None, images: Iterable[Any] | None = (), label: Label | None = None
) -> ScoreInput:
    """Build the judge's input from a sample of a trainer.

    Args:
        response: The policy's answer, as a text or messages.
        prompt: Messages, or text rendered by a chat template.
        images: Images the policy saw, in order. Messages that contain images contain the same ones.
        label: Question, images and reference from the data set. Its question replaces the prompt's text, its images
            replace all others.

    Raises:
        InputError: Neither a prompt nor a question in the label is given.
    """
    label = label or Label()
    # Data frames hold lists as arrays.
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    sample_images = label.images or tuple(() if images is None else images)
    fields: dict[str, Any] = {
        "response": response_text(response),
        "images": sample_images,
        "reference": label.reference,
    }
    if label.question is not None:
        # The label replaces the prompt's words, not the images the policy saw.
        return ScoreInput(question=label.question, **fields | {"images": sample_images or _message_images(prompt)})
    if isinstance(prompt, str) and prompt:
        return ScoreInput(question=last_question(prompt), **fields)
    if isinstance(prompt, Sequence) and len(prompt):
        messages = [as_mapping(message) for message in prompt]
        if not label.images and image_urls(to_openai_messages(messages, lambda image: "")):
            fields["images"] = ()
        return ScoreInput(messages=messages, **fields)
    raise InputError(
        "a sample with neither a prompt nor a `question` in its label: see vlgenrm_ray/judge/label.py, `write_label`"
    )


def _message_images(prompt: Any) -> tuple[Any, ...]:
    """Return the images of a prompt's messages, in their own form and order."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return ()
    return tuple(image_urls(to_openai_messages([as_mapping(message) for message in prompt], lambda image: image)))


def response_text(response: Any) -> str:
    """Return the text of a response given as text or messages."""
    if isinstance(response, str):
        return response
    return "\n".join(message_text(as_mapping(message)) for message in response)


def as_mapping(message: Any) -> Any:
    """Return a message as a mapping; pydantic models are dumped."""
    return message.model_dump() if hasattr(message, "model_dump") else message


def optional_import(path: str, default: Any = object) -> Any:
    """Import `package.module:Name` of a trainer, or return `default` if its package is not installed."""
    module, _, name = path.partition(":")
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return default
    return getattr(importlib.import_module(module), name)
