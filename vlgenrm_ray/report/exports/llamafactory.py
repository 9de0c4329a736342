"""LLaMA-Factory: JSON Lines in its `sharegpt` form, with the entry for `dataset_info.json`.

Use the folder as `dataset_dir`: `preferences` as a ranking data set (DPO, RM), `critiques` for KTO, `examples` for SFT.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.report.exports import ExportRow

IMAGE_TAG = "<image>"
_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


class LlamaFactory:
    """Writer of `<out>/<name>.jsonl` and `<out>/dataset_info.json`."""

    embeds_images = False

    def write(self, rows: Iterable[ExportRow], out: Path, name: str) -> Path:
        """Write the rows; see `ExportFormat.write`."""
        path = out / f"{name}.jsonl"
        columns = {"messages": "messages", "images": "images"}
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                line = _as_line(row, out)
                columns |= {"chosen": "chosen", "rejected": "rejected"} if "chosen" in line else {}
                columns |= {"kto_tag": "label"} if "label" in line else {}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        info_path = out / "dataset_info.json"
        info = read_json(info_path) if info_path.exists() else {}
        entry: dict[str, Any] = {"file_name": path.name, "formatting": "sharegpt", "columns": columns, "tags": _TAGS}
        if "chosen" in columns:
            entry["ranking"] = True
        write_json(info_path, info | {f"vlgenrm_{name}": entry})
        return path


def without_tags(text: str) -> str:
    """Remove literal image tags: their number must equal the number of images."""
    return text.replace(IMAGE_TAG, "")


def _as_line(row: ExportRow, out: Path) -> dict[str, Any]:
    # LLaMA-Factory reads relative paths from its data set folder, so copied images move with it.
    folder = out.absolute()
    paths = [
        str(Path(ref.uri).relative_to(folder)) if Path(ref.uri).is_relative_to(folder) else ref.uri
        for ref in row.images
    ]
    user = {"role": "user", "content": IMAGE_TAG * len(paths) + without_tags(row.prompt)}
    response = {"role": "assistant", "content": without_tags(row.response)}
    line: dict[str, Any] = {"id": row.id, "images": paths}
    if row.rejected is not None:
        rejected = {"role": "assistant", "content": without_tags(row.rejected)}
        return line | {"messages": [user], "chosen": response, "rejected": rejected}
    return line | {"messages": [user, response]} | ({} if row.label is None else {"label": row.label})
