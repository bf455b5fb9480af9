"""What a fuzzer says of the API's document."""

from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from http_server import serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_the_document_of_the_api_holds_against_a_fuzzer(tmp_path: Path) -> None:
    with serving(tmp_path, limits={"max_tokens": 8, "chat_tokens": 4}) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        num_operations = 0
        for result in schema.get_all_operations():
            operation: Any = result.ok()  # type: ignore[union-attr]
            fuzz(operation, schemathesis.GenerationMode.POSITIVE)
            if any(body.media_type == "application/json" for body in operation.body):
                fuzz(operation, schemathesis.GenerationMode.NEGATIVE)
            num_operations += 1
        assert num_operations == 22
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200


def fuzz(operation: Any, mode: schemathesis.GenerationMode) -> None:
    """Send what the document allows, or what it does not."""

    checks: Any = list(HealthCheck)

    @settings(max_examples=8, suppress_health_check=checks)
    @given(case=operation.as_strategy(mode))
    def check(case: schemathesis.Case) -> None:
        case.validate_response(case.call(timeout=20), checks=CHECKS)

    check()
