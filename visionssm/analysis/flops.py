"""Parameters and operations of a model, by the formulas registered with torch's FLOP counter; nothing is computed.

Three ways of counting are in use for these models, and they differ by up to a half:

- MACs: one multiply-add of a matrix product or a convolution is one operation; the scan is not counted.
- papers: MACs + 9 B L D N + B L D for each route of a scan + 5 for each element of a layer norm (2 of a batch norm), as
  fvcore with state-spaces/mamba issue 110 gives it. VMamba, LocalVMamba and Spatial-Mamba print this one as "FLOPs".
- one route: what LocalMamba's repository prints of LocalVim and of Vim: the convolutions and projections of a single route, and
  (5 N + 2) B L D for each route of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from visionssm.models.reported import FlopConvention
from visionssm_kernels import use_backend

__all__ = ["CONVENTIONS", "Operations", "count_operations", "count_parameters"]

CONVENTIONS = {
    "macs": "multiply-adds of matrix products and convolutions, without the scan",
    "papers": "MACs + 9 B L D N + B L D per route of a scan + 5 per element of a layer norm, 2 of a batch norm",
    "no scan": "MACs + 5 per element of a layer norm, 2 of a batch norm; the scan is left out",
    "one route": "one route's convolutions and projections + (5 N + 2) B L D per route of a scan",
}
_aten, _ours = torch.ops.aten, torch.ops.visionssm


@dataclass(frozen=True)
class Operations:
    """What one forward pass takes.

    Args:
        macs: multiply-adds of matrix products and convolutions, of all routes.
        macs_one_route: the same if only one route of each scan had its convolution and projections.
        scan: 9 B L D N per route, and B L D for the skip: the registered formula.
        scan_short: (5 N + 2) B L D per route.
        norms: 5 per element of a layer norm, 2 of a batch norm.
    """

    macs: int
    macs_one_route: int
    scan: int
    scan_short: int
    norms: int

    @property
    def papers(self) -> int:
        """The count that most of the papers print as "FLOPs"."""
        return self.macs + self.scan + self.norms

    def by(self, convention: FlopConvention) -> int:
        """The count that was used for a published figure."""
        if convention == "one route":
            return self.macs_one_route + self.scan_short
        return self.papers if convention == "papers" else self.macs + self.norms

    def to_dict(self) -> dict[str, int]:
        """As numbers by name."""
        return asdict(self)


class _Formulas:
    """The registered formulas, and beside them what those do not tell apart."""

    def __init__(self) -> None:
        self.scan = self.scan_short = self.norms = self.saved = 0

    def mapping(self) -> dict[Any, Any]:
        return {
            _ours.routed_scan: self._scan,
            _ours.wavefront_scan: self._wavefront,
            _ours.route_conv: self._route_conv,
            _aten.bmm: self._bmm,
            _aten.native_layer_norm: self._norm(5),
            _aten.native_group_norm: self._norm(5),
            _aten.native_batch_norm: self._norm(2),
            _aten._native_batch_norm_legit_no_training: self._norm(2),
            _aten.cudnn_batch_norm: self._norm(2),
        }

    def _scan(self, *shapes: Any, **options: Any) -> int:
        u, A, order = shapes[0], shapes[2], shapes[7] if len(shapes) > 7 else None
        steps = u[1] if order is None else order[-1]
        scan = _registered(_ours.routed_scan, *shapes[:15], **options)
        # the rest is the product by a dt_weight, the last argument, which ahead of the scan is a `_bmm`
        product = _registered(_ours.routed_scan, *shapes, **options) - scan
        self.scan += scan
        self.scan_short += u[0] * steps * A[0] * A[1] * (5 * A[2] + 2)
        self.saved += product - product // A[0]
        return product

    def _wavefront(self, *shapes: Any, **options: Any) -> int:
        u, A = shapes[0], shapes[2]
        self.scan += _registered(_ours.wavefront_scan, *shapes, **options)
        self.scan_short += math.prod(u) * A[0] * (5 * A[2] + 2)  # as along two routes
        return 0

    def _route_conv(self, x: Any, weight: Any, *shapes: Any, **options: Any) -> int:
        flops = _registered(_ours.route_conv, x, weight, *shapes, **options)
        self.saved += flops - flops // weight[0]
        return flops

    def _bmm(self, a: Any, b: Any, **options: Any) -> int:
        """A product per route, as mixers project; attention's products are bmm too, but no scan is beside them."""
        flops = _registered(_aten.bmm, a, b, **options)
        self.saved += flops - flops // a[0]
        return flops

    def _norm(self, each: int) -> Any:
        def formula(x: Any, *shapes: Any, **options: Any) -> int:
            self.norms += each * math.prod(x)
            return 0

        return formula


def _registered(op: Any, *shapes: Any, out_shape: Any = None, **options: Any) -> int:
    return flop_registry[op](*shapes, **options, out_val=out_shape)  # pyright: ignore[reportCallIssue]


def count_parameters(model: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: nn.Module, input_size: Sequence[int], *, compute: bool = False) -> Operations:
    """Operations of one forward pass over one image, in evaluation mode.

    Runs on shapes alone, whatever device the model is on ("meta" will do). A layer that has a merged form for evaluation is
    counted in the form that is trained, which is what is published.

    Args:
        model: of this package or of timm.
        input_size: (C, H, W) or (C, D, H, W).
        compute: run the model for real, where it is, on noise: for detectors, whose work depends on what they find.

    Raises:
        ValueError: the model does not take such an image.
    """
    formulas = _Formulas()
    training = model.training
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    try:
        # not fused attention, which has formulas for GPUs only; "numba", because plain torch would hide the scan's operator
        counter = FlopCounterMode(display=False, custom_mapping=formulas.mapping())
        if compute:
            with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                model.eval()(torch.randn(1, *input_size, device=named[0][1].device))
        else:
            with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), use_backend("numba"):
                state = {name: torch.empty(value.shape, dtype=value.dtype, device="cpu") for name, value in named}
                with counter:
                    functional_call(model.eval(), state, (torch.empty(1, *input_size, device="cpu"),))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"{type(model).__name__} takes no {tuple(input_size)}: {_first_line(error)}") from error
    finally:
        model.train(training)
    products = counter.get_total_flops()
    return Operations(
        macs=products // 2,
        macs_one_route=(products - formulas.saved) // 2,
        scan=formulas.scan,
        scan_short=formulas.scan_short,
        norms=formulas.norms,
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
