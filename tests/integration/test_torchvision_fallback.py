"""The torchvision fallback: acts where torchvision's operators cannot be loaded, and only there."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "cluster" / "torchvision_fallback.py"


@pytest.fixture(scope="module")
def fallback() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fallback_under_test", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def brute_force(boxes: Any, scores: Any, limit: float) -> list[int]:
    """Non-maximum suppression box by box, in plain Python."""

    def area(b: Any) -> float:
        return float((b[2] - b[0]) * (b[3] - b[1]))

    def overlap(a: Any, b: Any) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        return width * height / (area(a) + area(b) - width * height)

    indices: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(overlap(boxes[i], boxes[k]) <= limit for k in indices):
            indices.append(i)
    return indices


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [0.1, 0.45, 0.7])
def test_nms_equals_brute_force(fallback: ModuleType, seed: int, limit: float) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(60, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 20 + torch.rand(60, 2, generator=generator) * 10], dim=1)
    scores = torch.rand(60, generator=generator)
    indices = fallback.nms(boxes, scores, limit).tolist()
    assert 0 < len(indices) < 60
    assert indices == brute_force(boxes.double().tolist(), scores.tolist(), limit)


def test_nms_of_nothing(fallback: ModuleType) -> None:
    import torch

    indices = fallback.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert (indices.shape, indices.dtype) == ((0,), torch.int64)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_works_in_a_fresh_process_of_this_environment() -> None:
    printed = run(
        "import sys\nassert 'torch' not in sys.modules, 'the start must be light'\n"
        "import torch, torchvision\nfrom torchvision.ops import batched_nms, nms, roi_align\n"
        "boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30.0]])\n"
        "scores = torch.tensor([0.5, 0.9, 0.3])\n"
        "print(nms(boxes, scores, 0.5).tolist(), batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5).tolist(),\n"
        "      tuple(roi_align(torch.rand(1, 3, 8, 8), torch.tensor([[0, 0, 0, 4, 4.0]]), 2).shape))"
    )
    assert printed == "[1, 2] [1, 0, 2] (1, 3, 2, 2)"


FAKE_TORCHVISION = """
import sys, types
sys.path.insert(0, {folder!r})
sys.meta_path = [f for f in sys.meta_path if type(f).__name__ != "_Finder"]
import importlib.util
spec = importlib.util.spec_from_file_location("fallback", {file!r})
fallback = importlib.util.module_from_spec(spec); spec.loader.exec_module(fallback)
torch = types.ModuleType("torch")
def load_library(path):
    if not {whole}: raise OSError("libcudart.so: cannot open shared object file")
torch.ops = types.SimpleNamespace(load_library=load_library)
sys.modules["torch"] = torch
fallback.define_operators = lambda: print("defined")
fallback.install(); fallback.install()
import torchvision
print(torchvision.ops.boxes._assert_has_ops())
"""


@pytest.mark.parametrize(("whole", "expected"), [(True, ["asked"]), (False, ["defined", "None"])])
def test_the_fallback_is_used_only_if_the_operators_do_not_load(
    tmp_path: Path, whole: bool, expected: list[str]
) -> None:
    package = tmp_path / "torchvision"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("from torchvision.ops import boxes")
    (package / "ops" / "__init__.py").write_text("")
    (package / "ops" / "boxes.py").write_text("def _assert_has_ops(): return 'asked'")
    (package / "_C.so").write_bytes(b"")
    printed = run(FAKE_TORCHVISION.format(folder=str(tmp_path), file=str(FILE), whole=whole))
    assert printed.splitlines() == expected
