"""What the bench found, beside what was aimed at, within 80 columns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure."""

    what: str
    measured: float
    unit: str = "x"
    least: float | None = None
    most: float | None = None
    beside: str = ""
    """What it was made of."""

    @property
    def target(self) -> str:
        """As it is printed."""
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"<= {self.most:g}"

    @property
    def met(self) -> bool | None:
        """None where nothing was aimed at."""
        if self.least is not None:
            return self.measured >= self.least
        return None if self.most is None else self.measured <= self.most


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """For the terminal: each figure with its target, and below it what it was made of."""
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        yield f"{row.what:<44}{row.measured:>9.2f} {row.unit:<7}  {row.target:<7} {verdict}".rstrip()
        yield from (f"    {line}" for line in row.beside.splitlines())
