"""Text: turns messages and chat templates into the tokens that the server and training both see."""
