"""Access: who may ask, how much at once, and how long they may take to say it."""
