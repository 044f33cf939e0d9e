"""Heads: their forms, their manifest, their folder on disk, and the bank that serves them."""
