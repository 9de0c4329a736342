"""Conversations in the forms of data sets: chat turns, parts with images, histories, rendered templates.

`parse_turns` reads any of them. Within the text of a turn, `<image>` marks the place of an image, in the order of the
row's images; an image that a turn holds itself is returned with it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlgenrm_ray.curation.sources.values import MalformedRowError, is_missing, show, to_text
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.chat_templates import IMAGE_MARK, prompt_turns, strip_images, strip_special_tokens

_ROLES = {
    "user": "user",
    "human": "user",
    "usr": "user",
    "question": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "system",
    "observation": "user",
    "tool": "user",
}
"""Role or speaker in a data set -> role of a turn."""
_PUNCTUATION = (".", ",", ";", ":", "?", "!", ")")
_TEXT_KEYS = ("text", "value", "content")
_IMAGE_KEYS = ("image", "image_url", "url", "base64", "path", "value")
_IMAGE_TYPES = ("image", "image_url", "input_image", "image_pil")
_OTHER_MEDIA = re.compile(r"<\|?/?(video|audio)(?:_pad)?\|?>|<(video|audio)>")
_IMAGE_MARKS = re.compile(
    r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>|<(?i:image|imagehere|image_placeholder|img_context)>"
    r"|<(?i:image)[ _-]?\d{1,3}>|<\|image(?:_\d{1,3}|_pad)?\|>|\[IMG\]|<im_patch>"
)
_INLINE_IMAGE = re.compile(r"(?:Picture \d{1,3}:\s*)?<img>([^<>\n]+)</img>")
"""An image's path within the text, as the first Qwen-VL has it."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One turn of a conversation, as a data set has it."""

    role: str
    """`user`, `assistant` or `system`."""
    text: str
    """Text, with `<image>` where an image is shown."""
    images: tuple[Any, ...] = ()
    """Images that the turn itself holds, in the form of the data set; empty if it only marks their places."""


def is_turns(value: Any) -> bool:
    """Return True if a value is a list of chat turns, also one in JSON."""
    value = _from_json(value)
    return isinstance(value, (list, tuple)) and bool(value) and all(_is_turn(turn) for turn in value)


def parse_turns(value: Any, field: str, *, role: str = "user") -> tuple[ChatTurn, ...]:
    """Read a conversation.

    Args:
        value: A text, a turn, a list of turns, a list of parts, any of these in JSON, or a prompt rendered by a known
            chat template, which is taken apart. None is an empty conversation.
        field: Name of the field, for messages.
        role: Role of a text, or of parts, that do not name one.

    Raises:
        MalformedRowError: The value has none of these forms, or shows a video.
    """
    if is_missing(value):
        return ()
    value = _from_json(value)
    if isinstance(value, str):
        return _from_text(value, role)
    if isinstance(value, Mapping):
        return (_turn(value, field, role),)
    if not isinstance(value, (list, tuple)):
        raise MalformedRowError(f"{field} must be a text or a list of turns, not {show(value)}")
    if value and all(_is_turn(turn) for turn in value):
        return tuple(_turn(turn, field, role) for turn in value)
    if value and all(_is_part(part) for part in value):
        return (_from_parts(value, field, role),)
    if len(value) == 1:
        return parse_turns(value[0], field, role=role)
    raise MalformedRowError(f"{field} has no turns with a role and a text: {show(value)}")


def parse_history(value: Any, field: str) -> tuple[ChatTurn, ...]:
    """Read a list of [question, answer] pairs, or of turns."""
    value = _from_json(value)
    if is_missing(value) or is_turns(value):
        return parse_turns(value, field)
    if not isinstance(value, (list, tuple)):
        raise MalformedRowError(f"{field} must be a list of [question, answer] pairs, not {show(value)}")
    turns: list[ChatTurn] = []
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise MalformedRowError(f"{field} must be a list of [question, answer] pairs, not of {show(pair)}")
        turns += (*parse_turns(pair[0], field), *parse_turns(pair[1], field, role="assistant"))
    return tuple(turns)


def answer_text(value: Any, field: str) -> str | None:
    """Return the text of a response: a text, the last assistant's turn of a conversation, or parts; None if missing."""
    if is_missing(value):
        return None
    parsed = _from_json(value)
    if isinstance(parsed, (str, int, float)):
        return to_text(value, field)
    if isinstance(parsed, (list, tuple)) and len(parsed) > 1 and all(isinstance(text, str) for text in parsed):
        raise MalformedRowError(f"{field} has {len(parsed)} texts; give one, or a row for each")
    if isinstance(parsed, Mapping) and str(parsed.get("from", "")).strip().lower() not in _ROLES:
        # A single turn may name the model that wrote it, as in LLaVA-RLHF.
        parsed = {key: value for key, value in parsed.items() if key != "from"}
    turns = parse_turns(parsed, field, role="assistant")
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers or turns[-1].role != "assistant":
        raise MalformedRowError(f"{field} does not end with a turn of the assistant")
    return strip_images(answers[-1].text)


def reference_text(value: Any, field: str) -> str | None:
    """Return the text of a reference: as `answer_text`, several texts separated by "; ", the content of `<answer>`."""
    is_list = isinstance(value, (list, tuple)) and not any(isinstance(item, Mapping) for item in value)
    text = to_text(value, field) if is_list else answer_text(value, field)
    stripped = (text or "").strip()
    if stripped.startswith(("<think>", "<answer>")) and stripped.endswith("</answer>"):
        return stripped.rpartition("<answer>")[2].removesuffix("</answer>").strip()
    return text


def is_rendered(prompt: Any) -> bool:
    """Return True if a prompt is a text that a known chat template rendered."""
    return isinstance(prompt, str) and bool(prompt_turns(prompt)[0])


def split_answer(turns: Sequence[ChatTurn]) -> tuple[tuple[ChatTurn, ...], str | None]:
    """Split a conversation into the turns up to the last question, and the answer that follows, if any."""
    if turns and turns[-1].role == "assistant":
        return tuple(turns[:-1]), strip_images(turns[-1].text)
    return tuple(turns), None


def split_pair(chosen: Sequence[ChatTurn], rejected: Sequence[ChatTurn]) -> tuple[tuple[ChatTurn, ...], str, str]:
    """Split two conversations that differ in their end into the common prompt and the two answers.

    Raises:
        MalformedRowError: They do not end with the assistant, or differ before their last turn.
    """
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1].role != "assistant":
            raise MalformedRowError(f"{name} does not end with a turn of the assistant")
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == len(chosen) == len(rejected):
        common -= 1
    if common != len(chosen) - 1 or common != len(rejected) - 1:
        raise MalformedRowError("chosen and rejected differ before their last turn; they answer different questions")
    return tuple(chosen[:-1]), strip_images(chosen[-1].text), strip_images(rejected[-1].text)


def split_transcripts(chosen: str, rejected: str) -> tuple[tuple[ChatTurn, ...], str, str] | None:
    """Split two rendered transcripts with the same prompt into prompt and answers; None if they are none."""
    length = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    turns, end = prompt_turns(chosen[:length])
    if not turns:
        return None
    answers = [strip_special_tokens(text[end:]).strip() for text in (chosen, rejected)]
    return tuple(ChatTurn(role, _normalise(text)) for role, text in turns), answers[0], answers[1]


def render(turns: Sequence[ChatTurn], num_images: int) -> str:
    """Return a conversation as one text, in the form in which the service shows it to the judge.

    A single question needs no role; in a longer conversation the judge must see who said what. The place of an image
    stays only where it matters: for several images that do not all precede the text.

    Raises:
        MalformedRowError: More images are marked than there are.
    """
    num_marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if num_marks > num_images:
        raise MalformedRowError(f"{num_marks} {IMAGE_MARK} in the text for {num_images} images; give each its image")
    if num_images > 1 and not _marks_come_first(turns, num_marks):
        turns = _number_marks(turns)
    texts = [(turn.role, strip_images(turn.text).strip()) for turn in turns]
    if len(texts) == 1:
        return texts[0][1]
    return "\n".join(f"{role.capitalize()}: {text}" for role, text in texts)


def _marks_come_first(turns: Sequence[ChatTurn], num_marks: int) -> bool:
    first = next((turn.text for turn in turns if turn.role == "user"), "")
    return re.match(rf"(?:\s*{IMAGE_MARK}){{{num_marks}}}", first) is not None


def _number_marks(turns: Sequence[ChatTurn]) -> tuple[ChatTurn, ...]:
    number = 0
    numbered = []
    for turn in turns:
        text = turn.text
        while IMAGE_MARK in text:
            number += 1
            before, _, after = text.partition(IMAGE_MARK)
            gap = "" if after.lstrip()[:1] in _PUNCTUATION else " "
            text = f"{before.rstrip()} (image {number}){gap}{after.lstrip()}".strip()
        numbered.append(replace(turn, text=text))
    return tuple(numbered)


def _from_json(value: Any) -> Any:
    """Return the list or object that a text holds in JSON, else the value."""
    if isinstance(value, str) and value[:1] in ("[", "{") and value[-1:] in ("]", "}"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(parsed, Mapping) or (isinstance(parsed, list) and any(isinstance(p, Mapping) for p in parsed)):
            return parsed
    return value


def _is_turn(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    role = value.get("role", value.get("from"))
    return isinstance(role, str)


def _is_part(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Mapping) and any(key in value for key in ("type", *_TEXT_KEYS, *_IMAGE_KEYS, "bytes"))
    )


def _turn(value: Mapping[Any, Any], field: str, role: str) -> ChatTurn:
    named = value.get("role", value.get("from"))
    if named is not None:
        known = _ROLES.get(str(named).strip().lower())
        if known is None:
            raise MalformedRowError(f"{field} has a turn of unknown role {show(named)}; use user, assistant or system")
        role = known
    content = next((value[key] for key in ("content", "value", "text") if not is_missing(value.get(key))), None)
    if content is None or isinstance(content, (str, int, float)):
        text, images = _text("" if content is None else str(content))
        return ChatTurn(role, text, images)
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, (list, tuple)):
        raise MalformedRowError(f"{field} has a turn that is no text: {show(content)}")
    return _from_parts(parts, field, role)


def _from_parts(parts: Sequence[Any], field: str, role: str) -> ChatTurn:
    texts: list[str] = []
    images: list[Any] = []
    for part in parts:
        text, image = _part(part, field)
        if text is not None:
            follows_text = bool(texts) and texts[-1] != IMAGE_MARK
            plain, inline = _text(text)
            texts.append("\n" + plain if follows_text else plain)
            images += inline
        else:
            texts.append(IMAGE_MARK)
            images += [] if image is None else [image]
    return ChatTurn(role, "".join(texts), tuple(images))


def _part(part: Any, field: str) -> tuple[str | None, Any]:
    """Return the text of a part, or (None, its image), or (None, None) for a mark of an image."""
    if isinstance(part, str):
        return part, None
    if not isinstance(part, Mapping):
        raise MalformedRowError(f"{field} has a part that is neither text nor image: {show(part)}")
    kind = part.get("type")
    for medium in ("video", "audio"):
        # Arrow gives every part every column, so a text part may have an empty video.
        if (isinstance(kind, str) and medium in kind) or (kind is None and not is_missing(part.get(medium))):
            raise _other_medium(medium)
    if kind in _IMAGE_TYPES or (kind is None and any(not is_missing(part.get(key)) for key in ("image", "image_url"))):
        return None, _part_image(part)
    text = next((part[key] for key in _TEXT_KEYS if isinstance(part.get(key), str)), None)
    if text is None:
        raise MalformedRowError(f"{field} has a part of type {show(kind)} without a text; use text or image")
    return text, None


def _part_image(part: Mapping[Any, Any]) -> Any:
    image = next((part[key] for key in _IMAGE_KEYS if not is_missing(part.get(key))), None)
    if not is_missing(part.get("bytes")):
        return {"bytes": part["bytes"], "path": part.get("path")}
    return image["url"] if isinstance(image, Mapping) and "url" in image else image


def _from_text(text: str, role: str) -> tuple[ChatTurn, ...]:
    if role == "user":
        turns, _ = prompt_turns(text)
        if turns:
            return tuple(ChatTurn(name, *_text(plain)) for name, plain in turns)
    return (ChatTurn(role, *_text(text)),)


def _text(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text with `<image>` as the mark of every image, and the images whose paths it holds."""
    images = tuple(match[1].strip() for match in _INLINE_IMAGE.finditer(text))
    return _normalise(_INLINE_IMAGE.sub(IMAGE_MARK, text) if images else text), images


def _normalise(text: str) -> str:
    if "<" not in text and "[IMG]" not in text:
        return text
    if other := _OTHER_MEDIA.search(text):
        raise _other_medium(other[1] or other[2])
    return _IMAGE_MARKS.sub(IMAGE_MARK, text)


def _other_medium(medium: str) -> MalformedRowError:
    if medium == "video":
        return MalformedRowError("video: only still images are supported; extract frames as images", DropReason.VIDEO)
    return MalformedRowError(f"{medium}: only images are supported")
