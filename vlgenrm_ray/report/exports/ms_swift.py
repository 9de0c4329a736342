"""ms-swift: JSON Lines with `messages` and `images`.

`preferences` have `rejected_response` (DPO, RM), `critiques` have `label` (KTO), `examples` are for SFT.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlgenrm_ray.report.exports import ExportRow
from vlgenrm_ray.report.exports.llamafactory import IMAGE_TAG, without_tags


class MsSwift:
    """Writer of `<out>/<name>.jsonl`."""

    embeds_images = False

    def write(self, rows: Iterable[ExportRow], out: Path, name: str) -> Path:
        """Write the rows; see `ExportFormat.write`."""
        path = out / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(_as_line(row), ensure_ascii=False) + "\n")
        return path


def _as_line(row: ExportRow) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": row.id,
        "images": [ref.uri for ref in row.images],
        "messages": [
            {"role": "user", "content": IMAGE_TAG * len(row.images) + without_tags(row.prompt)},
            {"role": "assistant", "content": without_tags(row.response)},
        ],
    }
    if row.rejected is not None:
        line["rejected_response"] = without_tags(row.rejected)
    if row.label is not None:
        line["label"] = row.label
    return line
