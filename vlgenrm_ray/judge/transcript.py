"""Text in a chat template -> what was asked, and what was answered.

Some trainers send a reward nothing but decoded tokens. Where they also send the prompt, the answer is what follows it;
only where they do not is the text searched for the template's marks (ChatML, Llama, Gemma, Mistral, plain names).
"""

import re

from vlgenrm_ray.errors import InputError

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


def asked(text: str) -> str:
    """The last user's turn of a prompt or a whole transcript; of a text without a template, all of it."""
    turn = _turn(text)
    return plain(text if turn is None else text[turn[0] : turn[1]])


def answered(text: str, prompt: str | None = None) -> str:
    """The answer: what follows `prompt`, or else the assistant's turn after the last user's.

    Image placeholders count for nothing, since a processor repeats them. Raises InputError where neither is found.
    """
    whole = _VISION.sub("", text)
    if prompt and whole.startswith(start := _VISION.sub("", prompt)):
        return plain(whole[len(start) :])
    turn = _turn(whole)
    if turn is None or turn[2] is None:
        raise InputError("the answer cannot be told from the prompt: the text neither begins with it nor has turns")
    return plain(whole[turn[2] :])


def plain(text: str) -> str:
    """The text without the template's control tokens."""
    return _CONTROL.sub("", text).strip()


def _turn(text: str) -> tuple[int, int, int | None] | None:
    """Where the last user's turn begins and ends, and where the answer to it begins; None without a user's turn."""
    users = list(_USER.finditer(text))
    if not users:
        return None
    start = users[-1].end()
    mark = _ASSISTANT.search(text, start)
    return (start, len(text), None) if mark is None else (start, mark.start(), mark.end())
