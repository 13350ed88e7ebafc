"""Registries that turn the nameless away without a challenge, and say only at ``/v2/`` how to log in."""

from __future__ import annotations

import pytest

from msb_pull.ground.errors import AccessError, NotFoundError
from msb_pull.source.login.credentials import CredentialStore
from tests.support.fault_auth import TokenService, basic, errors, require_basic
from tests.support.fault_registry import Fault
from tests.support.registries import LAYER, name


@pytest.fixture
def image(registry):
    registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


def login(password: str = "sesame") -> CredentialStore:
    return CredentialStore.from_text(f"bob:{password}", {})


def hide(registry, status: int, *, ping: str = "/v2/") -> None:
    """From now on who may not see something is told so without a challenge, but at ``/v2/``."""
    guard = registry.authorize

    def authorize(request):
        refusal = guard(request)
        if refusal is None or request.path == ping:
            return refusal
        return Fault(status=status, body=errors("DENIED" if status == 403 else "NAME_UNKNOWN"))

    registry.authorize = authorize


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("guard", ["basic", "token"])
def test_a_stored_login_is_used_after_asking_where_the_challenge_is(registry, bench, image, status, guard):
    if guard == "basic":
        require_basic(registry, {"bob": "sesame"})
    else:
        TokenService(registry, users={"bob": "sesame"})
    hide(registry, status)
    here = bench(login())
    assert here.blob(image, LAYER) == LAYER
    here.resolve(image)
    assert [x.path for x in registry.asked() if x.path == "/v2/"] == ["/v2/"]
    assert registry.asked("/v2/")[1].headers.get("authorization") is None


def test_a_token_is_asked_for_the_repository_though_the_challenge_names_none(registry, bench, image):
    TokenService(registry, users={"bob": "sesame"})
    hide(registry, 404)
    bench(login()).resolve(image)
    (asked,) = registry.asked("/token")
    assert asked.query["scope"] == ["repository:acme/app:pull"]


@pytest.mark.parametrize(("status", "kind"), [(403, AccessError), (404, NotFoundError)])
def test_without_a_login_nothing_more_is_asked(registry, bench, image, status, kind):
    require_basic(registry, {"bob": "sesame"})
    hide(registry, status)
    with pytest.raises(kind):
        bench().resolve(image)
    assert registry.count() == 1


def test_what_is_still_not_there_with_a_login_is_not_found(registry, bench, image):
    require_basic(registry, {"bob": "sesame"})
    hide(registry, 404)
    with pytest.raises(NotFoundError) as caught:
        bench(login()).resolve(name(registry, tag="none"))
    assert caught.value.hint is None
    assert [x.headers.get("authorization") for x in registry.asked()] == [None, None, basic("bob", "sesame")]


def test_a_wrong_password_is_refused_and_not_tried_again(registry, bench, image):
    require_basic(registry, {"bob": "sesame"})
    hide(registry, 403)
    with pytest.raises(AccessError):
        bench(login("wrong")).resolve(image)
    assert registry.count() == 3


@pytest.mark.parametrize("ping", [Fault(status=200), Fault(status=401), Fault(status=500), Fault(status=404),
                                  Fault(drop=True), Fault(redirect="http://127.0.0.1:1/v2/"),
                                  Fault(status=401, headers={"WWW-Authenticate": "Negotiate"})])  # fmt: skip
def test_a_registry_without_a_challenge_keeps_its_first_answer(registry, bench, image, ping):
    registry.endpoints["/v2/"] = lambda request: ping
    here = bench(login())
    for _ in range(2):
        with pytest.raises(NotFoundError):
            here.resolve(name(registry, tag="none"))
    assert sum(x.path == "/v2/" for x in registry.asked()) <= 2
    assert all("authorization" not in x.headers for x in registry.asked())


def test_a_login_is_not_sent_to_where_the_registry_redirects(registry, other, bench, image):
    other.endpoints["/v2/"] = lambda request: Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    registry.endpoints["/v2/"] = lambda request: Fault(status=307, headers={"Location": f"{other.url}/v2/"})
    with pytest.raises(NotFoundError):
        bench(login()).resolve(name(registry, tag="none"))
    assert all("authorization" not in x.headers for x in [*registry.asked(), *other.asked()])


def test_a_mirror_is_asked_the_same_way_with_its_own_login(registry, other, bench, tmp_path):
    registry.add_image("acme/app", "1", [LAYER])
    other.add_image("acme/app", "1", [LAYER])
    require_basic(other, {"bob": "sesame"})
    hide(other, 404)
    (tmp_path / ".docker").mkdir()
    auth = basic("bob", "sesame").removeprefix("Basic ")
    (tmp_path / ".docker/config.json").write_text('{"auths": {"%s": {"auth": "%s"}}}' % (other.host, auth))  # noqa: UP031
    store = CredentialStore(environment={"HOME": str(tmp_path)})
    bench(store, mirrors={registry.host: (other.url,)}).resolve(name(registry))
    assert registry.count() == 0
    assert other.asked("/manifests/")[-1].headers["authorization"] == basic("bob", "sesame")


def test_who_has_no_login_gets_a_token_where_the_challenge_is(registry, bench, image):
    TokenService(registry)
    hide(registry, 401)
    assert bench().blob(image, LAYER) == LAYER


def test_a_registry_that_never_challenges_is_asked_once_where_it_should(registry, bench, image):
    registry.always("/v2/", Fault(status=401, body=errors("UNAUTHORIZED", "go away")))
    with pytest.raises(AccessError) as caught:
        bench(login()).resolve(image)
    assert "go away" in caught.value.cause
    assert [x.path for x in registry.asked()] == ["/v2/acme/app/manifests/1", "/v2/"]
