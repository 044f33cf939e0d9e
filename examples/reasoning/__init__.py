"""Reasoning: a value that learns which solutions of school maths are right, and sees where one goes wrong."""
