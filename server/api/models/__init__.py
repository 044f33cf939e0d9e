"""Models of a server as clients see them: its own, and profiles of it."""
