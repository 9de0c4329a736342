"""Judge prompts: text files with the fields `{question}`, `{response}` and, in hinted prompts, `{hint}`.

Texts of people and models enter a prompt as data: fields are filled in one pass, so a response that contains
`{question}` stays as it is, and text that could pass for the prompt's own structure is escaped by `escape_prompt_text`.
"""

import re
from importlib.resources import files
from pathlib import Path

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.escaping import escape_prompt_text

__all__ = ["escape_prompt_text", "load", "names", "render"]

_FIELD = re.compile(r"\{(question|response|hint)\}")


def load(name_or_path: str) -> str:
    """Load a prompt template.

    Args:
        name_or_path: Name of a prompt of this package (`cot`), or path of a text file.

    Raises:
        InputError: There is no such prompt or file, or it has no `{question}`.
    """
    path = Path(name_or_path)
    packaged = files("vlgenrm_ray.judge") / "prompts" / f"{name_or_path}.txt"
    if path.suffix or len(path.parts) > 1:
        if not path.is_file():
            raise InputError(f"prompt {name_or_path!r}: no such file")
        text = path.read_text(encoding="utf-8")
    elif packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    else:
        raise InputError(
            f"prompt {name_or_path!r}: unknown name; use one of {', '.join(names())}, or the path of a text file"
        )
    if "{question}" not in text:
        raise InputError(f"prompt {name_or_path!r}: the text must contain {{question}}")
    return text.rstrip("\n")


def names() -> list[str]:
    """List the names of the package's prompts."""
    folder = files("vlgenrm_ray.judge") / "prompts"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".txt"))


def render(template: str, question: str, response: str = "", hint: str = "") -> str:
    """Fill a template with escaped question and response, in one pass. Returns the user turn, without chat template."""
    values = {"question": escape_prompt_text(question), "response": escape_prompt_text(response), "hint": hint}
    return _FIELD.sub(lambda field: values[field[1]], template)
