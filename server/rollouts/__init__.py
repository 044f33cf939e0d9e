"""Rollouts: run requests through an engine without a server."""
