"""Schemas: describe replies in /openapi.json."""
