"""Evaluation: what guidance buys and what it costs, the reward-KL frontier above all."""
