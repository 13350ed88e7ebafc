"""Successes that are none: pages of login portals, documents cut off, pauses given as a date in seconds."""

from __future__ import annotations

import json

import pytest

from msb_pull.ground import events
from msb_pull.ground.errors import ContentError, NetworkError
from msb_pull.source.http.retry import retry_after
from tests.support.fault_auth import TokenService, errors
from tests.support.fault_registry import Fault, digest_of
from tests.support.raw import RawServer, answer, read_head
from tests.support.registries import LAYER, name

PAGE = b"\n <!DOCTYPE html>\n<html><head><title>Log in</title></head><body>Welcome to the hotel</body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}


@pytest.fixture
def image(registry):
    registry.image = registry.add_image("acme/app", "1", [LAYER])
    return name(registry)


def page_in_place_of(bench, image, action=None):
    here = bench()
    with pytest.raises(NetworkError) as caught:
        action(here) if action else here.resolve(image)
    assert "HTML" in caught.value.cause
    assert "login portal" in caught.value.hint
    assert "proxy" in caught.value.hint
    assert here.of(events.Retrying) == []
    return caught.value


# Web pages


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PAGE, HTML), (PAGE, {}), (PAGE, {"Content-Type": "application/json"}), (b"<HTML>", HTML),
        (b"\xef\xbb\xbf<html>", HTML), (b"<?xml version='1.0'?><html>", HTML), (b"<body>", HTML),
        (b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC 'x'>", {}), (b"<!-- hotel --><html>", {}), (b"<head>", {}),
    ],
)  # fmt: skip
def test_a_page_in_place_of_a_manifest(registry, bench, image, body, headers):
    registry.always("/manifests/", Fault(status=200, body=body, headers=headers))
    error = page_in_place_of(bench, image)
    assert registry.host in error.cause
    assert "manifest" in error.cause
    assert registry.count() == 1


@pytest.mark.parametrize(
    ("body", "word"), [(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"), (b"", "nothing")]
)
def test_what_else_is_no_manifest_is_named_and_asked_for_again(registry, bench, image, body, word):
    registry.script("/manifests/", Fault(status=200, body=body, headers={"Content-Type": "application/xml"}), times=3)
    with pytest.raises(NetworkError) as caught:
        bench(retries=2).resolve(image)
    assert caught.value.cause == f"{registry.host} sent {word} in place of the manifest"
    bench().resolve(image)


def test_a_page_in_place_of_a_manifest_by_its_digest(registry, bench, image):
    registry.always("/manifests/", Fault(status=200, body=PAGE, headers=HTML))
    page_in_place_of(bench, f"{registry.host}/acme/app@{registry.image.manifest_digest}")


@pytest.mark.parametrize("chunked", [True, False])
def test_a_page_in_place_of_a_config(registry, bench, image, chunked):
    registry.always("/blobs/", Fault(status=200, body=PAGE, headers=HTML, chunked=chunked))
    page_in_place_of(bench, image)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("offset", [0, 1000])
def test_a_page_in_place_of_a_layer(registry, bench, image, offset, chunked):
    registry.always("/blobs/", Fault(status=200, body=PAGE, headers=HTML, chunked=chunked, ignore_range=True))
    page_in_place_of(bench, image, lambda here: here.blob(image, LAYER, offset))


def test_a_page_in_place_of_a_token(registry, bench, image):
    TokenService(registry)
    registry.endpoints["/token"] = lambda request: Fault(body=PAGE, headers=HTML)
    error = page_in_place_of(bench, image)
    assert "token" in error.cause


def test_a_network_that_wants_a_login_says_so_by_its_status(registry, bench, image):
    registry.always("", Fault(status=511, body=PAGE, headers=HTML))
    with pytest.raises(NetworkError) as caught:
        bench().resolve(image)
    assert "511" in caught.value.cause
    assert "login portal" in caught.value.hint


def test_a_manifest_with_the_type_of_a_page_is_a_manifest(registry, bench, image):
    registry.always("/manifests/", Fault(headers=HTML))
    bench().resolve(image)


def test_a_blob_with_the_type_of_a_page_is_a_blob(registry, bench, image):
    registry.always("/blobs/", Fault(headers=HTML, chunked=True))
    assert bench().blob(image, LAYER) == LAYER


def test_a_mirror_that_sends_pages_is_left(registry, other, bench, image):
    other.add_image("acme/app", "1", [LAYER])
    other.always("", Fault(status=200, body=PAGE, headers=HTML))
    here = bench(mirrors={registry.host: (other.url,)})
    here.resolve(image)
    assert "HTML" in here.warnings[0]


# Documents that are cut off


def cut_server(registry, manifests, *headers, times=1, body=None):
    """A registry that says nowhere how long a manifest is, and cuts the first ``times`` of them."""

    def talk(connection, number):
        path = read_head(connection).split()[1]
        if "/manifests/" not in path:
            connection.sendall(answer("200 OK", registry.blobs[path.rpartition("/")[2]]))
            return
        manifests.append(path)
        whole = body or registry.image.manifest_bytes
        sent = whole[:-50] if len(manifests) <= times else whole
        connection.sendall(answer("200 OK", sent, *headers, length=False))

    return RawServer(talk)


def resolve_at(server, bench, tail=":1", **options):
    here = bench(plain_http=frozenset({server.host}), **options)
    here.resolve(f"{server.host}/acme/app{tail}")
    return here


@pytest.mark.parametrize("announced", [True, False])
def test_a_manifest_cut_by_a_close_is_asked_for_again(registry, bench, image, announced):
    headers = [f"Docker-Content-Digest: {registry.image.manifest_digest}"] if announced else []
    with cut_server(registry, seen := [], *headers) as server:
        here = resolve_at(server, bench)
    assert len(seen) == 2
    assert len(here.of(events.Retrying)) == 1


def test_so_is_one_by_its_digest(registry, bench, image):
    with cut_server(registry, seen := [], times=2) as server:
        resolve_at(server, bench, f"@{registry.image.manifest_digest}")
    assert len(seen) == 3


def test_so_is_one_that_is_shorter_than_its_length(registry, bench, image):
    registry.script("/manifests/", Fault(end_after=50), Fault(end_after=0), Fault(cut_after=50))
    bench().resolve(image)
    assert registry.count("/manifests/") == 4


def test_one_that_an_index_names_is_asked_for_again_too(registry, bench, image):
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": registry.image.manifest_digest,
        "size": len(registry.image.manifest_bytes),
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    data, seen = json.dumps(index).encode(), []

    def talk(connection, number):
        path = read_head(connection).split()[1]
        seen.append(path)
        found = data if path.endswith("/1") else registry.image.manifest_bytes
        if "/blobs/" in path:
            found = registry.blobs[path.rpartition("/")[2]]
        connection.sendall(answer("200 OK", found[:-9] if seen.count(path) == 1 else found, length=False))

    with RawServer(talk) as server:
        resolve_at(server, bench)
    assert [seen.count(x) for x in dict.fromkeys(seen)] == [2, 2, 2]


def test_a_manifest_that_is_always_cut_is_trouble_with_the_connection(registry, bench, image):
    with cut_server(registry, seen := [], times=99) as server, pytest.raises(NetworkError) as caught:
        resolve_at(server, bench, retries=2)
    assert len(seen) == 3
    assert "cut off after" in caught.value.cause


def test_a_whole_manifest_that_is_another_than_announced_is_no_cut(registry, bench, image):
    with cut_server(registry, seen := [], "Docker-Content-Digest: sha256:" + "0" * 64, times=0) as server:
        here = resolve_at(server, bench)
    assert len(seen) == 1
    assert "announces digest" in here.warnings[0]


def test_a_whole_manifest_that_does_not_match_is_refused_at_once(registry, bench, image):
    with cut_server(registry, seen := [], times=0) as server, pytest.raises(ContentError):
        resolve_at(server, bench, "@" + digest_of(b"another"))
    assert len(seen) == 1


def test_a_token_cut_by_a_close_is_asked_for_again(registry, bench, image):
    tokens = []

    def talk(connection, number):
        head = read_head(connection)
        path = head.split()[1]
        if path.startswith("/token"):
            tokens.append(path)
            whole = json.dumps({"token": "t" * 40}).encode()
            connection.sendall(answer("200 OK", whole[:20] if len(tokens) == 1 else whole, length=False))
        elif "Authorization: Bearer" not in head:
            realm = f'WWW-Authenticate: Bearer realm="http://{server.host}/token",service="s"'
            connection.sendall(answer("401 Unauthorized", b"", realm))
        else:
            known = {"manifests": registry.image.manifest_bytes}
            found = known.get(path.split("/")[-2]) or registry.blobs[path.rpartition("/")[2]]
            connection.sendall(answer("200 OK", found))

    with RawServer(talk) as server:
        resolve_at(server, bench)
    assert len(tokens) == 2


# Pauses


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1800000030", 30), ("1800000000", 0), ("1799999000", 0), ("86400", 86400), ("999999999", 999999999)],
)
def test_a_unix_time_is_the_moment_to_come_back(value, seconds):
    assert retry_after(value, NOW) == seconds


def test_a_unix_time_is_waited_for(registry, bench, image):
    here = bench()
    at = int(here.time.clock().now()) + 20
    registry.script("/manifests/", Fault(status=429, headers={"Retry-After": str(at)}, body=errors("TOOMANYREQUESTS")))
    here.resolve(image)
    assert sum(here.time.waits) == pytest.approx(20)


def test_a_unix_time_that_is_far_away_is_told_as_it_is(registry, bench, image):
    here = bench()
    at = int(here.time.clock().now()) + 7200
    registry.always("/manifests/", Fault(status=429, headers={"Retry-After": str(at)}))
    with pytest.raises(NetworkError) as caught:
        here.resolve(image)
    assert "asks to come back at 2027-01-15 10:00:00 UTC" in caught.value.cause
