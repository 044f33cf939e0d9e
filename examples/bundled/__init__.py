"""Bundled model: builds a toy policy from nothing, with its tokenizer, heads and figures."""
