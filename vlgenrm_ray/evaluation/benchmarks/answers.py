"""Reading of benchmark files: JSON Lines or one JSON array, joined by question id."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import InputError


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file or of one JSON array. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a JSON or JSON Lines file") from error
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected objects, one per question")
    return list(rows)


def value_of(row: Mapping[str, Any], names: Sequence[str], path: Path) -> Any:
    """Return the value of the first of `names` that the row has. Raises InputError if it has none."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise InputError(f"{path}: a row has none of {', '.join(names)}; its keys are {', '.join(map(str, row))}")


def read_answers(path: Path, ids: Sequence[str], id_names: Sequence[str], text_names: Sequence[str]) -> list[str]:
    """Read one answer text for each question id, in the order of `ids`.

    Raises InputError if an id is missing or answered twice; answers to other questions are ignored.
    """
    answers: dict[str, str] = {}
    for row in read_rows(path):
        id = str(value_of(row, id_names, path))
        if id in answers:
            raise InputError(f"{path}: question {id} is answered twice; keep one answer per question")
        answers[id] = str(value_of(row, text_names, path))
    if missing := [id for id in ids if id not in answers]:
        raise InputError(
            f"{path}: {len(missing)} of {len(ids)} questions have no answer, the first is {missing[0]}; "
            "answer all questions, since leaving some out changes the score"
        )
    return [answers[id] for id in ids]
