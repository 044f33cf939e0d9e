"""CPU benchmark: the engine beside vLLM and transformers, and what its parts cost."""
