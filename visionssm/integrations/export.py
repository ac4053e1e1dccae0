"""Models as files for other runtimes: torch.export programs, ONNX and TorchScript, each compared with the model it came from.

A program and a TorchScript file call this package's kernels, so they run wherever it is installed and at its speed. An ONNX file,
and a program made with `plain=True`, consist of ordinary operations: the scan is cut into chunks of 16 steps that run side by
side, and one loop carries the state from chunk to chunk, so any length fits.
There, route tables are computed in the file from the size of the image where an order is made by arithmetic (all straight lines,
snakes and windows over sizes that fit). An order that is made position by position (Hilbert curves, spirals) needs a fixed size;
the file then holds its table.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from visionssm.scans import scan_from_key
from visionssm_kernels import backends, fuse_states
from visionssm_kernels.reference import finish, route_conv, step_inputs

__all__ = ["FORMATS", "ExportError", "ExportReport", "Format", "export_model"]

Format: TypeAlias = Literal["program", "onnx", "torchscript"]
FORMATS: dict[Format, str] = {"program": ".pt2", "onnx": ".onnx", "torchscript": ".pt"}
CHUNK = 16
TOLERANCE = 1e-3  # of the largest output, in float32; what is off by more is another function


class ExportError(RuntimeError):
    """A model cannot be exported in the way that was asked for; the message says why and what can be done."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares.

    Args:
        path: the file.
        format: its kind.
        open_size: whether it takes any batch and image size; else only the shape it was exported with.
        difference: largest absolute difference from the model over all `shapes`; None if nothing could run the file here.
        shapes: the images (B, C, H, W) that were compared.
    """

    path: Path
    format: Format
    open_size: bool
    difference: float | None
    shapes: tuple[tuple[int, ...], ...]


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    format: Format | None = None,
    image_shape: Sequence[int] = (2, 3, 224, 224),
    open_size: bool = True,
    plain: bool = False,
    opset: int = 20,
) -> ExportReport:
    """Writes a model to a file and compares what the file computes with the model.

    Args:
        model: takes images (B, C, H, W) and gives one tensor; it is put into evaluation mode.
        path: the file; its ending decides the format where `format` does not.
        format: "program" (.pt2), "onnx" (.onnx) or "torchscript" (.pt).
        image_shape: (B, C, H, W) to export with; sides of at least twice the model's last stride for open programs and ONNX.
        open_size: take any batch, and images of any size, of programs and ONNX from two cells of the model's smallest map on.
        plain: a program of ordinary operations alone, which needs no more than torch; an ONNX file is always such.
        opset: of ONNX, 18 or later.

    Raises:
        ValueError: unknown format or ending, a shape that is none, `plain` for TorchScript.
        ExportError: the model cannot be exported so, what ONNX needs is not installed, or the file computes something else;
            what was at `path` before stays.
    """
    path = Path(path)
    kind = _format(path, format)
    shape = tuple(int(side) for side in image_shape)
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"image_shape must be (B, C, H, W), each at least 1, got {tuple(image_shape)}")
    if plain and kind == "torchscript":
        raise ValueError("plain is for programs; TorchScript calls the kernels")
    if opset < 18:
        raise ValueError(f"opset must be 18 or later, got {opset}")
    if open_size and kind != "torchscript":
        _check_sides(model, shape)
    # the second is of another remainder by the chunks
    shapes = [shape, (shape[0] + 1, shape[1], shape[2] + 40, shape[3] + 8)] if open_size else [shape]
    model = model.eval()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    # the CPU kernels compile when first asked for, which numba cannot do while torch.export has its hands on python
    backends()
    # written beside the target, which a file that is refused must not replace
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        wanted = [_outputs(model, _like(images, s)) for s in shapes]
        part = Path(scratch) / f"model{FORMATS[kind]}"
        run = _WRITERS[kind](model, images, part, open_size, plain, opset)
        difference = None
        if run is not None:
            hint = _hint(open_size)
            difference = max(_compare(run, _like(images, s), w, hint) for s, w in zip(shapes, wanted, strict=True))
        os.replace(part, path)
    return ExportReport(path, kind, open_size, difference, tuple(shapes))


def _check_sides(model: nn.Module, shape: tuple[int, ...]) -> None:
    """A side of one cell is a constant to torch.export, in a file that takes no other."""
    stages: Any = getattr(model, "feature_info", None) or [{}]
    least = 2 * stages[-1].get("reduction", 0)
    if min(shape[2:]) < least:
        raise ExportError(
            f"images of {shape[2]} x {shape[3]} are too small to export with open sizes: sides must be at least {least}, twice "
            f"the model's last stride; give a larger image_shape (--size {least} {least}), or export for this size alone with "
            "open_size=False (--fixed)"
        )


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    try:
        outputs = model(images)
    except Exception as error:  # whatever a model raises
        raise ExportError(f"the model does not run on images of {tuple(images.shape)}: {_first_line(error)}") from error
    if not isinstance(outputs, Tensor):
        raise ExportError(f"the model gives {type(outputs).__name__}, but a file is for models that give one tensor")
    return outputs


def _format(path: Path, format: Format | None) -> Format:
    if format is None:
        known: dict[str, Format] = {ending: name for name, ending in FORMATS.items()}
        if path.suffix not in known:
            raise ValueError(f"{path.name!r} must end in {', '.join(known)}, or the format be given")
        return known[path.suffix]
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    return format


def _like(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    return images if images.shape == shape else torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _hint(open_size: bool) -> str:
    return "; export it for one size with open_size=False (--fixed)" if open_size else ""


def _compare(run: Callable[[Tensor], Tensor], images: Tensor, wanted: Tensor, hint: str) -> float:
    """The largest difference, which must be rounding."""
    try:
        got = run(images)
    except Exception as error:  # of whatever runtime
        raise ExportError(
            f"the file does not run on images of {tuple(images.shape)}: {_first_line(error)}{hint}"
        ) from error
    difference = float((got - wanted).abs().max())
    if not difference <= TOLERANCE * float(wanted.abs().max()):
        raise ExportError(
            f"the file is off by {difference} on images of {tuple(images.shape)}: please report this model{hint}"
        )
    return difference


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


# --- one writer per format: each returns what runs the file ----------------------------------------------------------

_Run: TypeAlias = "Callable[[Tensor], Tensor] | None"


def _write_torchscript(model: nn.Module, images: Tensor, path: Path, open_size: bool, plain: bool, opset: int) -> _Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # whether it holds for other shapes is compared
        traced: Any = torch.jit.trace(model, images, check_trace=False)
    traced.save(str(path))
    return torch.jit.load(str(path))


def _write_program(model: nn.Module, images: Tensor, path: Path, open_size: bool, plain: bool, opset: int) -> _Run:
    program = (_plain_program if plain else _program)(model, images, open_size)
    torch.export.save(program, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch reads its own file into memory that it may not write to
        return torch.export.load(path).module()


def _write_onnx(model: nn.Module, images: Tensor, path: Path, open_size: bool, plain: bool, opset: int) -> _Run:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} must be installed to write ONNX: pip install 'visionssm[export]'")
    program = _plain_program(model, images, open_size)
    try:
        exported = torch.onnx.export(
            program,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["output"],
            verbose=False,
        )
    except Exception as error:  # torch.onnx's own kinds are not public
        # the error itself only says which step it was
        raise ExportError(f"torch.onnx cannot write this model: {_first_line(error.__cause__ or error)}") from error
    assert exported is not None
    exported.save(str(path), external_data=False)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


_WRITERS = {"program": _write_program, "onnx": _write_onnx, "torchscript": _write_torchscript}


# --- torch.export, and the kernels in plain torch --------------------------------------------------------------------


def _program(model: nn.Module, images: Tensor, open_size: bool) -> ExportedProgram:
    """The model as a graph in which the kernels are single operations that choose their implementation when they run."""
    program = _export(model, images, open_size)
    for node in _kernels(program):
        operator: Any = node.target
        node.args = tuple(
            "auto" if argument.name == "backend" else value
            for argument, value in zip(operator._schema.arguments, node.args, strict=False)
        )
    return program


def _kernels(program: ExportedProgram) -> list[Node]:
    """The nodes of a graph that call this package's operators."""
    return [node for node in program.graph.nodes if getattr(node.target, "namespace", None) == "visionssm"]


def _export(model: nn.Module, images: Tensor, open_size: bool) -> ExportedProgram:
    shapes = None
    if open_size:
        shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
        images = images.expand(max(2, len(images)), -1, -1, -1)  # a batch of one would be a constant
    try:
        return torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # a dozen kinds, none of them public
        raise ExportError(f"torch.export cannot follow the model: {_first_line(error)}{_hint(open_size)}") from error


def _plain_program(model: nn.Module, images: Tensor, open_size: bool) -> ExportedProgram:
    """The same with the kernels in ordinary operations."""
    ops = torch.ops.visionssm
    table: dict[Any, Callable[..., Any]] = {
        ops.routed_scan.default: _scan,
        ops.route_conv.default: _conv,
        ops.scan_routes.default: _routes,
        ops.fuse_states.default: _fuse,
    }
    program = _export(model, images, open_size)
    if others := {str(node.target).removesuffix(".default") for node in _kernels(program) if node.target not in table}:
        raise ExportError(
            f"{', '.join(sorted(others))} cannot be written in plain operations: ONNX and plain are not for this model, but a "
            "program (.pt2) that calls the kernels is"
        )
    module: Any = program.module()
    if _store_routes(module):
        program = _export(module, images, open_size)
    # torch compiles the loop of `_carry` by itself and asks first whether what an earlier export of a fixed size left fits, which
    # would fix the sizes of this one
    torch.compiler.reset()
    try:
        return program.run_decompositions(table)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the scan cannot be written in plain operations: {_first_line(error)}{_hint(open_size)}"
        ) from error


def _store_routes(module: GraphModule) -> bool:
    """Makes buffers of the route tables whose size is known; whether there are any."""
    tables: dict[tuple[Any, ...], str] = {}
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.visionssm.scan_routes.default):
        arguments: Any = node.args
        key, size, device = arguments
        if not all(isinstance(side, int) for side in size):
            continue
        name = tables.setdefault((key, *size, device), f"routes_{len(tables)}")
        module.register_buffer(name, scan_from_key(key).routes(size).to(device, torch.int32))
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
        module.graph.erase_node(node)
    module.recompile()
    return bool(tables)


def _routes(key: str, size: Sequence[int], device: torch.device) -> Tensor:
    """`visionssm::scan_routes` by arithmetic on open sizes."""
    scan = scan_from_key(key)
    try:
        length, paths = scan.length(size), scan.paths(tuple(size))
    except Exception as error:  # whatever asks a size that is open for its number
        raise ExportError(f"the order {scan!r} is made position by position{_hint(True)}") from error
    paths = [F.pad(path, (0, length - path.shape[0]), value=-1) if scan.padded else path for path in paths]
    return torch.stack(paths).to(device, torch.int32)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, silu: bool, backend: str) -> Tensor:
    return route_conv(x, weight, bias, order, silu)


def _fuse(h: Tensor, weight: Tensor, dilations: Sequence[int], backend: str = "auto") -> Tensor:
    return fuse_states(h, weight, dilations, backend="reference")


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, order: Tensor | None,
    softplus: bool, merge: str, save_checkpoints: bool, save_states: bool, backend: str, segment: int = 0, phase: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`visionssm::routed_scan` for any number of steps: B batch, K routes, G chunks of `CHUNK` steps, D channels, N state."""
    u_BKTD, dt_BKTD, B_BKTN, C_BKTN = step_inputs(u, delta, B, C, bias, order, softplus)
    steps = dt_BKTD.shape[2]
    A_K1DN = A.to(dt_BKTD.dtype).unsqueeze(1)

    def cut(
        x_BKTC: Tensor,
    ) -> tuple[Tensor, ...]:  # CHUNK tensors (B, K, G, C); a step with dt = 0 leaves the state as it is
        # always some padding: whether there is any would otherwise be decided for the size that is exported
        return F.pad(x_BKTC, (0, 0, 0, CHUNK - steps % CHUNK)).unflatten(2, (-1, CHUNK)).unbind(3)

    dt, inputs, B_, C_ = cut(dt_BKTD), cut(dt_BKTD * u_BKTD), cut(B_BKTN), cut(C_BKTN)

    kept: tuple[Tensor, ...] = ()  # 0 where the state starts anew
    if segment:
        kept = cut(((torch.arange(steps, device=u.device) + phase) % segment != 0).to(A_K1DN.dtype).view(1, 1, -1, 1))

    def step(h_BKGDN: Tensor, s: int) -> Tensor:
        h_BKGDN = h_BKGDN * kept[s].unsqueeze(-1) if kept else h_BKGDN
        return torch.exp(dt[s].unsqueeze(-1) * A_K1DN) * h_BKGDN + inputs[s].unsqueeze(-1) * B_[s].unsqueeze(-2)

    h = inputs[0].unsqueeze(-1) * B_[0].unsqueeze(-2)
    total = dt[0]
    for s in range(1, CHUNK):
        h, total = step(h, s), total + dt[s]
    decay = torch.exp(total.unsqueeze(-1) * A_K1DN)
    decay = decay * torch.stack(kept).prod(0).unsqueeze(-1) if kept else decay
    h = _carry(decay, h)
    readouts, states = [], []
    for s in range(CHUNK):
        h = step(h, s)
        readouts.append((h * C_[s].unsqueeze(-2)).sum(-1))
        if save_states:
            states.append(h)
    y_BKTD = torch.stack(readouts, 3).flatten(2, 3)[:, :, :steps]
    if D is not None:
        y_BKTD = y_BKTD + D.to(y_BKTD.dtype)[:, None] * u_BKTD
    states_BKTDN = torch.stack(states, 3).flatten(2, 3)[:, :, :steps] if save_states else None
    y, states_BLKDN = finish(y_BKTD, states_BKTDN, u, order, merge)
    nothing = A.new_empty(0)
    return y, nothing, nothing if states_BLKDN is None else states_BLKDN


def _carry(decay_BKGDN: Tensor, local_BKGDN: Tensor) -> Tensor:
    """The state before every chunk, from every chunk's decay and the state it would leave if it began at zero."""
    from torch._higher_order_ops.scan import scan  # torch's loop over one dimension; not public yet

    def body(h: Tensor, chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return chunk[0] * h + chunk[1], h.clone()

    first = torch.zeros_like(local_BKGDN[:, :, 0])
    _, starts_GBKDN = scan(body, first, (decay_BKGDN.movedim(2, 0), local_BKGDN.movedim(2, 0)))
    return starts_GBKDN.movedim(0, 2)
