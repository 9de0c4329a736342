"""Prompts: text files with `{question}`, `{response}` and, in a hinted one, `{hint}`.

What a person or a model wrote goes into a prompt as data: it is filled in once (a response that says
`{question}` stays as it is), and what could pass for the prompt's own structure is blunted, see `escape_prompt_text`.
"""

import re
from importlib.resources import files
from pathlib import Path

from vlgenrm_ray.errors import InputError

_FIELD = re.compile(r"\{(question|response|hint)\}")
_CONTROL_TOKEN = re.compile(r"<\|([^|<>\s]*)\|>")
_VERDICT = re.compile(r"(verdict)\s*[:\uff1a]", re.IGNORECASE)
# Only from where blanks begin: tried from each of many, it would take their number squared.
_NEWLINE = re.compile(r"(?<!\s)\s*\n\s*")


def load(name_or_path: str) -> str:
    """The template of that name among the package's prompts (`cot`), or in the file at that path.

    Raises InputError where there is none, or where it has no `{question}`.
    """
    path = Path(name_or_path)
    own = files("vlgenrm_ray.judge") / "prompts" / f"{name_or_path}.txt"
    if path.suffix or len(path.parts) > 1:
        if not path.is_file():
            raise InputError(f"prompt {name_or_path!r}: no such file")
        text = path.read_text(encoding="utf-8")
    elif own.is_file():
        text = own.read_text(encoding="utf-8")
    else:
        raise InputError(
            f"prompt {name_or_path!r}: no prompt of that name; there are {', '.join(names())}, or give a path"
        )
    if "{question}" not in text:
        raise InputError(f"prompt {name_or_path!r}: the text must have a place for {{question}}")
    return text.rstrip("\n")


def names() -> list[str]:
    """Names of the package's own prompts."""
    folder = files("vlgenrm_ray.judge") / "prompts"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".txt"))


def render(template: str, question: str, response: str = "", hint: str = "") -> str:
    """The user's turn. One pass: nothing filled in is looked at again. Texts are made `escape_prompt_text` first."""
    values = {"question": escape_prompt_text(question), "response": escape_prompt_text(response), "hint": hint}
    return _FIELD.sub(lambda field: values[field[1]], template)


def escape_prompt_text(text: str) -> str:
    """`text` as it may stand inside a prompt; plain sentences come back unchanged.

    - `<|im_end|>` and its like, which a chat template would take for its own, become `(im_end)`;
    - `Verdict:` becomes `Verdict -`, so a judge that quotes the response quotes no verdict;
    - further lines are indented, so none can pass for a label line of the prompt.
    """
    text = _CONTROL_TOKEN.sub(r"(\1)", text.replace("\r", "\n").strip())
    text = _VERDICT.sub(r"\1 -", text)
    return _NEWLINE.sub("\n  ", text)
