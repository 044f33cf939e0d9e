"""Attention over the paged cache: by torch, by our kernels, or batch-invariant."""
