"""Training: fits the parts of a head to rows, and says what they are worth on prompts held out."""
