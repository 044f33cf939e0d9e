"""GPU suite, `make gpu`: is every kernel and the engine right on this GPU, and how far from the floor.

Runs on a bare checkout: torch, triton, transformers and numpy, and nothing of the HTTP stack.
"""
