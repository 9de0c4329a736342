"""Text rendered by chat templates: special tokens, image placeholders, and the turns of prompts and transcripts.

A policy writes part of a transcript, so its words must never move the border between question and answer:

- with the prompt at hand, the answer is what follows the prompt (`answer_after_prompt`);
- without it, the answer is everything after the first assistant mark that follows the first user mark
  (`split_transcript`). The answer itself is not searched, whatever marks it holds.

Marks are special tokens that name a role (`<|im_start|>user`, `<|user|>`, `[INST]`, ...). Plain role names (`USER:`,
`### Human:`) count only in a text without such tokens whose form as a whole is that of a known template: the line
"User name: is it filled in?" of a question is not a turn.
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.thinking import normalize_thinking, resume_thinking

IMAGE_MARK = "<image>"
"""Placeholder of an image that a message marks without a text of its own."""

# -- special tokens ------------------------------------------------------------------------------------------------

# Between bars (`<|im_end|>`, `[|user|]`, full-width ones in DeepSeek), or with one bar as in Gemma 4 (`<|turn>`).
_BARRED = (
    r"<\|[^|<>\n]{0,64}\|>|<\uff5c[^\uff5c<>\n]{1,64}\uff5c>|\[\|[^|\[\]\n]{1,32}\|\]|<\|/?\w{1,32}>|</?\w{1,32}\|>"
)
_IMAGE_WORD = r"(?i:image|img|vision|media|video|vid_?pad|picture|patch|tile)"
_PLACEHOLDER = (
    # Texts that processors write beside placeholders.
    r"Picture \d{1,3}:\s?(?=<\|IMAGE_START\|>)|<image_id>\d{1,4}</image_id>"
    r"|<\|media_(?:start|begin)\|>(?:image|video)<\|media_content\|>|\(<image>\./</image>\)"
    rf"|<\|[^|<>\n]{{0,32}}{_IMAGE_WORD}[^|<>\n]{{0,32}}\|>|<\|/?(?:image|video)>|</?(?:image|video)\|>"
    r"|</?(?i:image|img|video|slice)>|<(?i:image|video)[ _-]?\d{1,3}>|<(?i:img_context|image_?pad|imagehere)>"
    r"|<(?:image_soft_token|image_placeholder|image_token|im_patch|im_start|im_end|im_col|boi|eoi)>"
    r"|<(?:start|end|begin)_of_(?:image|video|img)>|<fake_token_around_image>|<global-img>|<row_\d{1,2}_col_\d{1,2}>"
    r"|\[(?:IMG|IMG_BREAK|IMG_END)\]"
)
_NAMED = (
    r"<(?:start_of_turn|end_of_turn|end_of_utterance|(?:beginning|begin|end)_of_(?:sentence|text)|sop|eop|eod|sep|eoa|eoh"
    r"|eot|eom|pad|eos|bos|unk|mask|extra_id_\d{1,3}|_user|_bot|_system|_end|seed:(?:bos|eos|pad)|\[(?:begin|end)▁of▁sentence\])>"
    r"|<role>(?:HUMAN|USER|ASSISTANT|SYSTEM|OBSERVATION)</role>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|\[(?:gMASK|sMASK|EOS|BOS|PAD)\]|\]~b\]|\]~!b\[|\[e~\["
)
_IMAGE = re.compile(_PLACEHOLDER)
_SPECIAL = re.compile(rf"(?P<image>{_PLACEHOLDER})|{_BARRED}|{_NAMED}")
_ANY_TOKEN = re.compile(rf"{_PLACEHOLDER}|{_BARRED}|{_NAMED}|</?s>")
TEMPLATE_TOKEN = re.compile(rf"{_BARRED}|{_NAMED}|</?s>")
"""A special token of a chat template, image placeholders without bars aside."""
_MAX_NESTED = 8
"""Passes over tokens that appear when the tokens within them are removed, such as `<|im_<|im_end|>end|>`."""
_SENTENCE_TOKENS = re.compile(r"(?:\s|</?s>)+")


def strip_special_tokens(text: str, *, keep_images: bool = False) -> str:
    """Remove the special tokens of chat templates, and whitespace at both ends if there were any.

    `<s>` and `</s>` are removed at the ends of the text only: within it they are HTML. Tokens that mark a policy's
    thinking become `<think>` and `</think>`, see `thinking`. A text without special tokens is returned unchanged.

    Args:
        text: Text of a policy or a data set.
        keep_images: Keep image placeholders.
    """
    if not any(sign in text for sign in ("<", "[", "]~", "\u25c1")):
        return text
    stripped = normalize_thinking(text)
    for _ in range(_MAX_NESTED):
        whole = stripped
        stripped = _SPECIAL.sub(lambda token: token[0] if keep_images and token["image"] else "", whole)
        if stripped == whole:
            break
    stripped = _strip_sentence_tokens(stripped)
    return text if stripped == text else stripped.strip()


def strip_images(text: str) -> str:
    """Remove image placeholders, such as `<image>`, `<|image_pad|>` or `[IMG]`; other texts are returned unchanged."""
    return _IMAGE.sub("", text).strip() if mentions_image(text) else text


def mentions_image(text: str) -> bool:
    """Return whether a text has an image placeholder, hence refers to an image."""
    return _IMAGE.search(text) is not None


def _strip_sentence_tokens(text: str) -> str:
    """Remove `<s>` and `</s>` from both ends, except the closing tag of an `<s>` within the text."""
    if (first := _SENTENCE_TOKENS.match(text)) and "s>" in first[0]:
        text = text[first.end() :]
    last = next(iter(deque(_SENTENCE_TOKENS.finditer(text), maxlen=1)), None)
    if last is None or last.end() < len(text) or "s>" not in last[0]:
        return text
    rest = text[: last.start()]
    return text if rest.count("<s>") > rest.count("</s>") else rest


# -- turns ---------------------------------------------------------------------------------------------------------

# A token that opens a turn, the role, and what ends the role: `<|im_start|>user\n`, `<|turn>user\n`, ...
_OPENER = (
    r"(?:<\|(?!\w{0,32}(?:vision|image|img|video|audio|media|tool|think|box|ref|quad|begin_of|startof|end_of))"
    r"\w{0,32}(?:start|begin|header|turn|role|im_user|im_assistant|im_system|START)\w{0,32}\|?>"
    r"|<start_of_turn>|<beginning_of_sentence>|<\|BOT\|>|<extra_id_[01]>|\]~b\])[ \n]?"
)
_ROLE_END = (
    r"(?:<\|channel\|>\w+<\|message\|>|<\|[^|<>\n]{1,32}\|>|:[ \t]?|[ \t]name=\w+\n|[ \t]ai_setting=\w+\n|[ \t]*\n)"
)
# Tokens that begin a text as well; only a line of its own makes the role.
_TEXT_OPENER = r"<(?:\|begin_of_text\||seed:bos|bos|\[begin\u2581of\u2581sentence\])>"
_USER_WORD = r"(?:GPT4 Correct )?(?i:user|human|question)"
_ASSISTANT_WORD = r"(?:GPT4 Correct )?(?i:assistant|model|answer|ai|bot|chatbot)"
_ANY_WORD = r"[A-Za-z][\w ]{0,31}"


@dataclass(frozen=True, slots=True)
class _Marks:
    """Marks of the turns in a group of templates."""

    first: re.Pattern[str]
    """Mark of any turn, by which a text of these templates begins."""
    user: re.Pattern[str]
    assistant: re.Pattern[str]


def _marks(user: str, assistant: str, first: str = "") -> _Marks:
    return _Marks(re.compile(first or user), re.compile(user), re.compile(assistant))


_TOKEN_MARKS = (
    # ChatML, Llama 3 and 4, Gemma 1 to 4, Phi-4, Kimi, Granite, Harmony, Seed, MiniMax, SmolVLM, Step, Nemotron
    _marks(
        rf"{_OPENER}{_USER_WORD}{_ROLE_END}|{_TEXT_OPENER}{_USER_WORD}\n|<end_of_utterance>\s?User:[ \t]?",
        rf"{_OPENER}{_ASSISTANT_WORD}(?:{_ROLE_END}|\Z)|{_TEXT_OPENER}{_ASSISTANT_WORD}\n|<end_of_utterance>\s?Assistant:"
        r"|<\|start\|>assistant",
        rf"{_OPENER}{_ANY_WORD}{_ROLE_END}|{_TEXT_OPENER}{_ANY_WORD}\n",
    ),
    # GLM, Phi-3, Granite Vision, DeepSeek, Hunyuan, Cohere, EXAONE, TeleChat, Bailing
    _marks(
        r"<[|\uff5c]\s?(?:hy_)?(?i:user|human|prompter)(?:_TOKEN)?\s?[|\uff5c]>(?::[ \t])?|\[\|user\|\]|<_user>"
        r"|<role>(?:HUMAN|USER)</role>",
        r"<[|\uff5c]\s?(?:hy_)?(?i:assistant|chatbot|model|bot)(?:_TOKEN)?\s?[|\uff5c]>(?::[ \t])?|\[\|assistant\|\]"
        r"|<_bot>|<role>ASSISTANT</role>|<\uff5chy_place▁holder▁no▁8\uff5c>",
        r"<[|\uff5c]\s?(?:hy_)?(?i:system|user|human|prompter)(?:_TOKEN)?\s?[|\uff5c]>|\[\|(?:system|user)\|\]"
        r"|<_(?:system|user)>|<role>(?:SYSTEM|HUMAN|USER)</role>",
    ),
    # Llama 2, Mistral, Pixtral
    _marks(r"\[INST\]", r"\[/INST\]", r"\[(?:INST|SYSTEM_PROMPT)\]"),
)
_ROLE_TOKENS = _TOKEN_MARKS[1]
"""Some of these templates have a system text without a mark."""
_AFTER_SYSTEM = r"(?:\A\s*|(?<=[\n.?!\u3002\uff1f\uff01]))"
"""Place of a plain user mark: a line of its own, or directly after a system text, which templates do not separate."""
# Read in texts whose special tokens are blanked out. They end with their colon, as what follows may be such a token.
_PLAIN_MARKS = (
    # Vicuna, LLaVA
    _marks(r"(?<![A-Za-z])USER:", r"(?<![A-Za-z])ASSISTANT:"),
    # Yi-VL, SOLAR, Alpaca, DeepSeek Coder
    _marks(r"(?<!#)### ?(?:Human|User|Instruction):", r"(?<=\n)### ?(?:Assistant|Response):"),
    # OpenChat
    _marks(r"GPT4 Correct (?:User|Human):", r"GPT4 Correct Assistant:"),
    # LLaMA-Factory's `default`, Xuanyuan
    _marks(
        rf"{_AFTER_SYSTEM}Human:(?=\s)",
        r"(?<=[\s.?!\u3002\uff1f\uff01])(?<!# )(?<!Correct )(?:Assistant|AI):",
    ),
    # DeepSeek-VL, ERNIE-VL, Idefics, Falcon
    _marks(
        rf"{_AFTER_SYSTEM}User:",
        r"(?:\n[ \t]{0,8}|(?<=   ))(?:Assistant|Falcon|GPT):",
    ),
    # Templates of special tokens that were decoded without them
    _marks(
        r"(?:\A\s*|(?<=\n))(?:user|human)\n",
        r"(?<=\n)(?:assistant|model)(?:\n|\Z)",
        r"(?:\A\s*)(?:system|user|human)\n",
    ),
)
_FREE_SYSTEM_TEXT = _PLAIN_MARKS[:2]
"""Templates whose first turn may follow a system text of any form."""
_HUNYUAN = _marks(r"\A<\|startoftext\|>(?!<)(?:[^<]*<\|extra_4\|>)?", r"<\|extra_0\|>")
_MOLMO = _marks(r"\A(?:<[^<>\s]{1,32}>)* User:", r" Assistant:")
# PaliGemma has no roles: its prompt ends with the first newline.
_PALIGEMMA = _marks(r"\A(?:<pad>)*(?:<image>)+<bos>(?!<start_of_turn>)", r"\n")
_SYSTEM_TURN = re.compile(r"\s*(?:System:|system\n)")
_THINKING = re.compile(r"</?think>")
_NO_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")
"""Start of the answer in templates with thinking switched off."""
_LEADING_ROLE = re.compile(r"(?:assistant|model|ASSISTANT|Assistant)(?::\s*|\s*\n)")


def last_question(prompt: str) -> str:
    """Return the last user turn of a rendered prompt; the whole text if it is not a prompt of a known template.

    Image placeholders stay; where only other turns have some, `<image>` precedes the question.
    """
    prompt = _without_system_block(prompt)
    marks, text = _find_marks(prompt)
    users, assistants = ([], []) if marks is None else _alternating_turns(text, marks)
    if marks is None or not users or not _is_prompt(prompt, marks, text, users, assistants):
        return _clean_question(prompt)
    if marks in _TOKEN_MARKS:
        # Also where two user turns follow each other.
        users = list(marks.user.finditer(text))
    start = users[-1].end()
    end = marks.assistant.search(text, start)
    return _question(prompt, start, len(prompt) if end is None else end.start())


def prompt_turns(text: str) -> tuple[list[tuple[str, str]], int]:
    """Take a rendered prompt apart.

    Args:
        text: A prompt, or one with the beginning of its answer.

    Returns:
        The turns as (role, text), alternating from "user" to "user" without the system text, and where the answer
        begins. ([], 0) if the text is not a prompt of a known template.
    """
    marks, searched = _find_marks(text)
    users, assistants = ([], []) if marks is None else _alternating_turns(searched, marks)
    if marks is None or not users:
        return [], 0
    end = assistants[-1].end() if len(assistants) == len(users) else len(text)
    if not _is_prompt(text[:end], marks, searched[:end], users, assistants):
        return [], 0
    turns: list[tuple[str, str]] = []
    for number, user in enumerate(users):
        answer = assistants[number] if number < len(assistants) else None
        stop = len(text) if answer is None else answer.start()
        turns.append(("user", _clean_question(_without_system_block(text[user.end() : stop]))))
        if answer is not None and number + 1 < len(users):
            turns.append(("assistant", strip_special_tokens(text[answer.end() : users[number + 1].start()]).strip()))
    return turns, end


def _is_prompt(
    prompt: str,
    marks: _Marks,
    searched: str,
    users: Sequence[re.Match[str]],
    assistants: Sequence[re.Match[str]],
) -> bool:
    """Return whether a text with the marks of a template begins with a turn and ends where an answer begins."""
    ends = bool(assistants) and not _blank_tokens(_THINKING.sub("", prompt[assistants[-1].end() :]))
    known = _starts_text(prompt, marks, searched)
    if marks in _TOKEN_MARKS:
        return known or (ends and marks is _ROLE_TOKENS)
    # A mark within a line directly follows a system text; a question has its own on lines of their own.
    within = prompt[: users[0].start()][-1:] not in ("", "\n")
    return ends and (known or within or marks in _FREE_SYSTEM_TEXT or _SYSTEM_TURN.match(searched) is not None)


def split_transcript(transcript: str, *, num_turns: int | None = 1, answer_mark: str = "") -> tuple[str, str]:
    """Split a transcript, prompt and answer in one text, into question and answer.

    Args:
        transcript: Prompt and answer.
        num_turns: Number of the user turns in the prompt. Further ones belong to the answer. None: the answer has none,
            so that the last user turn is the question. A policy that writes a user turn then chooses its own question.
        answer_mark: Text at whose first occurrence the answer begins, for templates that have no known marks.

    Returns:
        The question, with image placeholders as in `last_question`, and the answer.

    Raises:
        InputError: The border between prompt and answer cannot be told.
    """
    if answer_mark:
        prompt, separator, answer = transcript.partition(answer_mark)
        if not separator:
            raise InputError(f"the text has no {answer_mark!r}, with which its answer begins")
        return last_question(prompt), strip_special_tokens(answer).strip()
    marks, text = _find_marks(transcript)
    users = [] if marks is None else list(marks.user.finditer(text))[:num_turns]
    mark = None
    if marks is not None and users and _is_transcript(transcript, marks, text, users[0]):
        mark = marks.assistant.search(text, users[-1].end())
    if mark is None:
        raise InputError(
            "the answer cannot be told from the prompt: the text neither begins with the prompt nor has the turns of a "
            "known chat template"
        )
    question = _question(transcript, users[-1].end(), mark.start())
    thought = _NO_THOUGHT.match(transcript, mark.end())
    answer_start = mark.end() if thought is None else thought.end()
    return question, strip_special_tokens(transcript[answer_start:]).strip()


def num_user_turns(text: str) -> int:
    """Count the user turns of a prompt or transcript in a known template, 0 without one."""
    marks, text = _find_marks(text)
    return 0 if marks is None else sum(1 for _ in marks.user.finditer(text))


def answer_after_prompt(transcript: str, prompt: str) -> str:
    """Return the answer of a transcript whose prompt is known, in any chat template.

    The comparison ignores whitespace, special tokens and image placeholders, in which a decoded prompt differs from the
    text that was encoded. Where the transcript has lost or gained something at its start, the end of the prompt is
    located by its last words, at the occurrence that is the last one within the prompt, so that a repetition in the
    answer does not count.

    Raises:
        InputError: The prompt is not in the transcript, and neither are the turns of a known template.
    """
    whole = _Letters(transcript)
    end = _end_of_prompt(whole.letters, _Letters(prompt).letters)
    if end is None:
        return split_transcript(transcript, num_turns=max(num_user_turns(prompt), 1))[1]
    answer = strip_special_tokens(transcript[_answer_start(transcript, whole.end_in_text(end)) :]).strip()
    return resume_thinking(answer, prompt)


def answer_after_question(transcript: str, question: str, num_turns: int) -> str:
    """Return the answer of a transcript of which the last question and the number of user turns are known.

    Raises:
        InputError: Neither the turns of a known template nor the question are in the transcript.
    """
    try:
        return split_transcript(transcript, num_turns=max(num_turns, 1))[1]
    except InputError:
        whole, part = _Letters(transcript), _Letters(question).letters
        place = whole.letters.find(part) if part else -1
        if place < 0:
            raise
        rest = strip_special_tokens(transcript[whole.end_in_text(place + len(part)) :]).strip()
        return _LEADING_ROLE.sub("", rest, count=1) if _LEADING_ROLE.match(rest) else rest


def _answer_start(transcript: str, prompt_end: int) -> int:
    """Return where the answer begins: behind the assistant mark, if the prompt was given without it."""
    marks, text = _find_marks(transcript)
    mark = None if marks is None or marks is _PALIGEMMA else marks.assistant.search(text, prompt_end)
    if mark is None or _blank_tokens(_THINKING.sub("", transcript[prompt_end : mark.start()])):
        return prompt_end
    return mark.end()


def _find_marks(text: str) -> tuple[_Marks | None, str]:
    """Find the template whose first mark comes first: the prompt precedes the answer, so an answer cannot choose it.

    Returns:
        The marks, and the text in which they are to be searched, of the same length.
    """
    blanked = _ANY_TOKEN.sub(lambda token: " " * len(token[0]), text)
    candidates = [(marks, text) for marks in (_PALIGEMMA, _HUNYUAN, _MOLMO, *_TOKEN_MARKS)] + [
        (marks, blanked) for marks in _PLAIN_MARKS
    ]
    starts = [(_start(mark), i) for i, (marks, where) in enumerate(candidates) if (mark := marks.first.search(where))]
    if not starts:
        return None, text
    first = candidates[min(starts)[1]]
    tokens = min(((start, i) for start, i in starts if candidates[i][0] in _TOKEN_MARKS), default=None)
    if tokens is not None and first[0] in _PLAIN_MARKS and not first[0].assistant.search(blanked, 0, tokens[0]):
        # Only a word of a system text that has no mark, as in DeepSeek's templates.
        return candidates[tokens[1]]
    if first[0] in _PLAIN_MARKS:
        # A word of a system text has no answer; the template has.
        answered = [
            (start, i) for start, i in starts if candidates[i][0] in _PLAIN_MARKS and _is_answered(*candidates[i])
        ]
        return candidates[min(answered)[1]] if answered else first
    return first


def _is_answered(marks: _Marks, text: str) -> bool:
    """Return whether an assistant mark follows the first user mark."""
    user = marks.user.search(text)
    return user is not None and marks.assistant.search(text, user.end()) is not None


def _start(mark: re.Match[str]) -> int:
    """Return where a mark begins, without the whitespace before it."""
    return mark.end() - len(mark[0].lstrip())


def _starts_text(text: str, marks: _Marks, searched: str) -> bool:
    """Return whether a text begins with a turn; special tokens may precede it."""
    first = marks.first.search(searched)
    return first is not None and not _blank_tokens(text[: first.start()])


def _is_transcript(text: str, marks: _Marks, searched: str, user: re.Match[str]) -> bool:
    """Return whether a text begins as a prompt does, so that its first user mark is not one of the answer."""
    if marks.assistant.search(searched, 0, user.start()) is not None and marks is not _PALIGEMMA:
        return False
    return marks is _ROLE_TOKENS or marks in _PLAIN_MARKS[:-1] or _starts_text(text, marks, searched)


def _blank_tokens(text: str) -> str:
    """Return what a text has beside special tokens and whitespace."""
    return _ANY_TOKEN.sub("", text).strip()


def _question(text: str, start: int, end: int) -> str:
    """Return the question between two places of a prompt."""
    question = _clean_question(_without_system_block(text[start:end]))
    return question if mentions_image(question) or not mentions_image(text[:start]) else IMAGE_MARK + question


def _without_system_block(prompt: str) -> str:
    """Remove the system text that Llama 2 has within the first user turn."""
    before, begin, rest = prompt.partition("<<SYS>>")
    _, end, after = rest.partition("<</SYS>>")
    return before + after if begin and end else prompt


def _clean_question(question: str) -> str:
    return strip_special_tokens(question, keep_images=True).strip()


def _alternating_turns(text: str, marks: _Marks) -> tuple[list[re.Match[str]], list[re.Match[str]]]:
    """Find user and assistant marks that follow each other in turn."""
    users: list[re.Match[str]] = []
    assistants: list[re.Match[str]] = []
    place, pattern = 0, marks.user
    while (mark := pattern.search(text, place)) is not None:
        (users if pattern is marks.user else assistants).append(mark)
        place, pattern = mark.end(), marks.assistant if pattern is marks.user else marks.user
    return users, assistants


# -- transcripts and their prompts, compared by letters ------------------------------------------------------------

_TAIL_LENGTHS = (400, 100, 40)
"""Numbers of letters at the end of a prompt by which that end is located."""


class _Letters:
    """A text without whitespace and special tokens, in which places are found again."""

    def __init__(self, text: str) -> None:
        blanked = _ANY_TOKEN.sub(lambda token: " " * len(token[0]), text)
        words = list(re.finditer(r"\S+", blanked))
        self.letters = "".join([word[0] for word in words])
        self._ends = list(accumulate(len(word[0]) for word in words))
        self._word_ends = [word.end() for word in words]

    def end_in_text(self, num_letters: int) -> int:
        """Return where the first letters end in the text."""
        if num_letters == 0:
            return 0
        word = bisect_left(self._ends, num_letters)
        return self._word_ends[word] - (self._ends[word] - num_letters)


def _end_of_prompt(text: str, prompt: str) -> int | None:
    """Find the end of a prompt in a text, both as letters; None if it is not in there."""
    if text.startswith(prompt):
        return len(prompt)
    for length in dict.fromkeys(min(length, len(prompt)) for length in _TAIL_LENGTHS):
        tail = prompt[len(prompt) - length :]
        ends = [match.end(1) for match in re.finditer(f"(?=({re.escape(tail)}))", prompt)]
        place = -1
        for _ in ends:
            place = text.find(tail, place + 1)
            if place < 0:
                break
        if place >= 0:
            return place + length
    return None
