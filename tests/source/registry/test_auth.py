"""Challenges and tokens (rows B1 to B23)."""

from __future__ import annotations

import json
import threading
import traceback

import pytest

from msb_pull.ground.errors import AccessError, ExitCode, NetworkError, NotFoundError
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.endpoint import forbidden
from tests.support.fault_auth import TokenService, basic, errors, require_basic
from tests.support.fault_registry import Fault
from tests.support.registries import LAYER, describe, drain, name


@pytest.fixture
def image(registry):
    registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


def login(username="bob", password="sesame") -> CredentialStore:
    return CredentialStore.from_text(f"{username}:{password}", {})


def authorizations(registry, match="/v2/"):
    return [x.headers.get("authorization") for x in registry.asked(match)]


# Challenges


@pytest.mark.parametrize("joined", [True, False])
def test_b5_several_challenges_in_one_or_several_headers(registry, bench, image, joined):
    tokens = TokenService(registry)
    real = registry.authorize

    def authorize(request):
        fault = real(request)
        if fault is None:
            return None
        values = ["Negotiate", 'Basic realm="x"', fault.headers["WWW-Authenticate"]]
        headers = [("WWW-Authenticate", ", ".join(values))] if joined else [("WWW-Authenticate", x) for x in values]
        return Fault(status=401, headers=headers, body=b"{}")

    registry.authorize = authorize
    bench().resolve(image)
    assert tokens.made == 1


# No authorization, Basic, Bearer


def test_b1_b3_a_public_image_costs_no_ping(registry, bench, image):
    bench().resolve(image)
    assert registry.asked("/v2/")[0].path.endswith("/manifests/1")
    assert registry.count("/v2/") == 2


def test_b2_b3_anonymous_bearer(registry, bench, image):
    tokens = TokenService(registry)
    bench().resolve(image)
    assert tokens.made == 1
    asked = registry.asked("/token")[0]
    assert asked.query == {"service": ["test.registry"], "scope": ["repository:acme/app:pull"]}
    assert "authorization" not in asked.headers
    assert registry.count("/manifests/") == 2
    assert registry.count("/blobs/") == 1


def test_b2_bearer_with_a_name(registry, bench, image):
    TokenService(registry, users={"bob": "sesame"})
    bench(login()).resolve(image)
    assert authorizations(registry, "/token") == [basic("bob", "sesame")]


def test_b4_a_registry_without_base_endpoint(registry, bench, image):
    """B4: what /v2/ answers does not matter, since nobody asks it."""
    bench().resolve(image)
    assert "/v2/" not in [x.path for x in registry.requests]


def test_basic(registry, bench, image):
    require_basic(registry, {"bob": "sesame"})
    bench(login()).resolve(image)
    assert authorizations(registry)[0] is None
    assert set(authorizations(registry)[1:]) == {basic("bob", "sesame")}
    assert registry.count("/manifests/") == 2


def test_b16_basic_without_credentials(registry, bench, image):
    require_basic(registry, {"bob": "sesame"})
    with pytest.raises(AccessError, match="access denied") as caught:
        bench().resolve(image)
    assert f"authentication required for {registry.host}" in caught.value.cause
    assert f"`docker login {registry.host}`" in caught.value.hint
    assert caught.value.exit_code == ExitCode.DENIED


def test_b16_wrong_password(registry, bench, image):
    require_basic(registry, {"bob": "sesame"})
    here = bench(login(password="wrong-password"))
    with pytest.raises(AccessError) as caught:
        here.resolve(image)
    assert "401 UNAUTHORIZED" in caught.value.cause
    assert "wrong-password" not in here.texts() + str(vars(caught.value))
    assert registry.count("/manifests/") == 2


def test_b17_wrong_password_for_a_public_image_is_told(registry, bench, image):
    TokenService(registry, users={"bob": "sesame"}, anonymous=True)
    with pytest.raises(AccessError) as caught:
        bench(login(password="wrong")).resolve(image)
    assert "--anonymous" in caught.value.hint
    assert authorizations(registry, "/token") == [basic("bob", "wrong")]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(401, "UNAUTHORIZED", AccessError), (403, "DENIED", AccessError), (404, "NAME_UNKNOWN", NotFoundError)],
)
def test_b18_no_such_repository_in_three_accents(registry, bench, image, status, code, kind):
    registry.always("/manifests/", Fault(status=status, body=errors(code, "requested access is denied")))
    with pytest.raises(kind) as caught:
        bench(login()).resolve(image)
    assert code in caught.value.cause
    assert "docker login" in caught.value.hint
    if kind is AccessError:
        assert "does not exist" in caught.value.hint


def test_b18_with_credentials_the_three_causes_are_named(registry, bench, image):
    TokenService(registry, users={"bob": "sesame"}, uses=0)
    with pytest.raises(AccessError) as caught:
        bench(login()).resolve(image)
    assert all(x in caught.value.hint for x in ("wrong", "right to pull", "does not exist"))


def test_b22_a_challenge_elsewhere_is_no_challenge(registry, bench, image):
    challenge = {"WWW-Authenticate": f'Bearer realm="{registry.url}/token",service="x"'}
    registry.script("/manifests/", Fault(headers=challenge), method="GET")
    bench().resolve(image)
    registry.always("/manifests/", Fault(status=403, headers=challenge, body=errors("DENIED")))
    with pytest.raises(AccessError):
        bench().resolve(image)
    assert registry.count("/token") == 0


# Where tokens come from


@pytest.mark.parametrize(
    ("realm", "base", "why"),
    [
        ("http://169.254.169.254/latest", "https://r.example", "not encrypted"),
        ("https://169.254.169.254/latest", "https://r.example", "private"),
        ("http://169.254.169.254/latest", "http://r.example", "private"),
        ("https://10.0.0.1/t", "https://r.example", "private"),
        ("https://192.168.1.1/t", "https://10.0.0.1:5000", "private"),
        ("https://127.0.0.1/t", "https://r.example", "private"),
        ("https://localhost:8080/t", "https://r.example", "private"),
        ("https://[::1]/t", "https://r.example", "private"),
        ("https://[::ffff:10.0.0.1]/t", "https://r.example", "private"),
        ("https://[fe80::1]/t", "https://r.example", "private"),
        ("https://2130706433/t", "https://r.example", "private"),
        ("https://0x7f.1/t", "https://r.example", "private"),
        ("https://100.64.0.1/t", "https://r.example", "private"),
        ("file:///etc/passwd", "https://r.example", "usable"),
        ("ftp://r.example/t", "https://r.example", "usable"),
        ("/token", "https://r.example", "usable"),
        ("", "https://r.example", "usable"),
        ("https://user:pw@r.example/t", "https://r.example", "usable"),
        ("https://[::1/t", "https://r.example", "usable"),
        ("https://r.example:notaport/t", "https://r.example", "usable"),
        ("http://auth.example/t", "https://r.example", "not encrypted"),
        ("https://auth.example/t", "https://r.example", None),
        ("https://8.8.8.8/t", "https://r.example", None),
        ("http://auth.example/t", "http://r.example", None),
        ("http://10.0.0.1:5001/t", "http://10.0.0.1:5000", None),
        ("http://127.0.0.1:5001/t", "http://localhost:5000", None),
    ],
)
def test_b7_where_a_registry_may_send_us(realm, base, why):
    reason = forbidden(realm, base)
    assert (reason is None) if why is None else (why in (reason or ""))


def test_b7_a_forbidden_realm_is_not_asked_and_sees_no_password(registry, bench, image):
    TokenService(registry, realm="http://169.254.169.254/latest/meta-data")
    with pytest.raises(AccessError, match="refusing to ask its token service") as caught:
        bench(login()).resolve(image)
    assert "private network" in caught.value.cause
    assert registry.count() == 1


def test_b7_redirects_of_the_token_service_are_checked_too(registry, bench, image):
    TokenService(registry)
    registry.always("/token", Fault(redirect="http://169.254.169.254/latest"))
    with pytest.raises(NetworkError) as caught:
        bench(login()).resolve(image)
    assert "private network" in caught.value.cause


def test_b7_the_password_stays_behind_when_the_token_service_redirects(registry, other, bench, image):
    tokens = TokenService(registry, server=other, realm=f"{registry.url}/token")
    other.endpoints["/elsewhere"] = other.endpoints.pop("/token")
    registry.endpoints["/token"] = lambda request: Fault(status=307, headers={"Location": f"{other.url}/elsewhere"})
    bench(login()).resolve(image)
    assert tokens.made == 1
    assert authorizations(registry, "/token") == [basic("bob", "sesame")]
    assert authorizations(other, "/elsewhere") == [None]


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"token": "a"}, True),
        ({"access_token": "a"}, True),
        ({"token": "a", "access_token": "a", "extra": [1]}, True),
        ({"token": "", "access_token": "a"}, True),
        ({}, False),
        ({"token": 5}, False),
        ({"token": "a\r\nX: y"}, False),
        ([], False),
        ("text", False),
    ],
)
def test_b8_answers_of_token_services(registry, bench, image, body, good):
    tokens = TokenService(registry)
    secret = "never-to-be-shown"
    registry.endpoints["/token"] = lambda request: Fault(
        status=200, body=json.dumps(body if not isinstance(body, dict) else body | {"note": secret}).encode()
    )
    tokens.valid["a"] = 0
    here = bench()
    if good:
        here.resolve(image)
        assert authorizations(registry)[1] == "Bearer a"
    else:
        with pytest.raises(AccessError, match="no token") as caught:
            here.resolve(image)
        assert secret not in here.texts() + str(vars(caught.value))


def test_b8_an_endless_answer_is_cut(registry, bench, image):
    TokenService(registry)
    registry.endpoints["/token"] = lambda request: Fault(status=200, endless=True)
    with pytest.raises(AccessError):
        bench().resolve(image)


@pytest.mark.parametrize(
    ("lifetime", "still_good_after"),
    [
        (None, 53),
        (300, 269),
        ("300", 53),
        (1, 53),
        (0, 53),
        (-5, 53),
        (True, 53),
        ([], 53),
        (1e300, 10_000),
        (10**400, 10_000),
        (float("nan"), 53),
    ],
)
def test_b9_lifetimes(registry, bench, image, lifetime, still_good_after):
    tokens = TokenService(registry, lifetime=lifetime)
    here = bench()
    here.resolve(image)
    here.time.passed += still_good_after
    here.resolve(image)
    assert tokens.made == 1
    if still_good_after < 10_000:
        here.time.passed += 2
        here.resolve(image)
        assert tokens.made == 2
        assert registry.count("/manifests/") == 4


def test_b10_a_token_that_dies_in_the_middle_of_a_blob(registry, bench, image):
    tokens = TokenService(registry)
    registry.script("/blobs/", Fault(), Fault(cut_after=100_000))
    source = bench().source(image)
    stream = source.open_blob(describe(LAYER), 0)
    got = stream.read(1000)
    tokens.revoke()
    with stream:
        got += b"".join(iter(lambda: stream.read(65536), b""))
    assert got == LAYER
    assert tokens.made == 2
    assert registry.asked("/blobs/")[-1].headers["range"] == "bytes=100000-"


def test_b10_eight_threads_and_an_expired_token_make_one_refresh(registry, bench, image):
    tokens = TokenService(registry, delay=0.05)
    source = bench().source(image)
    assert drain(source, describe(LAYER)) == LAYER
    tokens.revoke()
    barrier, got = threading.Barrier(8), []

    def read() -> None:
        barrier.wait()
        got.append(drain(source, describe(LAYER)))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == [LAYER] * 8
    assert tokens.made == 2


def test_b10_eight_threads_and_an_old_token_make_one_renewal(registry, bench, image):
    tokens = TokenService(registry, delay=0.05)
    here = bench()
    source = here.source(image)
    drain(source, describe(LAYER))
    here.time.passed += 100
    threads = [threading.Thread(target=drain, args=(source, describe(LAYER))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert tokens.made == 2
    assert registry.count("/blobs/") == 10


def test_b11_refused_again_after_the_refresh(registry, bench, image):
    tokens = TokenService(registry, uses=0)
    with pytest.raises(AccessError, match="access denied") as caught:
        bench().resolve(image)
    assert "registry answered 401 UNAUTHORIZED" in caught.value.cause
    assert tokens.made <= 2
    assert registry.count("/manifests/") <= 3


def test_b12_another_scope_is_asked_for_once(registry, bench, image):
    tokens = TokenService(registry)
    real = registry.authorize

    def authorize(request):
        if request.headers.get("authorization", "").endswith("repository:acme/app:pull,metadata_read"):
            return None
        fault = real(request)
        wanted = 'scope="repository:acme/app:pull,metadata_read"'
        challenge = f'Bearer realm="{tokens.realm}",service="test.registry",{wanted},error="insufficient_scope"'
        return Fault(status=401, headers={"WWW-Authenticate": challenge}, body=fault.body if fault else b"{}")

    registry.authorize = authorize
    bench().resolve(image)
    assert [x.query["scope"][0] for x in registry.asked("/token")] == [
        "repository:acme/app:pull",
        "repository:acme/app:pull,metadata_read",
    ]


def identity(tmp_path, registry, username="") -> CredentialStore:
    auth = {"auths": {registry.host: {"identitytoken": "id-secret"}}}
    if username:
        auth["auths"][registry.host]["auth"] = "Ym9iOg=="
    (tmp_path / "auth.json").write_text(json.dumps(auth))
    return CredentialStore(environment={}, authfile=tmp_path / "auth.json")


def test_b13_identity_token(registry, bench, image, tmp_path):
    TokenService(registry, users={}, refresh_tokens={"id-secret": "bob"})
    here = bench(identity(tmp_path, registry))
    here.resolve(image)
    asked = registry.asked("/token", "POST")[0]
    form = asked.body.decode()
    assert "grant_type=refresh_token" in form
    assert "client_id=msb-pull" in form
    assert "scope=repository%3Aacme%2Fapp%3Apull" in form
    assert "id-secret" not in here.texts()


@pytest.mark.parametrize("status", [404, 405, 401, 400])
def test_b13_identity_token_at_a_service_without_post(registry, bench, image, tmp_path, status):
    TokenService(registry, users={"bob": "id-secret"}, post_status=status)
    bench(identity(tmp_path, registry, "bob")).resolve(image)
    assert [x.method for x in registry.asked("/token")] == ["POST", "GET"]


def test_b14_a_new_refresh_token_is_used_but_not_written(registry, bench, image, tmp_path):
    tokens = TokenService(registry, users={}, refresh_tokens={"id-secret": "bob", "next-secret": "bob"})
    real = registry.endpoints["/token"]

    def answer(request):
        fault = real(request)
        return Fault(status=200, body=json.dumps(json.loads(fault.body) | {"refresh_token": "next-secret"}).encode())

    registry.endpoints["/token"] = answer
    here = bench(identity(tmp_path, registry))
    before = (tmp_path / "auth.json").read_text()
    here.resolve(image)
    tokens.revoke()
    here.resolve(image)
    assert ["next-secret" in x.body.decode() for x in registry.asked("/token", "POST")] == [False, True]
    assert (tmp_path / "auth.json").read_text() == before


def test_b15_registry_token_is_sent_as_it_is(registry, bench, image):
    tokens = TokenService(registry, users={})
    tokens.valid["direct"] = 0
    here = bench(CredentialStore(environment={"MSB_REGISTRY_TOKEN": "direct"}))
    here.resolve(image)
    assert registry.count("/token") == 0
    assert authorizations(registry)[1] == "Bearer direct"
    assert "direct" not in here.texts()


def test_b21_a_host_after_a_redirect_may_want_its_own_anonymous_token(registry, other, bench, image):
    digest = str(describe(LAYER).digest)
    other.add_blob(LAYER)
    tokens = TokenService(other)
    TokenService(registry, users={"bob": "sesame"})
    registry.always("/blobs/", Fault(redirect=f"{other.url}/v2/x/blobs/{digest}"))
    assert bench(login()).blob(image, LAYER) == LAYER
    assert tokens.made == 1
    assert authorizations(other, "/token") == [None]
    assert authorizations(other, "/blobs/")[0] is None


def test_b23_no_secret_in_events_or_errors(registry, other, bench, image):
    digest = str(describe(LAYER).digest)
    TokenService(registry, users={"bob": "pass-secret"})
    query = "X-Amz-Signature=sig-secret&sig=sig2-secret&token=tok-secret&ns=docker.io"
    registry.always("/blobs/", Fault(redirect=f"{other.url}/x/{digest}?{query}"))
    here = bench(login(password="pass-secret"), retries=1)
    with pytest.raises(Exception) as caught:
        here.blob(image, LAYER)
    told = here.texts() + str(caught.value) + str(vars(caught.value))
    assert "secret" not in told
    assert basic("bob", "pass-secret").split()[1] not in told
    assert "token-1" not in told
    assert "X-Amz-Signature=REDACTED" in told
    assert "ns=docker.io" in told


@pytest.mark.parametrize("fault", [{"cut_after": 10}, {"drop": True}, {"stall_after": 5}])
def test_b23_no_secret_in_the_traceback_of_a_broken_connection(registry, other, bench, image, fault):
    """B23: requests' errors quote the whole address; --debug shows chains of errors."""
    digest = str(describe(LAYER).digest)
    other.files[f"/x/{digest}"] = (LAYER, "application/octet-stream")
    registry.always("/blobs/", Fault(redirect=f"{other.url}/x/{digest}?sig=sig-secret"))
    other.always("/x/", Fault(**fault))
    with pytest.raises(NetworkError) as caught:
        bench(retries=1, timeout=0.3).blob(image, LAYER)
    assert "sig-secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_token_service_in_trouble_is_asked_again(registry, bench, image, status):
    TokenService(registry)
    registry.script("/token", Fault(status=status), Fault(status=status))
    here = bench()
    here.resolve(image)
    assert registry.count("/token") == 3
    assert len(here.time.waits) == 2


def test_a_token_service_in_trouble_for_good(registry, bench, image):
    TokenService(registry)
    registry.always("/token", Fault(status=503))
    with pytest.raises(NetworkError) as caught:
        bench(retries=1).resolve(image)
    assert f"token service {registry.host} answered 503" in caught.value.cause
