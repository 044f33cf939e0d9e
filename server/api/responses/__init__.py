"""Responses: OpenAI's newer shape of a chat, translated to the older one and back."""
