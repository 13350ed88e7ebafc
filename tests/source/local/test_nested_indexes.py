"""Indexes in indexes that have no platform: they are looked into, within limits."""

from __future__ import annotations

import pytest

from msb_pull.ground.errors import ContentError, NotFoundError
from msb_pull.image.platform import Platform
from tests.support.fault_registry import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.support.registries import name

ARMV7 = Platform("linux", "arm", "v7")


def entry(registry, digest, platform=None, media_type=OCI_MANIFEST, **more):
    """An entry of an index, by default one that does not say its platform."""
    words = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False)) if platform else None
    size = len(registry.manifests["acme/app", digest][0])
    return {"mediaType": media_type, "digest": digest, "size": size, **({"platform": words} if words else {}), **more}


def image(registry, platform):
    parts = platform.split("/")
    whole = (parts[0], parts[1], parts[2] if len(parts) > 2 else None)
    return registry.add_image("acme/app", None, [], platform=whole, config={"comment": platform}).manifest_digest


def nested(registry, *platforms):
    """An index over images that each say their platform, as an entry of another index."""
    digest = registry.add_index("acme/app", None, [entry(registry, image(registry, x), x) for x in platforms])
    return entry(registry, digest, media_type=OCI_INDEX)


def top(registry, *entries):
    registry.add_index("acme/app", "multi", entries)
    return name(registry, tag="multi")


def test_the_image_is_found_in_whichever_nested_index_has_it(registry, bench):
    reference = top(registry, nested(registry, "linux/amd64", "linux/s390x"), nested(registry, "linux/arm64"))
    for architecture in ("amd64", "s390x", "arm64"):
        found = bench().resolve(reference, Platform("linux", architecture), explicit=True)
        assert str(found.digest) == image(registry, f"linux/{architecture}")
        assert found.platform == Platform("linux", architecture)


def test_an_entry_that_says_its_platform_is_taken_without_looking_into_others(registry, bench):
    amd64 = image(registry, "linux/amd64")
    reference = top(registry, nested(registry, "linux/arm64"), entry(registry, amd64, "linux/amd64"))
    assert str(bench().resolve(reference).digest) == amd64
    assert registry.count("/manifests/") == 2


def test_the_best_variant_is_taken_wherever_it_lies(registry, bench):
    reference = top(registry, nested(registry, "linux/arm/v6"), nested(registry, "linux/arm/v7"))
    assert str(bench().resolve(reference, ARMV7).digest) == image(registry, "linux/arm/v7")


@pytest.mark.parametrize("depth", [0, 1])
def test_no_config_is_asked_for_twice(registry, bench, depth):
    entries = [entry(registry, image(registry, f"linux/{x}")) for x in ("s390x", "arm64")]
    if depth:
        digest = registry.add_index("acme/app", None, entries)
        entries = [entry(registry, digest, media_type=OCI_INDEX)]
    found = bench().resolve(top(registry, *entries), Platform("linux", "arm64"), explicit=True)
    assert found.config.architecture == "arm64"
    assert registry.count("/blobs/", "GET") == 2


def test_several_manifests_without_a_platform_are_told_apart_by_their_configs(registry, bench):
    made = {x: image(registry, f"linux/{x}") for x in ("s390x", "amd64", "arm64")}
    reference = top(registry, *(entry(registry, digest) for digest in made.values()))
    for architecture, digest in made.items():
        assert str(bench().resolve(reference, Platform("linux", architecture)).digest) == digest


def test_an_artifact_without_a_platform_is_passed_over(registry, bench):
    config = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": "sha256:" + "1" * 64, "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    chart = registry.add_manifest("acme/app", None, document)
    reference = top(registry, entry(registry, chart), entry(registry, image(registry, "linux/amd64")))
    assert str(bench().resolve(reference).digest) == image(registry, "linux/amd64")


def test_a_nested_index_that_was_not_copied_does_not_hide_the_others(registry, bench):
    lost = nested(registry, "linux/arm64")
    del registry.manifests["acme/app", lost["digest"]]
    assert bench().resolve(top(registry, lost, nested(registry, "linux/amd64"))).platform.architecture == "amd64"


def test_a_missing_platform_names_all_that_the_nested_indexes_offer(registry, bench):
    reference = top(registry, nested(registry, "linux/arm64", "windows/amd64"), nested(registry, "linux/s390x"))
    with pytest.raises(NotFoundError) as caught:
        bench().resolve(reference, Platform("linux", "riscv64"))
    assert caught.value.message == f"{reference}: no image for linux/riscv64"
    assert caught.value.cause == "the index offers linux/arm64, linux/s390x, windows/amd64"


def test_the_number_of_requests_is_bounded(registry, bench):
    entries = [nested(registry, f"linux/fake{number}") for number in range(1000)]
    with pytest.raises(ContentError, match="have no platform"):
        bench().resolve(top(registry, *entries))
    assert registry.count() <= 40


def test_indexes_that_fan_out_at_every_level_cost_no_more(registry, bench):
    level = [nested(registry, f"linux/fake{number}") for number in range(8)]
    for depth in range(3):
        digests = [
            registry.add_index("acme/app", None, [*level, nested(registry, f"linux/d{depth}n{number}")])
            for number in range(8)
        ]
        level = [entry(registry, digest, media_type=OCI_INDEX) for digest in digests]
    with pytest.raises(ContentError):
        bench().resolve(top(registry, *level))
    assert registry.count() <= 100


def test_an_index_whose_entries_repeat_the_type_of_their_config_is_pulled(registry, bench):
    digest = image(registry, "linux/amd64")
    reference = top(registry, entry(registry, digest, "linux/amd64", artifactType=OCI_CONFIG))
    assert str(bench().resolve(reference).digest) == digest
