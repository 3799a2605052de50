"""The terminal: progress while the demo works, the table and the bars at its end.

Where the output is not a terminal, progress is a line for each step, and nothing
but plain text is written.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from greenletio.demo.conductor import Display, Results

__all__ = ("COLUMNS", "display", "heading", "show")

# key, title, unit, format, whether more is better
COLUMNS = (
    ("wall_s", "wall time", "s", "{:.1f}", False),
    ("requests_per_s", "requests", "per s", "{:.0f}", True),
    ("p99_ms", "p99", "ms", "{:.0f}", False),
    ("peak_rss_mb", "peak memory", "MB", "{:.0f}", False),
    ("longest_stall_ms", "longest stall", "ms", "{:.0f}", False),
    ("threads", "threads", "", "{:d}", False),
)
STYLES = {"blocking": "red", "threads": "yellow", "greenletio": "green"}
BAR = 40
STEPS = " ▁▂▃▄▅▆▇█"


class Bars:
    """Two progress bars for each mode."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.indexing: dict[str, TaskID] = {}
        self.searching: dict[str, TaskID] = {}

    def begin(self, mode: str, files: int, requests: int) -> None:
        add, title = self.progress.add_task, f"[{STYLES[mode]}]{mode:11}[/]"
        self.indexing[mode] = add(f"{title}indexing ", total=files)
        self.searching[mode] = add(f"{title}searching", total=requests, visible=False)

    def indexed(self, mode: str, files: int) -> None:
        self.progress.update(self.indexing[mode], completed=files)

    def answered(self, mode: str, requests: int) -> None:
        self.progress.update(self.searching[mode], completed=requests, visible=True)


class Lines:
    """The same as plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.left: dict[str, set[tuple[str, int]]] = {}

    def begin(self, mode: str, files: int, requests: int) -> None:
        self.left[mode] = {("files indexed", files), ("searches answered", requests)}

    def indexed(self, mode: str, files: int) -> None:
        self._done(mode, "files indexed", files)

    def answered(self, mode: str, requests: int) -> None:
        self._done(mode, "searches answered", requests)

    def _done(self, mode: str, what: str, count: int) -> None:
        if (what, count) in self.left[mode]:
            self.left[mode].remove((what, count))
            self.console.print(f"{mode}: {count} {what}")


@contextmanager
def display(console: Console) -> Iterator[Display]:
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


def heading(title: str, unit: str, more: bool) -> str:
    comma = "," if unit in ("s", "ms", "MB") else ""
    return f"{title}{comma} {unit} ({'more' if more else 'less'} is better)".replace("  ", " ")


def show(console: Console, results: Results) -> None:
    console.print()
    console.print(_table(results))
    own = ", ".join(f"{mode} {f['longest_stall_own_ms']:.0f}" for mode, f in results.items())
    console.print(f"longest stall without waits for a busy CPU, ms: {own}", soft_wrap=True)
    blocks = console.encoding.startswith("utf")
    for key, title, unit, form, more in COLUMNS:
        console.print(f"\n{heading(title, unit, more)}")
        console.print(_bars(results, key, form, "█" if blocks else "#"))
    if blocks:
        console.print("\nthe loop's stalls over time [dim](log scale, 1 ms to 1 s)[/]")
        console.print(_stalls(results, max(20, min(100, console.width - 30))))


def _table(results: Results) -> Table:
    table = Table(title="The same work", pad_edge=False)
    table.add_column("mode")
    for _, title, unit, _, _ in COLUMNS:
        table.add_column(f"{title}\n{unit}", justify="right")
    for mode, figures in results.items():
        cells = [form.format(figures[key]) for key, _, _, form, _ in COLUMNS]
        table.add_row(Text(mode, STYLES[mode]), *cells)
    return table


def _bars(results: Results, key: str, form: str, block: str) -> Table:
    most = max(figures[key] for figures in results.values()) or 1
    grid = Table.grid(padding=(0, 1))
    for mode, figures in results.items():
        bar = block * max(1, round(BAR * figures[key] / most))
        grid.add_row(f"  {mode:10}", Text(bar, STYLES[mode]), form.format(figures[key]))
    return grid


def _stalls(results: Results, width: int) -> Table:
    """A line for each mode, all to the same time scale."""
    longest = max(len(figures["stalls_ms"]) for figures in results.values())
    per_cell = max(1, math.ceil(longest / width))
    grid = Table.grid(padding=(0, 1))
    for mode, figures in results.items():
        slots: list[float] = figures["stalls_ms"]
        worst = [max(slots[i : i + per_cell]) for i in range(0, len(slots), per_cell)]
        line = "".join(STEPS[_step(late)] for late in worst)
        grid.add_row(f"  {mode:10}", Text(line, STYLES[mode]))
    return grid


def _step(late_ms: float) -> int:
    share = math.log10(max(late_ms, 1.0)) / 3
    return 1 + min(len(STEPS) - 2, int(share * (len(STEPS) - 1)))
