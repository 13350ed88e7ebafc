"""By which media types a manifest, and an index entry that repeats them, is told to be an image."""

from __future__ import annotations

import json

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.image.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    check_image,
    parse_document,
)
from tests.support.documents import CONFIG, ENTRY, INDEX, MANIFEST, WHAT, parse, without

ODD = ["application/octet-stream", "application/json", "text/html"]


def index(**more) -> Index:
    parsed = parse(INDEX | {"manifests": [ENTRY | more]})
    assert isinstance(parsed, Index)
    return parsed


@pytest.mark.parametrize("kind", [OCI_CONFIG, DOCKER_CONFIG])
@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_entry_whose_artifact_type_is_that_of_an_images_config_is_an_image(media_type, kind):
    """go-containerregistry, and with it crane, ko and apko, repeats the config's type there."""
    assert len(index(mediaType=media_type, artifactType=kind).images()) == 1


@pytest.mark.parametrize("kind", ["application/vnd.dev.sigstore.bundle+json", "application/spdx+json", OCI_INDEX])
def test_an_entry_of_any_other_artifact_type_is_passed_over(kind):
    assert index(artifactType=kind).images() == []


@pytest.mark.parametrize("kind", ODD)
def test_an_entry_repeats_the_odd_config_type_of_a_docker_manifest(kind):
    assert len(index(mediaType=DOCKER_MANIFEST, artifactType=kind).images()) == 1
    assert index(mediaType=OCI_MANIFEST, artifactType=kind).images() == []


@pytest.mark.parametrize("kind", [OCI_CONFIG, DOCKER_CONFIG])
def test_a_manifest_that_names_its_configs_type_as_its_artifact_type_is_an_image(kind):
    check_image(parse(MANIFEST | {"artifactType": kind}), WHAT)


@pytest.mark.parametrize("kind", [*ODD, None])
def test_a_docker_manifest_with_a_config_of_an_odd_type_is_an_image(kind):
    config = CONFIG | {"mediaType": kind} if kind else without(CONFIG, "mediaType")
    check_image(parse(MANIFEST | {"mediaType": DOCKER_MANIFEST, "config": config}), WHAT)


@pytest.mark.parametrize("kind", ODD)
def test_an_oci_manifest_with_a_config_of_an_odd_type_is_an_artifact(kind):
    with pytest.raises(ContentError, match="artifact of type"):
        check_image(parse(MANIFEST | {"config": CONFIG | {"mediaType": kind}}), WHAT)


def test_a_docker_manifest_may_still_be_that_of_an_artifact():
    config = CONFIG | {"mediaType": "application/vnd.docker.plugin.v1+json"}
    with pytest.raises(ContentError, match="plugin"):
        check_image(parse(MANIFEST | {"mediaType": DOCKER_MANIFEST, "config": config}), WHAT)


def test_the_registrys_word_for_a_manifest_without_a_type_counts():
    config = CONFIG | {"mediaType": "application/octet-stream"}
    data = b'{"schemaVersion": 2, "config": %s, "layers": []}' % json.dumps(config).encode()
    check_image(parse_document(data, DOCKER_MANIFEST, WHAT), WHAT)
