"""Benchmarks: what serving and training cost, on CPUs and GPUs, beside peers. Not in the wheel."""
