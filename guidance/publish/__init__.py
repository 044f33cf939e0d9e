"""Heads that others can use: with a card, in a folder or on the hub, or as a classification model."""
