"""Structure of the code base: light imports, file and class names, private Ray API, and the import contract."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlgenrm_ray.cluster import ray_compat

ROOT = Path(__file__).parents[2]
FILES = [
    path for folder in ("vlgenrm_ray", "jobs", "cluster", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
PACKAGE = {path: ast.parse(path.read_text()) for path in FILES if path.is_relative_to(ROOT / "vlgenrm_ray")}
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "ultralytics", "open_clip", "peft")
PLUGIN_FOLDERS = {
    "engines",
    "detectors",
    "matchers",
    "sources",
    "exports",
    "benchmarks",
    "algorithms",
    "gateways",
    "adapters",
}
"""Folders whose modules are one plug-in each, however small: engines, formats, benchmarks, algorithms, ..."""
SMALL_MODULES = {
    "vlgenrm_ray.shapes.basic": "a world, named in world.WORLDS",
    "vlgenrm_ray.shapes.building.blind_judge": "a judge beside the engines' own, measured by bench/pack.py",
    "vlgenrm_ray.shapes.hard.world": "a world, named in world.WORLDS",
}
"""Modules with one importer and under 60 lines that stay files of their own, with the reason."""
PRIVATE_RAY = re.compile(
    r"ray\._private|ray\.serve\.(?:context|_private)|ray\.\w+(?:\.\w+)*\._internal|ray\._raylet"
    r"|\._actor_id\b|\._register_sigint_handler\b|\bRAY_[a-z]\w*|RAY_JOB_CONFIG_JSON_ENV_VAR"
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE}


def imported_modules(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_module_is_a_grab_bag() -> None:
    grab_bags = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [str(path.relative_to(ROOT)) for path in FILES if grab_bags & {path.stem, path.parent.name}]


def test_jobs_are_short() -> None:
    long = [path.name for path in (ROOT / "jobs").glob("*.py") if len(path.read_text().splitlines()) > 70]
    assert not long, "a job parses, connects, calls one function and exits"


def test_no_two_classes_share_a_name() -> None:
    """Also not with a leading underscore, which a reader would overlook."""
    nodes = (node for tree in PACKAGE.values() for node in ast.walk(tree))
    classes = Counter(node.name.strip("_") for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in classes.items() if count > 1] == []


def test_test_files_do_not_import_each_other() -> None:
    """Shared code is a helper in tests/, imported by its bare name; Ray's workers know it by the same name."""
    wrong = re.compile(r"^\s*(?:from|import) (?:tests\b|.*\btest_\w+)", re.MULTILINE)
    tests = [path for path in FILES if path.is_relative_to(ROOT / "tests")]
    assert not [str(path.relative_to(ROOT)) for path in tests if wrong.search(path.read_text())]


def test_small_modules_have_several_importers_or_are_plug_ins() -> None:
    importers: dict[str, set[Path]] = defaultdict(set)
    for path in (*PACKAGE, *(ROOT / "jobs").glob("*.py")):
        for module in imported_modules(path):
            importers[module].add(path)
    small = {
        module
        for module, path in MODULES.items()
        if path.name not in ("__init__.py", "py.typed")
        and not PLUGIN_FOLDERS & set(path.relative_to(ROOT).parts)
        and len(path.read_text().splitlines()) < 60
        and len(importers[module]) <= 1
    }
    assert small == set(SMALL_MODULES), "merge a small module into its only importer"


def test_imports_run_one_way() -> None:
    command = shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["vlgenrm_ray.cli", "vlgenrm_ray.records", "vlgenrm_ray.cluster.doctor"])
def test_imports_are_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_needs_no_heavy_import() -> None:
    code = (
        "import sys\nsys.argv = ['vlgenrm', '--help']\nfrom vlgenrm_ray.cli import main\n"
        f"try: main()\nfinally: print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "doctor" in done.stdout


def test_private_ray_api_is_used_in_one_module() -> None:
    users = [str(path.relative_to(ROOT)) for path in PACKAGE if PRIVATE_RAY.search(path.read_text())]
    assert users == ["vlgenrm_ray/cluster/ray_compat.py"]


def test_the_checked_version_of_ray_is_the_pinned_one() -> None:
    for name in ("cpu", "gpu"):
        pins = (ROOT / "cluster" / f"requirements-{name}.txt").read_text().splitlines()
        assert f"ray=={ray_compat.CHECKED_VERSION}" in pins
