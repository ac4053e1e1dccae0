"""What the command lines share: the choice of what to do, errors as one line, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from visionssm.data.errors import UserError
from visionssm.engine.loop import open_accelerator
from visionssm.engine.models import task_of

__all__ = ["Job", "add_device_options", "open_device", "positive", "print_table", "run_job", "user_errors"]


# what only some jobs need, so that it is imported when they begin
_EXTRAS = {"monai": "medical", "nibabel": "medical", "pydicom": "medical"}


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the program with one line for what the user can mend; anything else is a bug and keeps its traceback."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise SystemExit(f"error: {error.name} is not installed: pip install 'visionssm[{extra}]'") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


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


@dataclass(frozen=True)
class Job:
    """What a tool does with models of one task.

    Args:
        run: Takes the command line.
        options: The options that only some tasks have, by name, with their defaults; their argparse default is SUPPRESS.
    """

    run: Callable[[argparse.Namespace], None]
    options: Mapping[str, Any]


def run_job(args: argparse.Namespace, jobs: Mapping[str, Job]) -> None:
    """Does what the task asks for that `args.model` is for.

    Raises:
        UserError: If the tool has no job for that task, or an option of another task was given.
    """
    task = task_of(args.model)
    if task not in jobs:
        raise UserError(f"{args.model} is for {task}; this tool serves {', '.join(jobs)}")
    job = jobs[task]
    foreign = {name for other in jobs.values() for name in other.options} - set(job.options)
    if stray := [name for name in vars(args) if name in foreign]:
        raise UserError(f"--{stray[0].replace('_', '-')} is not an option for {task}, which {args.model} is for")
    job.run(argparse.Namespace(**{**job.options, **vars(args)}))


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
