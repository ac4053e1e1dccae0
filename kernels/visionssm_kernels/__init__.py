"""Selective-scan kernels for routes over images and volumes: one API, many machines.

    from visionssm_kernels import routed_scan, selective_scan, backends
    print(backends())     # what can run on this machine, and why the rest cannot

Usable alone: imports torch, numba and triton, never `visionssm`.
"""

from .backends import backends, use_backend, warmup
from .bidirectional import locally_bidirectional_scan
from .fused import instance_norm, norm_gate
from .linear import linear, linear_routes
from .memory import keep_memory
from .noncausal import noncausal_ssd
from .ops import route_conv, routed_scan, selective_scan
from .ssd import ssd_scan
from .state_fusion import fuse_states
from .wavefront import wavefront_scan

__all__ = [
    "backends",
    "fuse_states",
    "instance_norm",
    "keep_memory",
    "linear",
    "linear_routes",
    "locally_bidirectional_scan",
    "noncausal_ssd",
    "norm_gate",
    "route_conv",
    "routed_scan",
    "selective_scan",
    "ssd_scan",
    "use_backend",
    "warmup",
    "wavefront_scan",
]
