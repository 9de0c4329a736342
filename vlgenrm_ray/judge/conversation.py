"""Conversations as message lists, in the forms trainers use.

`to_openai_messages` brings them into OpenAI's form, as `wire.ScoreItem.messages` takes them. Conversations that a chat
template has rendered into text are read by `chat_templates`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.chat_templates import IMAGE_MARK, mentions_image, strip_special_tokens

Message = Mapping[str, Any]

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image", "image_pil")
_IMAGE_KEYS = ("image", "image_url", "url", "image_pil", "base64")
"""Keys under which a part holds its image, if not `bytes` and `path`."""


def to_openai_messages(messages: Sequence[Message], image_url: Callable[[Any], str] = str) -> list[dict[str, Any]]:
    """Convert a conversation to OpenAI's form, with `text` and `image_url` parts only.

    Args:
        messages: Turns whose content is a string or a list of parts: OpenAI's chat parts (`text`, `image_url`), its
            Responses parts (`input_text`, `output_text`, `input_image`), `{"type": "image", "image": ...}` as in Qwen
            and Hugging Face (also `url`, `base64`, or `bytes` and `path`), or parts without a type as in the first
            Qwen-VL. A part that only marks an image's position becomes the text `<image>`: its image travels
            separately.
        image_url: Converts an image, in the form the message has it, to its URL or reference.

    Raises:
        InputError: A turn or part has none of these forms. Errors of `image_url` propagate.
    """
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"{name}: must be an object with a `role`")
        content = _content(message.get("content"), image_url, f"{name}.content")
        turns.append({"role": _text(message["role"], f"{name}.role"), "content": content})
    return turns


def message_text(message: Message) -> str:
    """Return the text of a message, without its images and marks of images."""
    content = to_openai_messages([message])[0]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text" and part["text"] != IMAGE_MARK)


def strip_tokens(turns: Sequence[Message]) -> tuple[list[dict[str, Any]], bool]:
    """Remove special tokens and image placeholders from the texts of turns in OpenAI's form.

    Returns:
        The turns, and whether there was an image placeholder.
    """
    stripped: list[dict[str, Any]] = []
    mentioned = False
    for turn in turns:
        content = turn["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [part["text"] for part in parts if part["type"] == "text"]
        mentioned = mentioned or any(mentions_image(text) for text in texts)
        parts = [
            part | {"text": strip_special_tokens(part["text"])} if part["type"] == "text" else part
            for part in parts
            if part.get("text") != IMAGE_MARK
        ]
        stripped.append(
            {"role": turn["role"], "content": "".join(p["text"] for p in parts) if isinstance(content, str) else parts}
        )
    return stripped, mentioned


def image_urls(turns: Iterable[Message]) -> list[str]:
    """Return the image URLs of turns in OpenAI's form, in order."""
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def message_images(messages: Any) -> tuple[Any, ...]:
    """Return the images of messages, in their own form and order. Raise InputError if the messages cannot be read."""
    return tuple(image_urls(to_openai_messages(messages, lambda image: image)))


def refers_to_image(prompt: Any) -> bool:
    """Return whether a prompt, as text or messages, has an image or a placeholder. Raise InputError as above."""
    if isinstance(prompt, str):
        return mentions_image(prompt)
    turns = to_openai_messages(prompt, lambda image: image)
    return bool(image_urls(turns)) or strip_tokens(turns)[1]


def split_last_answer(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """Split a conversation into the turns before its last one, and the text of that last turn.

    Raises:
        InputError: The last turn is not the assistant's, or is the only one.
    """
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise InputError("messages: the last turn must be the assistant's, after at least one other")
    return list(messages[:-1]), message_text(messages[-1])


def _content(content: Any, image_url: Callable[[Any], str], name: str) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return _text(content or "", name)
    if not isinstance(content, Sequence):
        raise InputError(f"{name}: must be a text or a list of parts")
    return [_part(part, image_url, f"{name}[{i}]") for i, part in enumerate(content)]


def _part(part: Any, image_url: Callable[[Any], str], name: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": _text(part, name)}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind is None:
        kind = "text" if isinstance(part.get("text"), str) else "image" if "image" in part else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": _text(part["text"], name)}
    if kind not in _IMAGE_PARTS:
        raise InputError(f"{name}: a part of type {kind!r}; must be text, image_url, image or one of their variants")
    image = _image(part)
    if image is None:
        return {"type": "text", "text": IMAGE_MARK}
    return {"type": "image_url", "image_url": {"url": image_url(image)}}


def _image(part: Mapping[str, Any]) -> Any:
    """Return the image of a part; None if the part only marks an image's position."""
    # Arrow gives every part every column, so text parts have an empty image and image parts an empty text.
    image = next((part[key] for key in _IMAGE_KEYS if part.get(key) is not None), None)
    if image is None and (part.get("bytes") or part.get("path")):
        return {"bytes": part.get("bytes"), "path": part.get("path")}
    return image["url"] if isinstance(image, Mapping) and "url" in image else image


def _text(text: str, name: str) -> str:
    try:
        text.encode()
    # JSON can spell half a surrogate pair, which no encoding can represent.
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: not a valid text: {error.reason}") from error
    return text
