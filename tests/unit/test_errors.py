from __future__ import annotations

import pytest

from typeless_grpc.errors import EngineFailed, FieldViolation, InvalidInput, Overloaded, TypelessError


def test_one_wrong_field_is_in_the_message():
    error = InvalidInput("options.language", "is not known", reason="LANGUAGE_NOT_SUPPORTED")
    assert str(error) == error.message == "options.language: is not known"
    assert error.violations == (FieldViolation("options.language", "is not known"),)
    assert error.reason == "LANGUAGE_NOT_SUPPORTED"


def test_several_invalid_fields_are_reported_together():
    error = InvalidInput.of([FieldViolation("a", "is odd"), FieldViolation("b", "is even")])
    assert str(error) == error.message == "a: is odd; b: is even"
    assert [violation.field for violation in error.violations] == ["a", "b"]


def test_an_error_without_a_field_has_none_in_its_message():
    assert InvalidInput("", "nothing fits").message == "nothing fits"


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (Overloaded("full"), True),
        (EngineFailed("broke"), False),
        (EngineFailed("broke", retry_after_s=0.0), True),
        (InvalidInput("a", "b"), False),
    ],
)
def test_an_error_is_retryable_where_waiting_helps(error: TypelessError, retryable: bool):
    assert error.retryable is retryable
