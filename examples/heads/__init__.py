"""Heads that come with SmolLM2-135M-Instruct: rewards, judges, prompts and the recipe of each."""
