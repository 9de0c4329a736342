"""Judge prompts: text files with the fields `{question}`, `{response}` and, in hinted prompts, `{hint}`.

Prompts of a pairwise judge have `{response_a}` and `{response_b}` instead of `{response}`.

Texts of people and models enter a prompt as data: fields are filled in one pass, so a response that contains
`{question}` stays as it is, and text that could pass for the prompt's own structure is escaped by `escape_prompt_text`.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.escaping import blunt_response_labels, escape_prompt_text

__all__ = ["escape_prompt_text", "load", "names", "render", "render_pair"]

_FIELD = re.compile(r"\{(question|response|response_a|response_b|hint)\}")
_PAIR_FIELDS = ("{response_a}", "{response_b}")


def load(name_or_path: str, *, pairwise: bool = False) -> str:
    """Load a prompt template.

    Args:
        name_or_path: Name of a prompt of this package (`cot`), or path of a text file.
        pairwise: It must show two responses.

    Raises:
        InputError: There is no such prompt or file, or it lacks `{question}` or the fields of two responses.
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
    if pairwise and not all(field in text for field in _PAIR_FIELDS):
        raise InputError(
            f"prompt {name_or_path!r}: a pairwise judge's prompt must contain {' and '.join(_PAIR_FIELDS)}"
        )
    return text.rstrip("\n")


def names() -> list[str]:
    """List the names of the package's prompts."""
    folder = files("vlgenrm_ray.judge") / "prompts"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".txt"))


def render(template: str, question: str, response: str = "", hint: str = "") -> str:
    """Fill a template with escaped question and response, in one pass. Returns the user turn, without chat template."""
    return _fill(template, {"question": question, "response": response}, hint)


def render_pair(template: str, question: str, response_a: str, response_b: str, hint: str = "") -> str:
    """Fill a template of a pairwise judge like `render`. Labels such as `Response B:` in the responses are blunted."""
    responses = {"response_a": blunt_response_labels(response_a), "response_b": blunt_response_labels(response_b)}
    return _fill(template, {"question": question, **responses}, hint)


def _fill(template: str, texts: Mapping[str, str], hint: str) -> str:
    values = {name: escape_prompt_text(text) for name, text in texts.items()} | {"hint": hint}
    # A field that the template of the other kind of judge has stays empty.
    return _FIELD.sub(lambda field: values.get(field[1], ""), template)
