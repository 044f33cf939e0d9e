"""Telemetry: log lines and traces of requests, neither of which holds what was asked or said."""
