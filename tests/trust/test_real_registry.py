"""Signatures at docker-registry, which makes no lists of referrers: under their tag, and in the list that stands in."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import requests

from msb_pull import Platform, PullOptions, SignatureError, SignatureRule, Store, pull_image
from tests.conftest import need
from tests.support.fault_registry import FaultRegistry
from tests.support.home import sample
from tests.support.servers import PROGRAM, RealRegistry
from tests.support.signing import Signer, bundle, refer, sign

REPOSITORY = "acme/app"


def push(source: FaultRegistry, target: RealRegistry) -> None:
    """Everything that an imitation holds, the way a client pushes it."""
    base = f"{target.url}/v2/{REPOSITORY}"
    with requests.Session() as session:
        for digest, data in source.blobs.items():
            place = session.post(f"{base}/blobs/uploads/").headers["Location"]
            joint = "&" if "?" in place else "?"
            assert session.put(f"{place}{joint}digest={quote(digest)}", data=data).status_code == 201
        for (_, name), (data, kind) in source.manifests.items():
            sent = session.put(f"{base}/manifests/{name}", data=data, headers={"Content-Type": kind or ""})
            assert sent.status_code == 201, sent.text


@pytest.mark.parametrize("way", ["tag", "bundle"])
def test_signed_and_not(way, tmp_path):
    need(PROGRAM)
    key, store = Signer.make("p256"), Store.open(tmp_path / "home")
    rule = SignatureRule(images="*", keys=(tmp_path / "key.pub",))
    key.write(rule.keys[0])
    with RealRegistry(tmp_path / "storage") as registry, FaultRegistry() as maker:
        _, image = sample(maker)
        push(maker, registry)

        def pull() -> bool:
            wishes = PullOptions(platform=Platform.parse("linux/amd64"), signatures=(rule,))
            return pull_image(f"{registry.host}/{REPOSITORY}:1", store, wishes).changed

        with pytest.raises(SignatureError) as refused:
            pull()
        assert "there is no signature" in (refused.value.cause or "")
        if way == "tag":
            sign(maker, REPOSITORY, image.manifest_digest, key, name=f"{registry.host}/{REPOSITORY}")
        else:
            refer(maker, REPOSITORY, image.manifest_digest, bundle(key, image.manifest_digest), api=False)
        push(maker, registry)
        assert pull()
        log = registry.log()
        assert not pull()
        assert registry.log() == log
