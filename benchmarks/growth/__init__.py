"""How the time of a token grows: with rows, context, heads and vocabulary, each beside its floor."""
