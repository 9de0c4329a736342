"""Names and docstrings follow the glossary: retired words name nothing, and docstrings start with their subject.

CONTRIBUTING.md states the rules. Only definitions count (classes, functions, parameters, variables, attributes, modules
and keys of recipes), so old names may be read, for example by `Settings.renamed`.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CODE = [path for folder in ("vlgenrm_ray", "jobs", "cluster") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))

RETIRED_CLASSES = {
    "Album",
    "Ask",
    "Asked",
    "Bands",
    "Case",
    "Collected",
    "Collecting",
    "Course",
    "EngineWithin",
    "Engines",
    "EnginesApart",
    "Examiner",
    "Exchange",
    "Flights",
    "Gate",
    "Glance",
    "Handover",
    "Inquiry",
    "Journal",
    "Judged",
    "Lesson",
    "Look",
    "Lost",
    "Measured",
    "Muster",
    "News",
    "OwnJudge",
    "OwnService",
    "Pace",
    "PatienceConfig",
    "Patient",
    "Peers",
    "Piece",
    "Place",
    "PolicyJob",
    "Pool",
    "Pupil",
    "Rationale",
    "Relay",
    "Scored",
    "Sighting",
    "Standing",
    "Startable",
    "Study",
    "Supply",
    "Tally",
    "Testimony",
    "View",
    "Way",
    "Window",
    "Witness",
}
"""Class names that the glossary replaced. A leading underscore makes no difference."""

RETIRED_NAMES = {
    "abandon",
    "album",
    "asks",
    "benches",
    "blindness",
    "collecting",
    "examiner",
    "fate",
    "figures",
    "flights",
    "found",
    "from_first",
    "glance",
    "go_round",
    "hacking",
    "handover",
    "heard",
    "inquiry",
    "kept",
    "laboratory",
    "lesson",
    "lesson_plan",
    "let_go",
    "looking",
    "made",
    "muster",
    "our_side",
    "own_judge",
    "peers",
    "picture",
    "pictures",
    "pupil",
    "pupils",
    "said",
    "sight",
    "sighting",
    "straight",
    "straw",
    "study",
    "tally",
    "taught",
    "testimony",
    "told",
    "witness",
}
"""Names of functions, parameters, variables, attributes, modules and settings that the glossary replaced."""

RETIRED_PREFIXES = ("straw_", "own_judge_")


def definitions(path: Path) -> Iterator[str]:
    """Yield all names that a file defines."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.alias(asname=str(name)):
                yield name


def is_retired(name: str) -> bool:
    """Return whether the glossary replaced a name."""
    bare = name.strip("_")
    return bare in RETIRED_CLASSES or bare.lower() in RETIRED_NAMES or bare.startswith(RETIRED_PREFIXES)


@pytest.mark.parametrize("paths", [CODE, TESTS], ids=["code", "tests"])
def test_retired_words_name_nothing(paths: list[Path]) -> None:
    retired: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        names = {name for name in definitions(path) if is_retired(name)}
        if names:
            retired[str(path.relative_to(ROOT))] = names
    assert not retired


def test_recipes_use_no_retired_keys() -> None:
    def keys(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            yield from value
        for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            yield from keys(child)

    for path in (ROOT / "jobs" / "recipes").glob("*.yaml"):
        assert not {key for key in keys(yaml.safe_load(path.read_text())) if is_retired(str(key))}, path.name


def test_docstrings_start_with_their_subject() -> None:
    opening = re.compile(r"(?:What|Of|Who|Where|How|Whether|So that)\b")
    places = []
    for path in [*CODE, *TESTS]:
        for node in ast.walk(ast.parse(path.read_text())):
            has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            if has_docstring and opening.match(ast.get_docstring(node) or ""):
                places.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}")
    assert not places
