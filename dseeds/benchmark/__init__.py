"""Supervoxels of dseeds and of other methods, measured at equal numbers on any list of volumes: `run_benchmark`."""

from dseeds.benchmark.study import BenchmarkResult, run_benchmark

__all__ = ["BenchmarkResult", "run_benchmark"]
