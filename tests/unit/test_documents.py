"""Every Markdown document is true of the repository: its code blocks, commands, settings, paths and links.

Commands are parsed by the real command line and not run; settings are validated by the recipe they would change.
"""

import argparse
import ast
import builtins
import collections.abc
import importlib
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from vlgenrm_ray import recipe
from vlgenrm_ray.ablation import config as ablation_config
from vlgenrm_ray.ablation.config import AblationConfig
from vlgenrm_ray.cli import app
from vlgenrm_ray.config import CoTrainingConfig, PolicyRunConfig, RunConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    ROOT / path
    for path in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TOP_FOLDERS = ("vlgenrm_ray/", "jobs/", "tests/", "cluster/")


@dataclass(frozen=True, slots=True)
class RecipeKind:
    """Configuration class of a command's recipe, and the recipe it uses without `--config`."""

    config: type[BaseModel]
    default: str


REWARD = RecipeKind(RunConfig, "shapes")
POLICY = RecipeKind(PolicyRunConfig, "shapes_grpo")
CO_TRAINING = RecipeKind(CoTrainingConfig, "shapes_co_training")
ABLATION = RecipeKind(AblationConfig, "ablation")
RECIPE_KINDS = {
    "policy": POLICY,
    "bench policy": POLICY,
    "train_policy.py": POLICY,
    "co-train": CO_TRAINING,
    "ablate": ABLATION,
}
"""Kind of recipe by command; REWARD for all others."""


def named(paths: list[Path]) -> Any:
    """Parametrize a test by documents."""
    return pytest.mark.parametrize("document", paths, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Yield the code blocks of these languages, each with `document:line`."""
    text = document.read_text()
    for block in BLOCK.finditer(text):
        if block[1] in languages:
            yield f"{document.relative_to(ROOT)}:{text[: block.start()].count(chr(10)) + 1}", block[2]


def prose(document: Path) -> str:
    """Return a document without its code blocks."""
    return BLOCK.sub("", document.read_text())


def shell_commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a script, without comments, here-documents and variable assignments."""
    lines = iter(script.replace("\\\n", " ").splitlines())
    for line in lines:
        if heredoc := re.search(r"<<-?\s*'?(\w+)'?", line):
            while next(lines) != heredoc[1]:
                pass
            line = line[: heredoc.start()]
        for part in re.split(r"\s(?:&&|\|\||[|;&]|>+ \S+)(?:\s|$)", line):
            if words := shlex.split(part, comments=True):
                # `ray job submit ... -- command`
                yield words[words.index("--") + 1 :] if words[0] == "ray" and "--" in words else words


def commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the words of all commands of a document, in `bash` blocks and in code spans, each with its place."""
    for place, script in blocks(document, "bash", "sh", "console"):
        for words in shell_commands(script):
            yield place, words
    for span in CODE_SPAN.findall(prose(document)):
        is_command = re.match(r"(?:vlgenrm|python jobs/\S+) [\w-]", span)
        if is_command and "..." not in span:
            yield f"{document.relative_to(ROOT)}: `{span}`", shlex.split(span.partition(" > ")[0])


# -- commands ----------------------------------------------------------------------------------------------------------


def parse_vlgenrm(words: list[str]) -> tuple[str, Mapping[str, Any]]:
    """Parse the arguments of `vlgenrm`; return the name of the command and its parameters."""
    command: Any = typer.main.get_command(app)
    names, context = ["vlgenrm"], None
    # A group parses its own options and leaves the rest to one of its commands.
    while True:
        context = command.make_context(names[-1], list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return " ".join(names[1:]), context.params
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        names.append(name)


class _ParsedError(Exception):
    """Raised in place of running a job, with its arguments."""


def parse_job(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """Parse the arguments of a script in jobs/ by its own parser."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser) -> None:
        raise _ParsedError(vars(parse_args(parser)))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr("sys.argv", [path, *words])
        with pytest.raises(_ParsedError) as parsed:
            runpy.run_path(str(ROOT / path), run_name="__main__")
    arguments: Mapping[str, Any] = parsed.value.args[0]
    return arguments


def check_settings(kind: RecipeKind, path: Path | None, overrides: list[str]) -> None:
    """Check that the recipe exists and that it accepts the overrides, by their present names."""
    if path is not None and str(path).isupper():
        path = None  # a placeholder such as RECIPE
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        file = ROOT / (path or f"jobs/recipes/{kind.default}.yaml")
        if kind is ABLATION:
            ablation_config.load(file, overrides)
        else:
            recipe.load(kind.config, file, overrides)


@named(DOCUMENTS)
def test_bash_blocks_are_valid_shell(document: Path) -> None:
    for place, script in blocks(document, "bash", "sh"):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        assert not done.stderr, place


@named(DOCUMENTS)
def test_commands_are_accepted_by_the_command_line(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, words in commands(document):
        try:
            if words[0] == "vlgenrm" and "--help" not in words:
                name, arguments = parse_vlgenrm(words[1:])
                overrides = arguments.get("set_") or []
            elif words[0] == "python" and words[1].startswith("jobs/"):
                name = Path(words[1]).name
                arguments = parse_job(words[1], words[2:], monkeypatch)
                overrides = arguments.get("overrides") or []
            else:
                continue
            check_settings(RECIPE_KINDS.get(name, REWARD), arguments.get("config"), overrides)
        except (Exception, SystemExit) as error:
            # Prose names a command without its arguments.
            if type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError") and "`" in place:
                continue
            raise AssertionError(f"{place}: {shlex.join(words)}: {error!r}") from error


@named(DOCUMENTS)
def test_files_named_in_commands_and_prose_exist(document: Path) -> None:
    words = [word for span in CODE_SPAN.findall(prose(document)) for word in span.split()]
    words += [word for _, line in commands(document) for word in line]
    paths = {re.sub(r":[\w:]+$", "", word) for word in words if word.startswith(TOP_FOLDERS)}
    # Prose may name a file from the package or from the document's folder.
    roots = (ROOT, ROOT / "vlgenrm_ray", document.parent)
    missing = [path for path in paths if not re.search(r"[<$]|\.\.\.", path) and not exists(path, roots)]
    assert not missing


def exists(path: str, roots: tuple[Path, ...]) -> bool:
    """Return whether a path, or for `a/{b,c}` and `*` every pattern of it, is found below one of the roots."""
    before, _, rest = path.partition("{")
    inner, _, after = rest.partition("}")
    patterns = [before + choice + after for choice in inner.split(",")]
    return all(any(any(root.glob(pattern.rstrip("/"))) for root in roots) for pattern in patterns)


# -- code --------------------------------------------------------------------------------------------------------------


@cache
def class_names() -> frozenset[str]:
    """Return the names of all classes of the package."""
    files = (ROOT / "vlgenrm_ray").rglob("*.py")
    return frozenset(name for file in files for name in re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE))


@named(DOCUMENTS)
def test_python_blocks_compile_and_name_what_exists(document: Path) -> None:
    for place, code in blocks(document, "python"):
        compile(code, place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        tree = ast.parse(code)
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlgenrm_ray"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    is_module = (
                        importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                    )
                    assert hasattr(module, alias.name) or is_module, f"{place}: {node.module}.{alias.name}"
                    defined.add(alias.name)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and re.match("[A-Z][a-z]", node.id)}
        unknown = used - defined - class_names() - set(dir(builtins)) - set(dir(collections.abc)) - {"Path"}
        assert not unknown, f"{place}: no such class"


# -- settings and data -------------------------------------------------------------------------------------------------


def install_example_modules(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make importable what `python` blocks define whose first line is `# package/module.py`."""
    for place, code in blocks(document, "python"):
        if path := re.match(r"# (\w+)/(\w+)\.py\n", code):
            module = types.ModuleType(f"{path[1]}.{path[2]}")
            exec(compile(code, place, "exec"), vars(module))
            monkeypatch.setitem(sys.modules, path[1], types.ModuleType(path[1]))
            monkeypatch.setitem(sys.modules, module.__name__, module)


def validate_fragment(values: Any, place: str) -> None:
    """Validate a part of a recipe, laid over the first shipped recipe that has its sections."""
    assert isinstance(values, dict), f"{place}: not a mapping of sections"
    for kind in (REWARD, POLICY, CO_TRAINING):
        if set(values) <= set(kind.config.model_fields):
            whole = yaml.safe_load((ROOT / f"jobs/recipes/{kind.default}.yaml").read_text())
            recipe.build(kind.config, overlay(whole, values))
            return
    raise AssertionError(f"{place}: {sorted(values)} are not sections of one kind of recipe")


def overlay(base: Any, values: Any) -> Any:
    """Return `base` with `values` laid over it, mapping by mapping."""
    if isinstance(base, dict) and isinstance(values, dict):
        return base | {key: overlay(base.get(key), value) for key, value in values.items()}
    return values


@named(DOCUMENTS)
def test_yaml_blocks_are_valid_settings(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example_modules(document, monkeypatch)
    for place, text in blocks(document, "yaml", "yml"):
        validate_fragment(yaml.safe_load(text), place)


@named(DOCUMENTS)
def test_sections_in_prose_are_valid_settings(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example_modules(document, monkeypatch)
    sections = {*RunConfig.model_fields, *PolicyRunConfig.model_fields}
    for span in CODE_SPAN.findall(prose(document)):
        if (match := re.fullmatch(r"(\w+): [{\[].*[}\]]", span)) and match[1] in sections and "..." not in span:
            validate_fragment(yaml.safe_load(span), f"{document.relative_to(ROOT)}: `{span}`")


@named(DOCUMENTS)
def test_json_blocks_parse(document: Path) -> None:
    for place, text in blocks(document, "json", "jsonl"):
        for part in [text] if text.lstrip().startswith("[") or "\n{" not in text.strip() else text.strip().splitlines():
            assert json.loads(part) is not None, place


@named(DOCUMENTS)
def test_links_lead_to_files_and_headings_of_the_repository(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        path, _, heading = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        if "://" in target:
            continue
        assert linked.exists(), target
        assert not heading or heading in heading_anchors(linked), target


def heading_anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tables_name_the_versions_of_trainers_that_are_run() -> None:
    tables = "".join((ROOT / f"vlgenrm_ray/{room}/README.md").read_text() for room in ("adapters", "serving"))
    tables = re.sub(r"[`-]", "", tables).casefold()
    scripts = sorted((ROOT / "tests/trainers").glob("run_*.py"))
    assert scripts
    for script in scripts:
        name, version = re.findall(r'dependencies = \[\s*(?:#\s*)?"([\w-]+)==([\d.]+)"', script.read_text())[0]
        assert re.search(rf"{name.replace('-', '')} [\d.and ]*{re.escape(version)}\b", tables), (name, version)
