"""What a run tells while it goes: a progress bar, one line per epoch, TensorBoard and a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn

from visionssm.engine.checkpoint import write_atomic

__all__ = ["RunLogger", "csv_text"]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; the columns are all keys in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class RunLogger:
    """Logs of one run; silent on all processes but the main one.

    Args:
        folder: The run folder; gets `log.csv` and `tensorboard/`.
        active: Whether this is the main process.
        tensorboard: Write TensorBoard events.
        first_update: Updates already done: TensorBoard drops later events of a run that was killed.
        console: Where to print.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        active: bool = True,
        tensorboard: bool = True,
        first_update: int = 0,
        console: Console | None = None,
    ) -> None:
        self.folder, self.active = Path(folder), active
        self.console = console or Console(quiet=not active, highlight=False, soft_wrap=True)
        self.writer = None
        if active and tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=first_update + 1)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            EtaColumn(),
            console=self.console,
            transient=True,
            disable=not (active and self.console.is_terminal),
        )
        self.task: TaskID | None = None

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self.console.print(text, markup=False)

    def start_epoch(self, title: str, *, total: int, done: int = 0) -> None:
        """Begins a progress bar over `total` updates."""
        self.progress.start()
        self.task = self.progress.add_task(title, total=total, completed=done, status="")

    def step(self, *, loss: float | None, images_per_second: float) -> None:
        """Advances the bar by one update."""
        if self.task is not None:
            seen = f"loss {loss:.4f} " if loss is not None else ""
            self.progress.update(self.task, advance=1, status=f"{seen}{images_per_second:,.0f} img/s")

    def end_epoch(self) -> None:
        """Takes the bar away."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.progress.stop()

    def scalars(self, values: Mapping[str, float], *, update: int) -> None:
        """TensorBoard scalars at a number of updates done."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, update)

    def history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes `log.csv` anew from all epochs so far, so that a resumed run has no double or missing rows."""
        if self.active:
            write_atomic(self.folder / "log.csv", csv_text(rows).encode())

    def close(self) -> None:
        """Flushes and closes everything."""
        with suppress(KeyError):
            self.end_epoch()
        if self.writer is not None:
            self.writer.close()
            self.writer = None
