"""What trainers hold of a sample -> what is asked of the judge; and base classes of trainers that may be absent."""

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.conversation import image_urls, last_question, message_text, to_openai_messages
from vlgenrm_ray.judge.label import Label
from vlgenrm_ray.judge.protocol import ScoreInput


def ask(
    response: Any, *, prompt: Any = None, images: Iterable[Any] | None = (), label: Label | None = None
) -> ScoreInput:
    """One ask. `prompt`: messages, or text in a chat template; what the label says goes before it.

    `images`: what the policy saw, in order. They are left out where the messages carry images themselves: the same.
    Where the label has a question but neither it nor `images` shows any, the messages' images are shown with it.
    Raises InputError where there is neither a prompt nor a question in the label.
    """
    label = label or Label()
    # Data frames keep lists as arrays.
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    shown = label.images or tuple(() if images is None else images)
    fields: dict[str, Any] = {"response": said(response), "images": shown, "reference": label.reference}
    if label.question is not None:
        # The label's words take the place of the prompt's, not of what the policy saw.
        return ScoreInput(question=label.question, **fields | {"images": shown or _pictures(prompt)})
    if isinstance(prompt, str) and prompt:
        return ScoreInput(question=last_question(prompt), **fields)
    if isinstance(prompt, Sequence) and len(prompt):
        messages = [plain(message) for message in prompt]
        if not label.images and image_urls(to_openai_messages(messages, lambda image: "")):
            fields["images"] = ()
        return ScoreInput(messages=messages, **fields)
    raise InputError("a sample with neither a prompt nor a `question` in its label: see vlgenrm_ray/judge/label.py")


def _pictures(prompt: Any) -> tuple[Any, ...]:
    """The images of a prompt's messages as they are there, in order."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return ()
    return tuple(image_urls(to_openai_messages([plain(message) for message in prompt], lambda image: image)))


def said(response: Any) -> str:
    """A response's text, be it a text or messages."""
    if isinstance(response, str):
        return response
    return "\n".join(message_text(plain(message)) for message in response)


def plain(message: Any) -> Any:
    """A message as a mapping, be it one or a pydantic model."""
    return message.model_dump() if hasattr(message, "model_dump") else message


def peer(path: str, otherwise: Any = object) -> Any:
    """`package.module:Name` of another trainer, or `otherwise` where that package is not installed."""
    module, _, name = path.partition(":")
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return otherwise
    return getattr(importlib.import_module(module), name)
