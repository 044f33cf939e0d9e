"""Requests made out of /openapi.json: none is a 5xx, and every reply is what the schema says."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from trimtab.server.api.app import create_app

schemathesis = pytest.importorskip("schemathesis")
NUM_EXAMPLES = 5  # for each route


def test_requests_of_the_schema_are_answered_as_it_says(make_engine):
    engine = make_engine("kind", "brief")
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(engine, engine.tokenizer))
    conforms = schemathesis.specs.openapi.checks.response_schema_conformance
    checks = [schemathesis.checks.not_a_server_error, conforms]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 12
    for operation in operations:

        @settings(
            max_examples=NUM_EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answer(case):
            case.validate_response(case.call(), checks=checks)

        answer()
