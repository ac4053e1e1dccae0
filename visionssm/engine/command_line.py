"""What the command lines share: errors as one line, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from visionssm.data.errors import UserError
from visionssm.engine.loop import open_accelerator

__all__ = ["add_device_options", "open_device", "print_table", "refuse_options", "user_errors"]


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line for what the user can mend; anything else is a bug and keeps its traceback."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds --cpu and --precision."""
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast (default: no)")


def open_device(args: argparse.Namespace) -> Accelerator:
    """Device and precision as the options say.

    Raises:
        UserError: If the device lacks the precision.
    """
    return open_accelerator(args.precision, cpu=args.cpu)


def refuse_options(args: argparse.Namespace, names: Iterable[str], *, task: str) -> None:
    """Options of a tool's other tasks.

    Raises:
        UserError: If one of them was given.
    """
    if stray := [name for name in names if hasattr(args, name)]:
        raise UserError(f"--{stray[0].replace('_', '-')} is not an option for {task}, which {args.model} is for")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, limit: int | None = None) -> None:
    """Prints rows to the standard output; numbers to four places, None as a dash."""
    table = Table(*columns, box=None, pad_edge=False)
    shown = rows if limit is None else rows[:limit]
    for row in shown:
        table.add_row(*(_cell(value) for value in row))
    # what is piped or kept in a file shall hold whole names, however long
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"... and {len(rows) - len(shown)} more")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
