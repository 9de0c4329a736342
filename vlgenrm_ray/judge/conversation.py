"""Conversations in the forms trainers use: message lists, and text rendered by a chat template.

`to_openai_messages` brings message lists into OpenAI's form, as `wire.ScoreItem.messages` takes them. `last_question`
and `last_answer` read rendered text: if the prompt is known, the answer is what follows it; otherwise the marks of
common templates are searched (ChatML, Llama, Gemma, Mistral, plain role names).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlgenrm_ray.errors import InputError

Message = Mapping[str, Any]

_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")

_CONTROL = re.compile(r"<\|[^|<>]{0,64}\|>|<(?:start_of_turn|end_of_turn|eos|bos|pad|image|video)>|</?s>")
_VISION = re.compile(r"<\|vision_start\|>|<\|vision_end\|>|(?:<\|(?:image|video)_pad\|>)+")
_USER = re.compile(
    r"<\|im_start\|>user\n|<\|start_header_id\|>user<\|end_header_id\|>|<start_of_turn>user\n|\[INST\]"
    r"|^(?:user|human|user:|human:)(?=\s)",
    re.IGNORECASE | re.MULTILINE,
)
_ASSISTANT = re.compile(
    r"<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model\n|\[/INST\]"
    r"|^(?:assistant|assistant:)(?=\s|$)",
    re.IGNORECASE | re.MULTILINE,
)


# -- message lists -------------------------------------------------------------------------------------------------


def to_openai_messages(messages: Sequence[Message], image_url: Callable[[Any], str] = str) -> list[dict[str, Any]]:
    """Convert a conversation to OpenAI's form, with `text` and `image_url` parts only.

    Args:
        messages: Turns whose content is a string or a list of parts: OpenAI's chat parts (`text`, `image_url`), its
            Responses parts (`input_text`, `output_text`, `input_image`), or `{"type": "image", "image": ...}` as in
            Qwen and Hugging Face. A part that only marks an image's position is left out: its image travels separately.
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
    """Return the text of a message, without its images."""
    content = to_openai_messages([message])[0]["content"]
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content if p["type"] == "text")


def image_urls(turns: Iterable[Message]) -> list[str]:
    """Return the image URLs of turns in OpenAI's form, in order."""
    parts = [part for turn in turns if not isinstance(turn["content"], str) for part in turn["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


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
    parts = [_part(part, image_url, f"{name}[{i}]") for i, part in enumerate(content)]
    return [part for part in parts if part is not None]


def _part(part: Any, image_url: Callable[[Any], str], name: str) -> dict[str, Any] | None:
    if isinstance(part, str):
        return {"type": "text", "text": _text(part, name)}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return {"type": "text", "text": _text(part["text"], name)}
    if kind not in _IMAGE_PARTS:
        raise InputError(f"{name}: a part of type {kind!r}; must be text, image_url, image or one of their variants")
    # Arrow gives every part every column, so text parts have an empty image and image parts an empty text.
    image = part.get("image_url") if part.get("image") is None else part["image"]
    url = image.get("url") if isinstance(image, Mapping) and "url" in image else image
    return None if url is None else {"type": "image_url", "image_url": {"url": image_url(url)}}


def _text(text: str, name: str) -> str:
    try:
        text.encode()
    # JSON can spell half a surrogate pair, which no encoding can represent.
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: not a valid text: {error.reason}") from error
    return text


# -- text rendered by a chat template ------------------------------------------------------------------------------


def last_question(text: str) -> str:
    """Return the last user turn of a rendered prompt or transcript; the whole text if it has no turns."""
    turn = _last_turn(text)
    return strip_control_tokens(text if turn is None else text[turn[0] : turn[1]])


def last_answer(text: str, prompt: str | None = None) -> str:
    """Return the answer in a rendered transcript.

    Args:
        text: Prompt and answer.
        prompt: The prompt alone, if known: the answer is then what follows it. Image placeholders are ignored in the
            comparison, since a processor repeats them. Otherwise the answer is the turn after the last user turn.

    Raises:
        InputError: The text neither begins with `prompt` nor has turns.
    """
    whole = _VISION.sub("", text)
    if prompt and whole.startswith(start := _VISION.sub("", prompt)):
        return strip_control_tokens(whole[len(start) :])
    turn = _last_turn(whole)
    if turn is None or turn[2] is None:
        raise InputError("the answer cannot be told from the prompt: the text neither begins with it nor has turns")
    return strip_control_tokens(whole[turn[2] :])


def strip_control_tokens(text: str) -> str:
    """Remove the control tokens of chat templates."""
    return _CONTROL.sub("", text).strip()


def _last_turn(text: str) -> tuple[int, int, int | None] | None:
    """Find start and end of the last user turn, and the start of the answer to it; None without a user turn."""
    users = list(_USER.finditer(text))
    if not users:
        return None
    start = users[-1].end()
    mark = _ASSISTANT.search(text, start)
    return (start, len(text), None) if mark is None else (start, mark.start(), mark.end())
