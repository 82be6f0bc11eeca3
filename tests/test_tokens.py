"""Access tokens: one token is one text, and only its own purpose, keys and time accept it."""

from __future__ import annotations

import json
import string
from base64 import urlsafe_b64encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import Signer, URLSafeTimedSerializer

from edge.principals import Principal
from edge.tokens import MAX_TOKEN_CHARS, Tokens
from shared.contract.errors import ApiError
from shared.signing_keys import LONGEST_TOKEN

OLD, CURRENT = "old-" + "o" * 43, "current-" + "c" * 43
NOW = 1_800_000_000
URLSAFE = string.ascii_letters + string.digits + "-_"
PLAIN = Principal("key_0123456789ab", "key", "member", ("chat",))
LOCKED = Principal(
    "AAAAAAAAAAAAAAAAAAAAAA",
    "anonymous",
    "anonymous",
    ("chat",),
    origin="https://app.example.com",
    chat_types=("home", "whereToGo"),
    max_tokens=256,
    uses=5,
)


def tokens(*keys: str, at: float = NOW, lifetime: float = 600) -> Tokens:
    return Tokens(keys or (OLD, CURRENT), lifetime, now=lambda: at)


VALID = tokens().mint(LOCKED)[0]


def refusal(text: str, verifier: Tokens | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        (verifier or tokens()).verify(text)
    assert caught.value.status == 401
    return caught.value


def signed(claims: object, *, key: str = CURRENT, salt: str = "hearthlink.access.v1") -> str:
    """Claims under a good signature, as another version or another purpose might have made them."""
    payload = urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    signer = Signer([key], salt=salt, key_derivation="hmac", digest_method=sha256)
    return "hlt_" + signer.sign(payload).decode()


LOCK_CLAIMS = ("org", "cht", "max", "use", "lim", "mor")
GOOD_CLAIMS = {
    "sub": "someone",
    "kind": "token",
    "plan": "owner",
    "scp": ["chat", "admin"],
    "jti": "j" * 22,
    "iat": NOW,
    "exp": NOW + 600,
}


@pytest.mark.parametrize("principal", [PLAIN, LOCKED])
def test_a_token_carries_its_principal(principal: Principal) -> None:
    token, expires_in = tokens().mint(principal)
    found = tokens().verify(token)
    assert expires_in == 600
    assert found.expires_at == NOW + 600
    assert len(found.jti or "") == 22
    assert found.issued_at == NOW, "what it is revoked by when its principal is"
    for name in ("id", "kind", "plan", "scopes", "origin", "chat_types", "max_tokens", "uses"):
        assert getattr(found, name) == getattr(principal, name)


def test_every_token_has_an_id_of_its_own() -> None:
    minted = {tokens().verify(tokens().mint(PLAIN)[0]).jti for _ in range(50)}
    assert len(minted) == 50


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """The valid token, changed in one to three places."""
    text = VALID
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(text)))
        letter = draw(st.sampled_from(URLSAFE + "=.+/ \n\0~é") | st.characters(exclude_categories=["Cs"]))
        kept = draw(st.integers(0, 2))  # 0: insert, 1: replace, 2: replace two by one
        text = text[:place] + letter + text[place + kept :]
    return text


@pytest.mark.case("B19", "B22")
@given(mutations())
def test_no_mutation_of_a_token_is_accepted(text: str) -> None:
    if text != VALID:
        assert refusal(text).code == "invalid_token"


@pytest.mark.case("B22")
@given(st.integers(0, len(VALID) - 1), st.integers(0, len(VALID)))
def test_no_part_or_repetition_of_a_token_is_accepted(start: int, end: int) -> None:
    if (start, end) != (0, len(VALID)):
        refusal(VALID[start:end])
    refusal(VALID + VALID[start:end] if start < end else VALID + "=")


@given(st.text(max_size=200))
def test_no_other_text_is_accepted(text: str) -> None:
    refusal(text)
    refusal("hlt_" + text)
    refusal(f"hlt_{text}.{VALID.rpartition('.')[2]}")


@pytest.mark.case("B22")
@pytest.mark.parametrize("place", range(len(VALID) - 3, len(VALID)))
def test_the_last_characters_have_one_spelling(place: int) -> None:
    # 32 bytes are 43 characters with two bits to spare: a lenient decoder accepts four spellings of the last one.
    accepted = []
    for letter in URLSAFE:
        text = VALID[:place] + letter + VALID[place + 1 :]
        try:
            tokens().verify(text)
        except ApiError:
            continue
        accepted.append(text)
    assert accepted == [VALID]


@pytest.mark.parametrize("spelling", ["{}=", "{}==", " {}", "{}\n", "{}\r\n", "\ufeff{}", "{}\0", "Bearer {}"])
def test_decorated_tokens_are_refused(spelling: str) -> None:
    refusal(spelling.format(VALID))


def test_case_and_padding_are_refused() -> None:
    payload, _, signature = VALID.removeprefix("hlt_").partition(".")
    for text in (
        VALID.upper(),
        VALID.lower(),
        f"hlt_{payload}=.{signature}",
        f"{payload}.{signature}",
        f"hli_{VALID[4:]}",
    ):
        refusal(text)


def test_claims_signed_as_ours_are_accepted_so_that_the_next_tests_mean_something() -> None:
    assert tokens().verify(signed(GOOD_CLAIMS)).id == "someone"


@pytest.mark.case("B20")
@pytest.mark.parametrize("salt", ["hearthlink.invite.v1", "hearthlink.access.v2", "", "itsdangerous.Signer"])
def test_a_token_of_another_purpose_is_refused(salt: str) -> None:
    assert refusal(signed(GOOD_CLAIMS, salt=salt)).code == "invalid_token"


@pytest.mark.case("B19", "B21")
def test_other_signers_are_refused() -> None:
    unsigned = urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    claims = urlsafe_b64encode(json.dumps(GOOD_CLAIMS).encode()).rstrip(b"=").decode()
    for text in (
        signed(GOOD_CLAIMS, key="x" * 43),
        f"{unsigned}.{claims}.",
        f"hlt_{unsigned}.{claims}.",
        f"hlt_{claims}.",
        f"hlt_{claims}." + "A" * 43,
        "hlt_" + str(URLSafeTimedSerializer(CURRENT, salt="hearthlink.access.v1").dumps(GOOD_CLAIMS)),
        "hln_" + "n" * 43,
        "",
    ):
        assert refusal(text).code == "invalid_token"


@pytest.mark.parametrize(
    "claims",
    [
        [],
        "text",
        7,
        None,
        {},
        *({key: value for key, value in GOOD_CLAIMS.items() if key != gone} for gone in GOOD_CLAIMS),
        GOOD_CLAIMS | {"iat": "soon"},
        GOOD_CLAIMS | {"exp": "never"},
        GOOD_CLAIMS | {"exp": None},
        GOOD_CLAIMS | {"scp": 3},
        GOOD_CLAIMS | {"cht": 3},
    ],
)
def test_claims_of_another_version_are_refused(claims: object) -> None:
    assert refusal(signed(claims)).code == "invalid_token"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(JSON | st.fixed_dictionaries(dict.fromkeys(GOOD_CLAIMS, JSON), optional=dict.fromkeys(LOCK_CLAIMS, JSON)))
def test_whatever_was_signed_is_a_principal_or_refused(claims: object) -> None:
    """The claims of a version to come end in 401, never in an exception that nobody expects."""
    try:
        found = tokens().verify(signed(claims))
    except ApiError as error:
        assert error.code in ("invalid_token", "token_expired")
    else:
        assert isinstance(found, Principal)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_a_token_is_valid_from_its_minting_to_its_end_and_no_longer(away: int, lifetime: int) -> None:
    token, _ = tokens(lifetime=lifetime).mint(PLAIN)
    verifier = tokens(at=NOW + away)
    if away < -30:
        assert refusal(token, verifier).code == "invalid_token"
    elif away >= lifetime:
        assert refusal(token, verifier).code == "token_expired"
    else:
        assert verifier.verify(token).id == PLAIN.id


def test_a_signed_payload_that_is_not_json_is_refused() -> None:
    signer = Signer([CURRENT], salt="hearthlink.access.v1", key_derivation="hmac", digest_method=sha256)
    for payload in (b"A", b"AAAA", b"____", b"eyJ"):
        refusal("hlt_" + signer.sign(payload).decode())


@pytest.mark.parametrize("after", [NOW - 60, NOW - 1, NOW, NOW + 3])
def test_a_token_is_issued_after_its_caller_was_revoked(after: int) -> None:
    """Also in the same second, or where another edge's clock revoked; it lasts as long as any other."""
    token, expires_in = tokens().mint(PLAIN, after=after)
    found = tokens().verify(token)
    assert found.issued_at == max(NOW, after + 1) and (expires_in, found.expires_at) == (600, NOW + 600)


def test_keys_follow_those_of_before_until_none_is_left_of_them() -> None:
    assert tokens(OLD, CURRENT).follows(tokens(OLD)) and tokens(CURRENT).follows(tokens(OLD, CURRENT))
    assert not tokens(CURRENT).follows(tokens(CURRENT, OLD))


@pytest.mark.case("B23")
def test_a_token_ends_on_the_second() -> None:
    tokens(at=NOW + 599.9).verify(VALID)
    assert refusal(VALID, tokens(at=NOW + 600)).code == "token_expired"
    assert refusal(VALID[:-5] + "AAAAA", tokens(at=NOW + 600)).code == "invalid_token"  # a forged one is only forged


@pytest.mark.case("B24")
def test_a_clock_a_little_behind_the_issuer_is_forgiven() -> None:
    tokens(at=NOW - 20).verify(VALID)
    assert refusal(VALID, tokens(at=NOW - 300)).code == "invalid_token"


def test_rotation_drops_nobody() -> None:
    before = tokens(OLD).mint(PLAIN)[0]
    after = tokens(OLD, CURRENT).mint(PLAIN)[0]
    assert tokens(OLD, CURRENT).verify(before).id == PLAIN.id
    assert tokens(CURRENT).verify(after).id == PLAIN.id  # the last key signs
    assert refusal(before, tokens(CURRENT)).code == "invalid_token"


def test_a_token_does_not_outlive_the_key_it_was_made_with() -> None:
    principal = Principal("key_0123456789ab", "key", "member", ("chat",), expires_at=NOW + 60)
    token, expires_in = tokens().mint(principal)
    assert (expires_in, tokens().verify(token).expires_at) == (60, NOW + 60)
    with pytest.raises(ValueError, match="expired at once"):
        tokens(at=NOW + 60).mint(principal)


def test_a_lifetime_can_be_given() -> None:
    assert tokens().mint(PLAIN, lifetime=24 * 3600)[1] == 24 * 3600
    with pytest.raises(ValueError, match="at least one second"):
        tokens().mint(PLAIN, lifetime=0)
    with pytest.raises(ValueError, match="366 days"):
        tokens().mint(PLAIN, lifetime=LONGEST_TOKEN + 1)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a" * 129, "naïve", "a\0"])
def test_ids_that_are_not_plain_words_are_not_minted(name: str) -> None:
    with pytest.raises(ValueError, match="id is 1 to 128"):
        tokens().mint(Principal(name, "token", "member", ("chat",)))


def test_a_token_is_never_longer_than_what_is_read() -> None:
    wide = Principal("someone", "token", "member", ("chat",), chat_types=tuple(f"type{n}" for n in range(200)))
    with pytest.raises(ValueError, match=str(MAX_TOKEN_CHARS)):
        tokens().mint(wide)
    refusal("hlt_" + "A" * 100_000)


def test_keys_are_needed() -> None:
    for keys in ([], [""], [CURRENT, ""]):
        with pytest.raises(ValueError, match="no key"):
            Tokens(keys, 600)


def test_a_refusal_repeats_nothing_of_the_token() -> None:
    for text in (VALID[:-1], VALID + "x", "hlt_" + "secretish" * 5):
        error = refusal(text)
        said = str(error) + repr(error) + error.envelope("r" * 16).decode()
        assert not any(text[at : at + 12] in said for at in range(0, len(text) - 12, 4))
        assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
