"""The embedded worlds: coloured shapes on a 3 x 3 grid, questions about them, packs of tiny models trained on them.

Everything is generated from seeds. So the whole system runs on any machine without a download, and can be measured
against a known ground truth.
"""

from pathlib import Path

_PACK = Path(__file__).parent / "pack"


def pack_path(name: str) -> Path:
    """Return the folder of a model: `vlm` (policy and base GenRM), `detector`, `matcher`, or `hard/vlm` and so on."""
    return _PACK / name
