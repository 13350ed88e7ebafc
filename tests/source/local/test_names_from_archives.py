"""A folder or an archive that calls itself like an image that is already here."""

from __future__ import annotations

from pathlib import Path

import pytest

from msb_pull import ContentError, PullOptions, Store, pull_image
from msb_pull.ground import events
from tests.support.imagebuild import DockerImage, archive_bytes, docker_archive, oci_archive, regular, simple_layout

NAME = "example.com/app:1"


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(tmp_path / "store")


def made(tmp_path: Path, kind: str, content: bytes) -> str:
    """An image that calls itself NAME."""
    tars = [archive_bytes([regular("file", content)])]
    place = tmp_path / content.decode()
    if kind == "docker-archive":
        return f"{kind}:{docker_archive(place.with_suffix('.tar'), DockerImage(tars))}"
    layout = simple_layout(place, tars, tag=NAME)
    return f"oci:{layout}" if kind == "oci" else f"{kind}:{oci_archive(layout, place.with_suffix('.tar'))}"


def pulled(image: str, store: Store, **options) -> tuple[str, list[str]]:
    """The digest, and what was warned of."""
    seen: list[events.Event] = []
    result = pull_image(image, store, PullOptions(**options), observer=seen.append)
    return str(result.digest), [x.text for x in seen if isinstance(x, events.Warned)]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_replacing_another_image_is_told_with_both_digests(tmp_path, store, kind, dry_run):
    first, warnings = pulled(made(tmp_path, kind, b"one"), store)
    assert warnings == []
    second, warnings = pulled(made(tmp_path, kind, b"two"), store, dry_run=dry_run)
    assert len(warnings) == 1
    assert all(words in warnings[0] for words in (f"its name is {NAME}", first, second))


def test_the_same_image_again_is_nothing_to_tell(tmp_path, store):
    image = made(tmp_path, "oci-archive", b"one")
    assert pulled(image, store) == (pulled(image, store)[0], [])


def test_a_name_that_the_user_gave_is_what_the_user_wants(tmp_path, store):
    pulled(made(tmp_path, "oci", b"one"), store)
    assert pulled(made(tmp_path, "oci", b"two"), store, name=NAME)[1] == []


@pytest.mark.parametrize("kind", ["oci", "docker-archive"])
def test_a_changed_layer_of_a_local_image_is_nothing_of_a_registry(tmp_path, store, kind):
    image = made(tmp_path, kind, b"one")
    path = Path(image.partition(":")[2])
    if path.is_dir():
        path = next(x for x in (path / "blobs/sha256").iterdir() if x.read_bytes().startswith(b"\x1f\x8b"))
    data = path.read_bytes()
    if kind == "oci":
        # The system in a gzip header, which says nothing of the content.
        path.write_bytes(data[:9] + b"\x55" + data[10:])
    else:
        path.write_bytes(data.replace(b"one\0", b"two\0"))
    with pytest.raises(ContentError) as caught:
        pulled(image, store)
    assert "does not match its digest" in caught.value.message
    assert caught.value.hint == "it was copied in part or changed: copy it again"
