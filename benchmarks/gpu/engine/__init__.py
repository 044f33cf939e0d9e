"""Engine on a device: is it right, how near to its floor, and what does guidance cost it."""
