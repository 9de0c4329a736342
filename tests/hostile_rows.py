"""Rows of data sets that broke a stage, or could: none of them may end a run."""

import os
from pathlib import Path

ADDRESSES = (
    "frame-12:30.png",
    "C:\\data\\a.png",
    "\\\\server\\share\\a.png",
    "oss://bucket/a.png",
    "mock://a.png",
    "http://[::1",
    "https://[half/a.png",
    "s3://[half/a.png",
    "://a.png",
    "a:/b.png",
    "file:",
    "file://",
    "file://[x",
    "file:///",
    "file://elsewhere/a.png",
    "file:///%00.png",
    "file:///%ff%fe.png",
    "data:",
    "data:,",
    "data:image/png;base64",
    "data:image/png;base64,",
    "data:image/png;base64,%",
    "data:image/png;base64,\ud800",
    "a\x00b.png",
    "/\x00",
    "\ud83d.png",
    "\udcff.png",
    "~/a.png",
    "/",
    ".",
    "..",
    "/dev/zero",
    "/dev/stdin",
    "/dev/tty",
    "/proc/self/mem",
    "/proc/kmsg",
    "a" * 300 + ".png",
    "a/" * 3000 + "b.png",
    " ",
    "\n",
    "%",
    "?a.png",
    "#a.png",
    "é%20ü.png",
)
"""Addresses of images that cannot be opened."""

TEXTS = ("half an emoji \ud83d", "\udc4d", "\ud83d\ud83d", "a\x00b", "\u2028", "\ufeff", "e\u0301" * 3, "\U0010ffff")
"""Texts that are hard to store, some of which no encoding can represent."""


def nested(depth: int, key: str = "value") -> object:
    """An object with `depth` objects inside each other."""
    value: object = "deep"
    for _ in range(depth):
        value = {key: value}
    return value


def special_files(folder: Path) -> list[str]:
    """Create files that are no regular ones, and return their paths: a pipe, a link to it, a folder, a broken link."""
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return [str(folder / f"{name}.png") for name in ("pipe", "link", "folder", "broken", "loop")]
