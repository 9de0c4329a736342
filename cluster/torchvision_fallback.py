"""Lets `import torchvision` work where its wheel was compiled for CUDA and torch was not.

Such a wheel's operators need CUDA's libraries; without them the import dies with "operator torchvision::nms does not
exist", and with it transformers, open_clip, ultralytics and vLLM. `setup.sh` copies this file into site-packages as
`vlgenrm_torchvision_fallback.py`, next to a `.pth` file of one line that calls `install()`. So it acts in every process
of the environment: drivers, Ray workers, vLLM's model inspection. At start it costs one small import and no torch.

Where the operators load (torchvision's own `+cpu` wheel, or torch with CUDA) nothing is changed. Where they do not,
the operators the import needs are declared, and `nms`, the one of them that detectors call, is computed on the CPU;
`roi_align` keeps torchvision's own Python version, and every other operator fails as torchvision means it to.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

# Every Python process of the environment runs this module: `typing` alone would be half of its cost.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    from torch import Tensor

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []
"""Keeps the definitions alive: torch withdraws them with the object that made them."""


def install() -> None:
    """Stand before torchvision's import. Harmless when called twice, or where torchvision is whole or absent."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchvision where Python would, and has it executed by `_Loader`."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Executes torchvision, with the fallback around it where its operators cannot be loaded."""

    def exec_module(self, module: "ModuleType") -> None:
        if has_operators(module):
            super().exec_module(module)
            return
        define_operators()
        super().exec_module(module)
        # boxes.py asks this before it calls nms or qnms. torchvision.extension itself keeps saying that there are no
        # operators, which is what makes roi_align take its Python path.
        sys.modules["torchvision.ops.boxes"].__dict__["_assert_has_ops"] = lambda: None


def has_operators(torchvision: "ModuleType") -> bool:
    """Return whether the compiled operators in torchvision's folder can be loaded into this process."""
    import torch

    operators: Any = torch.ops
    for folder in torchvision.__path__:
        spec = PathFinder.find_spec("_C", [folder])
        if spec is None or spec.origin is None:
            continue
        try:
            operators.load_library(spec.origin)
        except OSError:
            continue
        return True
    return False


def define_operators() -> None:
    """Declare nms and qnms to torch, and compute nms on the CPU."""
    import torch

    libraries: Any = torch.library
    library = libraries.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", nms, "CPU")
    _libraries.append(library)


def nms(boxes: "Tensor", scores: "Tensor", iou_threshold: float) -> "Tensor":
    """Greedy non-maximum suppression.

    Args: boxes [N, 4] as (x0, y0, x1, y1); scores [N]; a box falls if its overlap (intersection over union) with a
    better one that stayed is greater than `iou_threshold`. Returns int64 indices of those that stay, best first;
    equal scores keep their order.
    """
    import torch

    order = torch.argsort(scores, descending=True, stable=True)
    x0, y0, x1, y1 = boxes[order].double().unbind(1)
    area = (x1 - x0) * (y1 - y0)
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        width = (torch.minimum(x1[i], x1[i + 1 :]) - torch.maximum(x0[i], x0[i + 1 :])).clamp_(min=0)
        height = (torch.minimum(y1[i], y1[i + 1 :]) - torch.maximum(y0[i], y0[i + 1 :])).clamp_(min=0)
        shared = width * height
        alive[i + 1 :] &= ~(shared / (area[i] + area[i + 1 :] - shared) > iou_threshold)
    return order[alive]
