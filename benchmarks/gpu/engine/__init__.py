"""Is the engine right on this device, how near is it to its floor, and what does guidance cost it."""
