"""Conversations as trainers write them -> OpenAI's form, as `wire.ScoreItem.messages` wants it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlgenrm_ray.errors import InputError

Message = Mapping[str, Any]

_TEXT = ("text", "input_text", "output_text")


def openai_form(messages: Sequence[Message], refer: Callable[[Any], str] = str) -> list[dict[str, Any]]:
    """The same conversation with text parts and `image_url` parts only; `refer` turns an image into its reference.

    Understands plain strings, OpenAI's chat parts (`text`, `image_url`), its Responses parts (`input_text`,
    `output_text`, `input_image`) and the `{"type": "image", "image": ...}` of Qwen and Hugging Face. A part that only
    marks an image's place is left out: that image comes beside the messages.
    Raises InputError for what is none of these, and whatever `refer` raises.
    """
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{number}]: must be an object with a `role`")
        name = f"messages[{number}]"
        content = _content(message.get("content"), refer, f"{name}.content")
        turns.append({"role": _text(message["role"], f"{name}.role"), "content": content})
    return turns


def text_of(message: Message) -> str:
    """What a message says; its images left out."""
    content = openai_form([message])[0]["content"]
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


def images_of(turns: Iterable[Message]) -> list[str]:
    """References of the images of turns in OpenAI's form, in order."""
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def split_answer(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """A conversation -> what came before its last turn, and what the assistant says in it.

    Raises InputError unless the last turn is the assistant's and another comes before it.
    """
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise InputError("messages: the last turn must be the assistant's, after at least one other")
    return list(messages[:-1]), text_of(messages[-1])


def _content(content: Any, refer: Callable[[Any], str], name: str) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return _text(content or "", name)
    if not isinstance(content, Sequence):
        raise InputError(f"{name}: must be a text or a list of parts")
    parts = [_part(part, refer, f"{name}[{i}]") for i, part in enumerate(content)]
    return [part for part in parts if part is not None]


def _part(part: Any, refer: Callable[[Any], str], name: str) -> dict[str, Any] | None:
    if isinstance(part, str):
        return {"type": "text", "text": _text(part, name)}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXT and isinstance(part.get("text"), str):
        return {"type": "text", "text": _text(part["text"], name)}
    if kind not in ("image", "image_url", "input_image"):
        raise InputError(f"{name}: a part of type {kind!r}; there are text, image_url, image and their variants")
    # Arrow gives every part every column, so that text parts have an empty image and image parts an empty text.
    found = part.get("image_url") if part.get("image") is None else part["image"]
    url = found.get("url") if isinstance(found, Mapping) and "url" in found else found
    return None if url is None else {"type": "image_url", "image_url": {"url": refer(url)}}


def _text(text: str, name: str) -> str:
    try:
        text.encode()
    # Half a surrogate pair, which JSON can spell and nothing can carry on.
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: not a valid text: {error.reason}") from error
    return text
