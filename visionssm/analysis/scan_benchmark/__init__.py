"""The benchmark of scan orders: cost, geometry, learning, seeing, and their report; tools/benchmark_scans.py runs it."""

from .config import BenchmarkConfig
from .report import write_report
from .run import run_benchmark

__all__ = ["BenchmarkConfig", "run_benchmark", "write_report"]
