"""Tables of benchmark results on the console, at most 80 columns wide."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.report.console_table import new_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SECTIONS = ("groups", "orders", "baselines")


def print_result(console: "Console", result: Mapping[str, Any]) -> None:
    """Print the result of a benchmark, given as its JSON (`BenchmarkResult.as_json`)."""
    console.print(result_table(result))
    for line in count_lines(result):
        console.print(line, markup=False)


def result_table(result: Mapping[str, Any]) -> "Table":
    """Build the table of a result: one line per metric, one column per rule, and ours with its 95 % interval."""
    sections = [result["metrics"], *(result[name] for name in _SECTIONS if name in result)]
    rules = list(dict.fromkeys(rule for section in sections for row in section.values() for rule in row["rules"]))
    table = new_table(f"{result['benchmark']}  {_subject(result)}")
    table.add_column("", overflow="fold")
    for name in (*rules, "ours (95 %)", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in result["metrics"].items():
        table.add_row(*_cells(name, row, rules))
    for section in _SECTIONS:
        if section in result:
            table.add_section()
            for name, row in result[section].items():
                prefix = "blind: " if section == "baselines" else ""
                table.add_row(*_cells(prefix + name, row, rules))
    return table


def count_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table: counts, statuses, cost and notes."""
    lines = ["  ".join(f"{name} {count}" for name, count in result["counts"].items())]
    if not_answered := result.get("not_answered"):
        lines.append(f"not answered and not scored: {not_answered}")
    if failures := {name: count for name, count in result.get("statuses", {}).items() if name != "ok"}:
        lines.append("without a result: " + ", ".join(f"{count} {name}" for name, count in failures.items()))
    if cost := result.get("cost"):
        lines.append(
            f"cost: {cost['requests']} requests, {cost['tokens']} tokens, {cost['seconds']:.1f} s of the model"
        )
    return [*lines, *(f"note: {note}" for note in result["notes"])]


def _subject(result: Mapping[str, Any]) -> str:
    if "answers" in result:
        return str(result["answers"]).rsplit("/", 1)[-1]
    shown = "without images" if result["blind"] else ""
    return f"{result['model']} as {result['role'].replace('_', ' ')} {shown}".rstrip()


def _cells(name: str, row: Mapping[str, Any], rules: Sequence[str]) -> tuple[str, ...]:
    ours = row["ours"]
    values = (_number(row["rules"].get(rule)) for rule in rules)
    if ours is None:
        return (name, *values, "", "")
    low, high = (_number(bound, 3) for bound in ours["ci95"])
    estimate = "" if ours["value"] is None else f"{_number(ours['value'], 3)} ({low}-{high})"
    return (name, *values, estimate, str(ours["num"]))


def _number(value: float | None, digits: int = 4) -> str:
    """Format a share with `digits` digits, and a percentage or rating with fewer."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" if abs(value) <= 1 else f"{value:.{max(1, digits - 2)}f}"
