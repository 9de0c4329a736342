"""Reader of TensorBoard's event files."""

import struct
from pathlib import Path
from typing import Any


def read_events(folder: Path) -> list[Any]:
    """Read the events of all files in a folder, in TensorBoard's order."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.glob("events.*")):
        data, offset = path.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            events.append(Event.FromString(data[offset + 12 : offset + 12 + length]))
            offset += length + 16
    return events


def visible_steps(folder: Path, tag: str) -> list[int]:
    """Return the steps of a curve, without those that TensorBoard purges because a later writer repeats them."""
    steps: list[int] = []
    for event in read_events(folder):
        if event.session_log.status:
            steps = [number for number in steps if number < event.step]
        steps += [event.step for value in event.summary.value if value.tag == tag]
    return steps
