"""Training speed: a head on cached features beside TRL's fine-tuned policy: an epoch's time, and memory."""
