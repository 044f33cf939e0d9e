"""Replicas on more than one machine, by Ray Serve: an ingress, and engines that it streams from."""
