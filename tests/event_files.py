"""What TensorBoard reads in a folder of event files."""

import struct
from pathlib import Path
from typing import Any


def events(folder: Path) -> list[Any]:
    """Of all files in a folder, in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def shown(folder: Path, name: str) -> list[int]:
    """Steps of a curve, after those that TensorBoard forgets where a later writer begins again."""
    steps: list[int] = []
    for event in events(folder):
        if event.session_log.status:
            steps = [number for number in steps if number < event.step]
        steps += [event.step for value in event.summary.value if value.tag == name]
    return steps
