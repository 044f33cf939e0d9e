"""What guidance buys and what it costs: the reward-KL frontier, and where in a reply its value is decided."""
