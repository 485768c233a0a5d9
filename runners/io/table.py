"""Print a table that is as wide as the terminal lets it be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column names its row, and is never wrapped."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=not index, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
