"""Kernels, a module each: checks against float64 and across batchmates, times, launches, cases."""
