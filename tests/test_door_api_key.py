"""The door for API keys, and which credential a request shows at all."""

from __future__ import annotations

import pytest

from edge.doors import api_key
from edge.doors.credentials import credential
from edge.principals import Principal
from shared.contract.errors import ApiError


@pytest.mark.parametrize(
    ("authorization", "key", "found"),
    [
        (None, None, None),
        ("Bearer hlt_abc.def", None, "hlt_abc.def"),
        ("bearer  hlk_abc", None, "hlk_abc"),
        (None, "hlk_abc", "hlk_abc"),
    ],
)
def test_one_credential_is_found(authorization: str | None, key: str | None, found: str | None) -> None:
    assert credential(authorization, key) == found


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "hlt_abc",
        "Bearer a b",
        "Bearer a,Bearer b",
        "Bearer a\n",
        "Bearer\ta",
    ],
)
def test_other_authorization_is_refused(authorization: str) -> None:
    with pytest.raises(ApiError) as caught:
        credential(authorization, None)
    assert caught.value.code == "invalid_token"
    assert "dXNlcjpwYXNz" not in caught.value.message


def test_two_credentials_are_refused_even_when_they_agree() -> None:
    with pytest.raises(ApiError) as caught:
        credential("Bearer hlk_abc", "hlk_abc")
    assert caught.value.code == "invalid_request"
    assert "hlk_abc" not in caught.value.message


def test_the_door_for_keys() -> None:
    holder = Principal("key_0123456789ab", "key", "owner", ("chat",))
    assert api_key.enter("hlk_anything", {"hlk_anything": holder}.__getitem__) is holder


@pytest.mark.parametrize(
    ("shown", "code"), [(None, "missing_token"), ("hlt_abc", "invalid_token"), ("", "invalid_token")]
)
def test_the_door_for_keys_looks_up_only_keys(shown: str | None, code: str) -> None:
    def never(text: str) -> Principal:
        raise AssertionError("looked up what is no key")

    with pytest.raises(ApiError) as caught:
        api_key.enter(shown, never)
    assert (caught.value.code, caught.value.status) == (code, 401)
