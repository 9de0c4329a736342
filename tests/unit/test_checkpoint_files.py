"""Damage of training checkpoints is found before they are loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vlgenrm_ray.engines.checkpoint_files import find_damage, write_checksums


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of two workers, whose parts were merged into one folder."""
    for rank in range(2):
        part = tmp_path / f"part-{rank}"
        (part / "step").mkdir(parents=True)
        (part / "step" / f"optimizer-{rank}.pt").write_bytes(bytes([rank]) * 1000)
        (part / f"random-{rank}.pt").write_bytes(b"state")
        write_checksums(part, rank)
    whole = tmp_path / "checkpoint_000001"
    whole.mkdir()
    for rank in range(2):
        for path in (tmp_path / f"part-{rank}").rglob("*"):
            if path.is_file():
                target = whole / path.relative_to(tmp_path / f"part-{rank}")
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
    return whole


def test_an_undamaged_checkpoint_has_no_problem(checkpoint: Path) -> None:
    assert [find_damage(checkpoint, rank) for rank in range(2)] == ["", ""]


def zero(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [zero, flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_is_named_by_the_worker_whose_part_it_is(checkpoint: Path, damage: Callable[[Path], None]) -> None:
    damage(checkpoint / "step" / "optimizer-1.pt")
    assert find_damage(checkpoint, 0) == ""
    assert "checkpoint_000001" in find_damage(checkpoint, 1)
    assert "step/optimizer-1.pt" in find_damage(checkpoint, 1)


@pytest.mark.parametrize("damage", [zero, Path.unlink])
def test_a_checkpoint_without_its_list_is_damaged(checkpoint: Path, damage: Callable[[Path], None]) -> None:
    damage(checkpoint / "checksums-0.json")
    assert "no readable list of files of worker 0" in find_damage(checkpoint, 0)
