"""Features: hidden states of the frozen policy at the positions of replies, kept on disk or run anew."""
