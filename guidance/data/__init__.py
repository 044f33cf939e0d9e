"""Data: reads, recognises, checks and encodes the rows that heads are trained and judged on."""
