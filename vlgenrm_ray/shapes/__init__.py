"""The embedded world: coloured shapes on a 3 x 3 grid, questions about them, and a pack of tiny models trained on it.

Everything is generated from seeds. So the whole system runs on any machine without a download, and can be measured
against a known ground truth.
"""

from pathlib import Path

_PACK = Path(__file__).parent / "pack"


def pack_path(name: str) -> Path:
    """Return the folder of a model of the pack: `vlm` (policy and base GenRM), `detector` or `matcher`."""
    return _PACK / name
