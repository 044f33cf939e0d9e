"""Growth of the time of a token: with rows, context, heads and vocabulary, each beside its floor."""
