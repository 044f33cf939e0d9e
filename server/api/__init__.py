"""API: serves OpenAI-style requests over HTTP; sees the engine through submit() and abort()."""
