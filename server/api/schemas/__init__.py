"""Schemas: declare and check the bodies of requests, and describe replies in /openapi.json."""
