"""What the command lines share: errors as one line, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from visionssm.data.errors import UserError

__all__ = ["print_table", "user_errors"]


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line for what the user can mend; anything else is a bug and keeps its traceback."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, limit: int | None = None) -> None:
    """Prints rows to the standard output; numbers to four places, None as a dash."""
    table = Table(*columns, box=None, pad_edge=False)
    shown = rows if limit is None else rows[:limit]
    for row in shown:
        table.add_row(*(_cell(value) for value in row))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"... and {len(rows) - len(shown)} more")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
