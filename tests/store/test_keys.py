"""API keys: what they look like, and that no other text is one. What a store does with them is in ``test_admin``."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.principals import Principal
from edge.store import keys
from edge.store.errors import AdminError
from edge.store.keys import KeyRing, NewKey
from shared.contract.errors import ApiError

NOW = 1_800_000_000


def ring(*made: NewKey, at: float = NOW) -> KeyRing:
    loaded = KeyRing(now=lambda: at)
    loaded.load((key.info, key.digest) for key in made)
    return loaded


def refusal(ring: KeyRing, text: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ring.lookup(text)
    assert (caught.value.code, caught.value.status) == ("invalid_token", 401)
    return caught.value


def test_a_key_opens_as_what_it_was_made_for() -> None:
    key = keys.draw("ci", "member", ["chat", "admin"], NOW + 60, NOW)
    assert re.fullmatch(r"hlk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key.text)
    found = ring(key).lookup(key.text)
    assert found == Principal(f"key_{key.text[4:16]}", "key", "member", ("chat", "admin"), expires_at=NOW + 60)
    assert "has expired" in refusal(ring(key, at=NOW + 60), key.text).message


@pytest.mark.parametrize(
    "name",
    [
        *("", "a b", "a\n", "-x", "x" * 65, "ключ", "a'; DROP"),
        *("0123456789ab", "key_0123456789ab", "token_ci", "user_ann", "tailnet_x", "oidc_x", "access_x", "invite_1_2"),
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(AdminError, match="not a name"):
        keys.draw(name, "member", ["chat"], None, NOW)


def test_bad_plans_scopes_and_ends_are_refused() -> None:
    for plan, scopes in (("a b", ["chat"]), ("member", ["chat admin"]), ("member", [""])):
        with pytest.raises(AdminError, match="one word"):
            keys.draw("ci", plan, scopes, None, NOW)
    with pytest.raises(AdminError, match="expired at once"):
        keys.draw("ci", "member", ["chat"], NOW, NOW)
    keys.draw("ci", "member", ["chat"], NOW + keys.LONGEST_SECONDS, NOW)
    with pytest.raises(AdminError, match="a hundred years"):
        keys.draw("ci", "member", ["chat"], NOW + keys.LONGEST_SECONDS + 1, NOW)


@pytest.mark.parametrize("name", ["ci", "token", "my_key", "keys_2", "tokens_ci", "user", "a_b", "key-1", "user_"])
def test_good_names_are_taken(name: str) -> None:
    assert keys.draw(name, "member", ["chat"], None, NOW).info.name == name


@settings(max_examples=200)
@given(data=st.data())
def test_no_other_text_is_a_key(data: st.DataObject) -> None:
    key, other = (keys.draw(name, "member", ["chat"], None, NOW) for name in ("ci", "other"))
    text, both = key.text, ring(key, other)
    place = data.draw(st.integers(0, len(text)))
    letter = data.draw(st.sampled_from("Aa0_-=\n \0") | st.characters())
    kept = data.draw(st.integers(0, 2))
    changed = text[:place] + letter + text[place + kept :]
    if changed != text:
        refusal(both, changed)
    for wrong in (
        text[: min(place, len(text) - 1)],
        text + "\n",
        text.upper(),
        text[:17] + other.text[17:],
        data.draw(st.text(max_size=80)),
    ):
        refusal(both, wrong)


def test_no_refusal_repeats_the_secret() -> None:
    key = keys.draw("ci", "member", ["chat"], None, NOW)
    assert key.text[17:27] not in refusal(ring(key), key.text[:-1]).message
    assert key.text[17:27] not in refusal(ring(), key.text).message
