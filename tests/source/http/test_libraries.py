"""The parts of requests, urllib3 and http.client that are used without a promise: are they still there?

Sockets that hear a cancel, and a TLS context for each host, have no place in the public interface of any of them. For
these parts the versions of requests and urllib3 have upper bounds in ``pyproject.toml``; before a bound is raised, the
tests of this folder must pass with the new version.
"""

from __future__ import annotations

import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# What is replaced or read, as ``module:Class.attribute``.
PARTS = {
    # Connections of our own
    "urllib3.connection:HTTPConnection._new_conn": "replaced: makes a socket that hears a cancel",
    "urllib3.connection:HTTPConnection._dns_host": "the name to look up, without the brackets and dots of `host`",
    "urllib3.connection:HTTPConnection.socket_options": "what is to be set on a socket that we make",
    "urllib3.contrib.socks:SOCKSConnection._new_conn": "extended: makes such a socket of what PySocks connects",
    "urllib3.connectionpool:HTTPConnectionPool.ConnectionCls": "replaced: which connections a pool makes",
    "urllib3.poolmanager:PoolManager.pool_classes_by_scheme": "replaced: which pools a manager makes",
    "urllib3.connection:HTTPConnection.is_connected": "extended: what TLS itself says does not end a connection",
    # Connections that are opened before there is a request for them
    "requests.adapters:HTTPAdapter.get_connection_with_tls_context": "the pool that a request will use",
    "urllib3.connectionpool:HTTPConnectionPool._get_conn": "a connection of that pool",
    "urllib3.connectionpool:HTTPConnectionPool._put_conn": "gives it to the pool, for the next request",
    "urllib3.connection:HTTPConnection.timeout": "set: how long opening it may take",
    # TLS
    "urllib3.connection:HTTPSConnection.is_verified": "set: no warning for each request where checking is off",
    "ssl:SSLContext.sslsocket_class": "set: TLS sockets that hear a cancel",
    "requests.adapters:HTTPAdapter.build_connection_pool_key_attributes": "extended: a TLS context for each host",
    "requests.adapters:HTTPAdapter.cert_verify": "replaced: certificates are the context's business",
    "requests.utils:DEFAULT_CA_BUNDLE_PATH": "certifi's bundle where the system has none",
    # Proxies
    "requests.adapters:HTTPAdapter.init_poolmanager": "extended: our pools for direct connections",
    "requests.adapters:HTTPAdapter.proxy_manager_for": "extended: our pools behind a proxy",
    "requests.adapters:HTTPAdapter.proxy_headers": "replaced: a proxy's login in UTF-8",
    "requests.utils:get_auth_from_url": "a proxy's login as requests reads it",
    "requests.utils:get_environ_proxies": "the proxies of a desktop's settings",
    "requests.utils:select_proxy": "the proxy for an address",
    # Answers
    "http.client:HTTPConnection.response_class": "replaced: the class that reads answers",
    "http.client:HTTPResponse._read_status": "extended: skips interim answers",
    "http.client:parse_headers": "the headers of an interim answer",
    "requests.sessions:Session.get_redirect_target": "replaced: redirects are followed by us",
    "urllib3.response:HTTPResponse.read1": "what has arrived, without waiting for more",
    "urllib3.response:HTTPResponse.chunked": "whether chunks say where the body ends",
}

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_a_library_is_still_there(part):
    module, _, path = part.partition(":")
    owner, _, name = path.rpartition(".")
    found = importlib.import_module(module)
    found = getattr(found, owner) if owner else found
    # Some attributes are only set by the instances.
    there = hasattr(found, name) or f"self.{name}" in inspect.getsource(found)
    where = f"{module.partition('.')[0]} has no {path} any more"
    assert there, (
        f"{where} ({PARTS[part]}): find another way in msb_pull/source/http, or lower the bound of its version"
    )


@pytest.mark.parametrize("library", ["requests", "urllib3"])
def test_libraries_whose_parts_are_used_have_an_upper_bound(library):
    asked = [Requirement(x) for x in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]
    [bounds] = [x.specifier for x in asked if x.name == library]
    assert any(bound.operator == "<" for bound in bounds), f"{library}: without a bound, a new version may break it"
    assert version(library) in bounds, f"{library} {version(library)} is not one that pyproject.toml allows"
