"""Rewards for sampled replies, and the training rows that they make."""
