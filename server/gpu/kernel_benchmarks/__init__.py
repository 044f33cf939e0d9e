"""How far is every kernel from its floor, and from what torch or FlashInfer do with the same inputs."""
