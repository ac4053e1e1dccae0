"""Results of `speed` as a table, CSV, JSON and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from .speed import MODES, Mode, Result, Setting

__all__ = [
    "TARGETS",
    "Target",
    "chosen_modes",
    "chosen_targets",
    "loop_ratios",
    "to_accuracy_plot",
    "to_csv",
    "to_json",
    "to_plots",
    "to_table",
]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a model is to reach on the CPU, in float32, with one image at a time.

    Args:
        model, resolution: what is measured.
        loop: how many times as fast as with the per-step loop.
        beside: a baseline that runs along.
        times: at most so many times the time of that baseline.
        train: time a training step, too.
    """

    model: str
    resolution: int
    loop: float
    beside: str | None = None
    times: float = 1.0
    train: bool = False

    @property
    def models(self) -> list[str]:
        """What runs in turn."""
        return [self.model, *([self.beside] if self.beside else [])]

    @property
    def modes(self) -> list[Mode]:
        """What is measured."""
        return ["latency", *(["training"] if self.train else []), "loop"]

    def verdicts(self, results: Sequence[Result]) -> list[str]:
        """A line per claim; what could not be measured says so."""
        seconds = {(r.model, r.mode): r.seconds for r in results if r.resolution == self.resolution}
        name = f"{self.model} at {self.resolution}"
        own, loop = seconds.get((self.model, "latency")), seconds.get((self.model, "loop"))
        if not own or not loop:
            return [f"{name}: not measured"]
        ratio = loop / own
        lines = [
            f"{name}: {ratio:.1f} times as fast as with the per-step loop (target {self.loop:g}: "
            f"{'met' if ratio >= self.loop else 'MISSED'})"
        ]
        if self.beside:
            other = seconds.get((self.beside, "latency"))
            share = own / other if other else None
            verdict = "not measured" if share is None else f"{share:.2f} times its time"
            met = "" if share is None else f": {'met' if share <= self.times else 'MISSED'}"
            lines.append(f"{name} beside {self.beside}: {verdict} (target at most {self.times:g}{met})")
        if self.train:
            step = seconds.get((self.model, "training"))
            lines.append(f"{name}, a training step: {'not measured' if not step else f'{step:.1f} s'}")
        return lines


TARGETS = (
    Target(model="vim_tiny", resolution=224, loop=12, beside="deit_tiny_patch16_224", times=2),
    Target(model="local_vim_tiny", resolution=224, loop=12),
    Target(model="plain_mamba_l1", resolution=224, loop=12),
    Target(model="vmamba_v0_tiny", resolution=224, loop=20),
    Target(model="local_vmamba_tiny", resolution=224, loop=20),
    Target(model="vmamba_tiny_s1l8", resolution=224, loop=6, beside="swin_tiny_patch4_window7_224", times=1.3),
    Target(model="spatial_mamba_tiny", resolution=224, loop=4),
    Target(model="mambair_light_x2", resolution=64, loop=10, train=True),
    Target(model="segmamba_brats2023", resolution=64, loop=8, beside="swin_unetr", times=2, train=True),
)


def chosen_targets(models: Sequence[str]) -> tuple[Target, ...]:
    """The targets of these models, or all.

    Raises:
        ValueError: a model has none.
    """
    known = [target.model for target in TARGETS]
    for name in models:
        if name not in known:
            raise ValueError(f"{name} has no target: choose of {', '.join(known)}")
    return tuple(target for target in TARGETS if not models or target.model in models)


def loop_ratios(results: Sequence[Result]) -> list[tuple[str, int, float]]:
    """How many times as fast as with the per-step loop: (model, resolution, ratio), where both were measured."""
    loops = {(r.model, r.resolution, r.part): r.seconds for r in results if r.mode == "loop" and r.seconds}
    found = []
    for r in results:
        loop = loops.get((r.model, r.resolution, r.part))
        if r.mode == "latency" and r.seconds and loop:
            found.append((r.model, r.resolution, loop / r.seconds))
    return found


def to_table(results: Sequence[Result]) -> str:
    """Columns of text, a block for each mode and resolution; ratios are to the block's first model that was measured."""
    head = ("model", "params M", "GMACs", "GFLOPs", "ms", "spread", "img/s", "ratio", "peak MiB", "top-1")
    lines: list[str] = []
    for part, mode, resolution in dict.fromkeys((r.part, r.mode, r.resolution) for r in results):
        block = [r for r in results if (r.part, r.mode, r.resolution) == (part, mode, resolution)]
        base = next((r.throughput for r in block if r.throughput), None)
        rows = [head, *(_row(result, base) for result in block)]
        widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(len(head))]
        where = f"{part}: " if part else ""
        lines.append(f"{where}{mode}, {resolution} pixels, batch {block[0].batch}: {MODES[mode]}")
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=False)),
            ]
            lines.append("  " + "  ".join(cells))
        for result in block:
            if result.problem:
                lines.append(f"  {result.model}: {result.problem}")
        lines.append("")
    return "\n".join(lines)


def _row(r: Result, base: float | None) -> tuple[str, ...]:
    def number(value: float | None, scale: float = 1.0, places: int = 1) -> str:
        return "-" if value is None else f"{value * scale:.{places}f}"

    spread = (
        None if r.seconds is None or r.slowest is None or r.fastest is None else (r.slowest - r.fastest) / r.seconds
    )
    ratio = None if r.throughput is None or base is None else r.throughput / base
    return (
        r.model,
        number(r.parameters, 1e-6),
        number(r.macs, 1e-9, 2),
        number(r.flops, 1e-9, 2),
        number(r.seconds, 1e3),
        "-" if spread is None else f"{spread:.0%}",
        number(r.throughput),
        number(ratio, places=2),
        number(r.peak_bytes, 2**-20, 0),
        number(r.top1),
    )


def to_csv(results: Sequence[Result]) -> str:
    """One line per result, with a head."""
    text = io.StringIO()
    rows = [_as_dict(result) for result in results]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(results: Sequence[Result], setting: Setting, command: str) -> str:
    """The setting, with hardware and versions, and the results."""
    about = {
        **asdict(setting),
        "hardware": setting.hardware,
        "versions": setting.versions,
        "arithmetic": setting.arithmetic,
    }
    rows = ",\n".join(json.dumps(_as_dict(result)) for result in results)
    return f'{{"setting": {json.dumps({**about, "command": command}, indent=1)},\n"rows": [\n{rows}\n]}}\n'


def _as_dict(result: Result) -> dict[str, Any]:
    return asdict(result) | {"throughput": result.throughput}


def to_plots(results: Sequence[Result], setting: Setting, folder: str | Path) -> list[Path]:
    """Throughput and memory against resolution, and reported accuracy against throughput, as PNG files for each mode.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for mode in dict.fromkeys(r.mode for r in results):
        measured = [r for r in results if r.mode == mode and r.throughput]
        if not measured:
            continue
        figure = Figure(figsize=(17, 5), layout="constrained")
        FigureCanvasAgg(figure)  # without pyplot, which would keep figures and choose a display
        speed, memory, accuracy = figure.subplots(1, 3)
        for model in dict.fromkeys(r.model for r in measured):
            own = [r for r in measured if r.model == model]
            speed.plot([r.resolution for r in own], [r.throughput or 0 for r in own], marker=".", label=model)
            known = [r for r in own if r.peak_bytes]
            memory.plot(
                [r.resolution for r in known],
                [(r.peak_bytes or 0) / 2**20 for r in known],
                marker=".",
                label=model,
            )
        _plot_accuracy(accuracy, measured)
        for panel, label in ((speed, "images per second"), (memory, "peak memory, MiB")):
            panel.set(xlabel="resolution", ylabel=label, xscale="log", yscale="log")
            panel.grid(alpha=0.3, which="both")
        speed.legend(fontsize=7)
        figure.suptitle(f"{mode}, batch {measured[0].batch}; {setting.hardware}; {setting.arithmetic}", fontsize=9)
        path = Path(folder) / f"{mode}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        written.append(path)
    return written


def _plot_accuracy(panel: Any, measured: Sequence[Result]) -> None:
    """Reported top-1 over throughput at 224 pixels, which the reports are for."""
    for result in measured:
        if result.top1 is not None and result.resolution == 224:
            panel.scatter([result.throughput], [result.top1], s=15)
            panel.annotate(
                result.model,
                (result.throughput, result.top1),
                fontsize=7,
                xytext=(3, 3),
                textcoords="offset points",
            )
    panel.set(xlabel="images per second at 224", ylabel="ImageNet-1k top-1 as reported, %")
    panel.grid(alpha=0.3)


def to_accuracy_plot(
    results: Sequence[Result],
    setting: Setting,
    path: Path,
    family_of: Callable[[str], str],
    *,
    mode: Mode = "inference",
) -> None:
    """Reported top-1 over throughput, a colour per family, as a PNG file.

    Args:
        results: those of other modes, and without accuracy or speed, are left out. Of a model that was measured several times
            (a baseline, in every part) the first counts.
        setting: how they were measured.
        path: of the picture.
        family_of: the family of a model, "timm" for those beside which ours stand.
        mode: whose throughput.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing to draw.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[str, Result] = {}
    for r in results:
        if r.mode == mode and r.throughput and r.top1 is not None:
            points.setdefault(r.model, r)
    if not points:
        raise ValueError(f"no model has both an accuracy and a throughput in mode {mode!r}")
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    families = dict.fromkeys(sorted(map(family_of, points), key=lambda family: (family == "timm", family)))
    for number, family in enumerate(families):
        own = sorted((r for r in points.values() if family_of(r.model) == family), key=lambda r: r.throughput or 0)
        baseline = family == "timm"
        style = {"color": "black", "marker": "*", "markersize": 11} if baseline else {
            "color": colormaps["tab20"](number % 20), "marker": "osD^vP"[number % 6], "markersize": 5
        }  # fmt: skip
        panel.plot([r.throughput or 0 for r in own], [r.top1 or 0 for r in own], linestyle="", label=family, **style)
        for r in own:
            short = r.model.removeprefix(family).strip("_") if not baseline else r.model.partition("_patch")[0]
            size = "" if r.resolution == 224 else f" @{r.resolution}"
            panel.annotate(
                f"{short}{size}",
                (r.throughput or 0, r.top1 or 0),
                fontsize=8 if baseline else 6,
                color="black" if baseline else "0.3",
                xytext=(5, 3),
                textcoords="offset points",
            )
    batch = next(iter(points.values())).batch
    panel.set(
        xlabel=f"images per second, batch {batch}, each at the size of its reported accuracy (224 unless said)",
        ylabel="ImageNet-1k top-1 as its authors report it, %",
        xscale="log",
    )
    panel.xaxis.set_major_formatter("{x:g}")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize=8, loc="lower left", ncols=2)
    figure.suptitle(f"{setting.hardware}; {setting.versions}; {setting.arithmetic}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def chosen_modes(names: Sequence[str], *, loop: bool) -> list[Mode]:
    """Modes by name, with the loop and what it is compared with if asked for."""
    wanted = {*names, *(("latency", "loop") if loop else ())}
    return [mode for mode in get_args(Mode) if mode in wanted]
