"""Access tokens of an OAuth issuer: what opens a door and what does not, keys that change, an issuer that is away."""

import asyncio
import base64
import hmac
import time
from collections.abc import AsyncGenerator

import httpx
import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from app.issuer_keys import LOOKS, IssuerKeys, KeysUnavailable
from app.oauth import LEEWAY_S, MAX_BYTES
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json
from eventstore.log import owner_word
from tests.api import Api, running
from tests.log.logs import until
from tests.walk.issuer import AUDIENCE, Issuer, answer, issuing, rsa_key, shown
from tests.walk.wire import Wire

METADATA = "/.well-known/openid-configuration"


@pytest.fixture
async def issuer() -> AsyncGenerator[Issuer]:
    async with issuing() as issuer:
        yield issuer


@pytest.fixture
async def api(issuer: Issuer, nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address, http=HttpSettings(oauth=issuer.settings)) as api:
        yield api


async def asked(api: Api, token: str, path: str = "/agents") -> httpx.Response:
    return await api.client.get(path, headers={"Authorization": f"Bearer {token}"})


async def status(api: Api, token: str) -> int:
    return (await asked(api, token)).status_code


async def test_a_token_of_the_issuer_opens_its_owners_tasks_and_no_others(api: Api, issuer: Issuer):
    word = owner_word("auth0|5f7c8ec7")
    hers = {"Authorization": f"Bearer {issuer.token(sub='auth0|5f7c8ec7', jti='session-1')}"}
    begun = await api.client.post("/tasks", json={"input": "x"}, headers=hers)
    assert begun.status_code == 201, begun.text
    path = begun.headers["Location"]
    assert (await api.client.get(path, headers={"X-API-Key": issuer.token(sub="auth0|5f7c8ec7")})).status_code == 200
    for other in (issuer.token(), issuer.token(sub=word), api.token):
        assert (await asked(api, other, path)).status_code == 404
    facts = (await asked(api, issuer.token(sub="auth0|5f7c8ec7"), f"{path}/events")).json()["data"]
    assert facts[0]["actor"] == f"{word}/session-1"


async def test_a_token_is_verified_once_in_a_request_also_where_it_says_whose_the_path_is(
    api: Api, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    verified, verify = list[str](), jwt.decode

    def noting(token: str, *given: object, **more: object) -> object:
        verified.append(token)
        return verify(token, *given, **more)  # pyright: ignore[reportArgumentType, reportCallIssue]  # as it was called

    monkeypatch.setattr(jwt, "decode", noting)
    good = issuer.token()
    forged = f"{good[:-8]}AAAAAAAA"
    nobodys = "/api/v1/tasks/f1c2a3b4-0000-4000-8000-000000000000"
    wanted = [("/agents", good, 200), ("/agents", forged, 401), (nobodys, good, 404), (nobodys, forged, 401)]
    for n, (path, token, code) in enumerate(wanted, 1):
        assert (await asked(api, token, path)).status_code == code
        assert len(verified) == n, path


async def test_scopes_are_said_in_several_ways_and_what_we_do_not_know_is_nothing(api: Api, issuer: Issuer):
    cases: list[tuple[dict[str, Json], str, int]] = [
        ({"scope": "openid tasks:read email"}, "/agents", 200),
        ({"scope": None, "scp": ["tasks:read"]}, "/agents", 200),
        ({"scope": None, "scp": "tasks:read"}, "/agents", 200),
        ({"scope": "niyra:tasks:read"}, "/agents", 403),
        ({"scope": "openid"}, "/agents", 403),
        ({"scope": None}, "/agents", 403),
        ({"scope": "admin"}, "/events?owner=dev", 403),
        ({"scope": "audit:all"}, "/events?owner=dev", 200),
    ]
    for said, path, code in cases:
        assert (await asked(api, issuer.token(claims=said), path)).status_code == code, said


async def test_a_token_may_name_its_dialect_by_a_claim(api: Api, issuer: Issuer):
    path = f"/api/v1/tasks/{await api.begin()}"
    cases: list[tuple[dict[str, Json], str]] = [
        ({}, "nanonets"),
        ({"tasktrail_dialect": "shannon"}, "shannon"),
        ({"tasktrail_dialect": "nanonets"}, "nanonets"),
        ({"tasktrail_dialect": "french"}, "nanonets"),
        ({"tasktrail_dialect": ["shannon"]}, "nanonets"),
        ({"dialect": "shannon"}, "nanonets"),
    ]
    for said, dialect in cases:
        told = await asked(api, issuer.token(sub="dev", claims=said), path)
        assert (told.status_code, "workflow_id" in told.json()) == (200, dialect == "shannon"), said


async def test_another_claim_names_the_dialect_where_the_settings_say_so(issuer: Issuer, nats_address: NatsAddress):
    settings = msgspec.structs.replace(issuer.settings, dialect_claim="https://example.org/api")
    async with running(nats_address, http=HttpSettings(oauth=settings)) as api:
        path = f"/api/v1/tasks/{await api.begin()}"
        told = await asked(api, issuer.token(sub="dev", claims={"https://example.org/api": "shannon"}), path)
        assert "workflow_id" in told.json()
        assert (
            "workflow_id" not in (await asked(api, issuer.token(sub="dev", tasktrail_dialect="shannon"), path)).json()
        )


async def test_every_public_key_algorithm_is_verified(api: Api, issuer: Issuer):
    issuer.keys |= {
        "rsa": rsa_key(),
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "p521": ec.generate_private_key(ec.SECP521R1()),
        "weak": rsa_key(1024),
    }
    issuer.show()
    for kid, algorithm in (
        *(("rsa", name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        *(("p256", "ES256"), ("p384", "ES384"), ("p521", "ES512"), ("ed", "EdDSA")),
    ):
        good = issuer.token(kid, algorithm)
        assert await status(api, good) == 200, algorithm
        assert await status(api, f"{good[:-8]}AAAAAAAA") == 401, algorithm
    with pytest.warns(Warning, match="below"):
        weak = issuer.token("weak", "RS256")
    assert await status(api, weak) == 401
    # A key that is for one algorithm is for no other.
    issuer.jwks = [one | {"alg": "RS512"} for one in issuer.jwks if one["kid"] == "rsa"]
    issuer.jwks[0]["kid"] = "rsa2"
    issuer.keys["rsa2"] = issuer.keys["rsa"]
    assert [await status(api, issuer.token("rsa2", name)) for name in ("RS512", "RS256", "PS512")] == [200, 401, 401]


def by_hand(header: Json, claims: Json, secret: bytes = b"") -> str:
    """A token that no library would make."""
    said = [base64.urlsafe_b64encode(msgspec.json.encode(one)).rstrip(b"=") for one in (header, claims)]
    signed = b".".join(said)
    signature = hmac.digest(secret, signed, "sha256") if secret else b"none"
    return b".".join([signed, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def test_what_is_no_good_is_refused_in_the_same_words_and_nobody_is_asked(api: Api, issuer: Issuer):
    now = int(time.time())
    good: dict[str, Json] = {"iss": issuer.url, "aud": AUDIENCE, "sub": "ann", "exp": now + 60, "scope": "tasks:read"}
    wanting: list[dict[str, Json]] = [
        {"aud": "https://others.example.org"},
        {"aud": ["https://others.example.org"]},
        {"aud": None},
        {"iss": f"{issuer.url}/"},
        {"iss": None},
        {"exp": now - LEEWAY_S - 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"nbf": now + 100},
        {"scope": 7},
        {"jti": 7},
    ]
    public = msgspec.json.encode(shown(issuer.keys["ed"]))
    bad = [issuer.token(claims=claims) for claims in wanting]
    bad += [issuer.token(typ="logout+jwt"), issuer.token(filler="x" * MAX_BYTES)]
    bad += [by_hand({"alg": name}, good) for name in ("none", "None", "HS999", "EdDSA ", "")]
    bad += [by_hand({"alg": name, "kid": "ed"}, good, public) for name in ("HS256", "HS512")]
    bad += [by_hand({"alg": "EdDSA", "kid": 7}, good), by_hand([], good), by_hand({"alg": "EdDSA"}, [])]
    bad += ["a.b.c", "eyJ.eyJ.eyJ", issuer.token().rpartition(".")[0] + ".", "....", "eyJhbGciOiJFZERTQSJ9.e30.x"]
    unknown = (await asked(api, "tt_unknown")).content
    for token in bad:
        refused = await asked(api, token)
        assert (refused.status_code, refused.content) == (401, unknown), token
    assert issuer.asked == []


async def test_what_only_its_signed_words_show_is_refused_too(api: Api, issuer: Issuer):
    now = int(time.time())
    unknown = (await asked(api, "tt_unknown")).content
    stranger = Issuer()
    stranger.port = issuer.port
    subjects: list[Json] = [None, "", 7, "x" * 300, "\ud800"]
    for claims in (*({"sub": sub} for sub in subjects), {"iat": now + 100}):
        refused = await asked(api, issuer.token(claims=claims))
        assert (refused.status_code, refused.content) == (401, unknown), claims
    head, claims, signature = issuer.token().split(".")
    others = issuer.token(sub="bob").split(".")[1]
    for token in (stranger.token(), f"{head}.{others}.{signature}", f"{head}.{claims}.{signature[:-4]}"):
        refused = await asked(api, token)
        assert (refused.status_code, refused.content) == (401, unknown)
    for key in (
        shown(issuer.keys["ed"]) | {"kid": "enc", "use": "enc"},
        shown(issuer.keys["ed"]) | {"kid": "secret", "kty": "oct", "k": "AAAA"},
        shown(issuer.keys["ed"]) | {"kid": "private", "d": "AAAA"},
    ):
        issuer.jwks.append(key)
        issuer.keys[str(key["kid"])] = issuer.keys["ed"]
        assert await status(api, issuer.token(str(key["kid"]))) == 401
    assert await status(api, issuer.token()) == 200


async def test_a_token_within_the_leeway_is_taken_and_an_issuers_only_key_needs_no_name(api: Api, issuer: Issuer):
    now = int(time.time())
    assert await status(api, issuer.token(exp=now - 1, nbf=now + 5, iat=now + 5)) == 200
    claims: dict[str, Json] = {"iss": issuer.url, "aud": [AUDIENCE], "sub": "ann", "exp": now + 60}
    nameless = jwt.encode(claims | {"scope": "tasks:read"}, issuer.keys["ed"], "EdDSA")
    assert await status(api, nameless) == 200


async def test_a_new_key_is_known_at_once_and_bad_tokens_do_not_make_the_issuer_work(api: Api, issuer: Issuer):
    old = issuer.token()
    assert [await status(api, old), issuer.shows] == [200, 1]
    issuer.keys = {"new": ed25519.Ed25519PrivateKey.generate()}
    issuer.show()
    answers = await asyncio.gather(*[status(api, issuer.token("new")) for _ in range(20)])
    assert (set(answers), issuer.shows) == ({200}, 2)
    assert await status(api, old) == 401
    for n in range(30):
        issuer.keys[f"made-up-{n}"] = issuer.keys["new"]
        assert await status(api, issuer.token(f"made-up-{n}")) == 401
    assert issuer.shows <= LOOKS
    assert issuer.asked.count(METADATA) == 1
    assert await status(api, issuer.token("new")) == 200


async def test_an_issuer_that_is_away_is_waited_for_and_nobody_is_let_in(api: Api, issuer: Issuer):
    await issuer.close()
    refused = await asked(api, issuer.token())
    assert (refused.status_code, refused.json()["code"]) == (503, "keys_unavailable")
    assert int(refused.headers["Retry-After"]) > 0
    assert await status(api, issuer.token(aud="others")) == 401
    assert await status(api, api.token) == 200
    niyras = (await asked(api, issuer.token(), "/v1/public/tasks/x")).json()
    assert niyras["error"] == "temporarily_unavailable"
    await issuer.open()
    async with asyncio.timeout(10):
        while await status(api, issuer.token()) != 200:  # noqa: ASYNC110  # as its clients would
            await asyncio.sleep(0.05)
    await issuer.close()
    assert await status(api, issuer.token()) == 200
    issuer.keys["new"] = ed25519.Ed25519PrivateKey.generate()
    assert await status(api, issuer.token("new")) == 503


SPOILT = [
    (METADATA, answer({"issuer": "https://others.example.org", "jwks_uri": "http://127.0.0.1/keys"})),
    (METADATA, answer({"jwks_uri": 7})),
    (METADATA, answer([])),
    (METADATA, b"HTTP/1.1 302 Found\r\nlocation: /keys\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
    (METADATA, b"what?"),
    ("/keys", answer({"keys": []})),
    ("/keys", answer({"keys": [{"kty": "oct", "k": "AAAA"}, {"kty": "RSA", "n": "?", "e": "?"}, {"kty": "EC"}, {}]})),
    ("/keys", answer({"keys": "x" * 300_000})),
    ("/keys", answer({}, b"500 Internal Server Error")),
    ("/keys", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\n" + b"[" * 9),
    ("/keys", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\nconnection: close\r\n\r\n{"),
]


@pytest.mark.parametrize(("path", "spoilt"), SPOILT)
async def test_an_issuer_that_answers_something_else_is_as_good_as_away(issuer: Issuer, path: str, spoilt: bytes):
    issuer.answers[path] = spoilt
    keys = IssuerKeys(issuer.settings)
    with pytest.raises(KeysUnavailable):
        await keys.find("ed", "EdDSA")
    await keys.close()


async def test_keys_are_found_by_either_kind_of_metadata(issuer: Issuer):
    issuer.answers[METADATA] = answer({}, b"404 Not Found")
    path = "/.well-known/oauth-authorization-server"
    issuer.answers[path] = answer({"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"})
    keys = IssuerKeys(issuer.settings)
    assert await keys.find("ed", "EdDSA") is not None
    await keys.close()


async def until_gone(keys: IssuerKeys, kid: str) -> None:
    """Return once there is no such key."""
    async with asyncio.timeout(10):
        while await keys.find(kid, "EdDSA") is not None:  # noqa: ASYNC110  # keys are renewed when they are asked for
            await asyncio.sleep(0.01)


async def test_a_key_that_is_withdrawn_is_forgotten_and_none_is_kept_for_ever(issuer: Issuer):
    fresh = IssuerKeys(issuer.settings, fresh_s=0)
    assert await fresh.find("ed", "EdDSA") is not None
    issuer.keys = {"new": ed25519.Ed25519PrivateKey.generate()}
    issuer.show()
    await until_gone(fresh, "ed")
    await fresh.close()
    kept = IssuerKeys(issuer.settings, fresh_s=0, kept_s=0.5)
    assert await kept.find("new", "EdDSA") is not None
    await issuer.close()
    with pytest.raises(KeysUnavailable):
        await until_gone(kept, "new")
    await kept.close()


async def test_the_end_of_a_token_cuts_its_streams(api: Api, issuer: Issuer):
    begun = await api.client.post("/tasks", json={}, headers={"Authorization": f"Bearer {issuer.token()}"})
    until_then = int(time.time()) + 2
    token = issuer.token(exp=until_then - LEEWAY_S)
    path = f"{begun.headers['Location']}/events?token={token}"
    wire = await (await Wire.ask(api.url, path, {"Accept": "text/event-stream"})).head()
    assert wire.status == 200
    await wire.frames(1)
    async with asyncio.timeout(10):
        _, ended = await wire.rest()
    await wire.close()
    assert not ended
    assert time.time() >= until_then
    await until(lambda: api.metric("streams_cut_total", why="token_expired") == 1)
    assert await status(api, token) == 401
