"""Judge models behind OpenAI-compatible URLs: asking them, and reading what they say."""
