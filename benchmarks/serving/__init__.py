"""Serving benchmark: loads HTTP servers with concurrent streams, beside the engine alone and beside peers."""
