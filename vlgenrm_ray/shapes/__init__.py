"""The embedded world: coloured shapes on a grid, questions about them, and a pack of tiny real models trained on it.

Everything here is made from seeds alone, so the whole system can be run, and measured against the truth, on any
machine and without a download.
"""

from pathlib import Path

_PACK = Path(__file__).parent / "pack"


def pack_path(name: str) -> Path:
    """Folder of one model of the pack: `vlm` (policy and base GenRM), `detector` or `matcher`."""
    return _PACK / name
