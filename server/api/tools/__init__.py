"""Tools that a chat may call: how they are asked for, written into prompts, forced and read back."""
