"""Repair: fetches layers that verify found damaged again, and swaps them in."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.errors import Cancelled, MsbPullError, NotFoundError
from msb_pull.proof import Verdict
from msb_pull.sizes import counted
from msb_pull.verify import VerifyReport, stored_images, verify_layers

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Sequence

    from msb_pull.events import Observer
    from msb_pull.plan import PullOptions
    from msb_pull.source.registry import RegistryClient
    from msb_pull.store.database import StoredImage
    from msb_pull.store.store import Store


def repair_layers(
    store: Store,
    report: VerifyReport,
    client: Callable[[], RegistryClient],
    options: PullOptions,
    *,
    observer: Observer,
    cancel: threading.Event,
) -> VerifyReport:
    """Fetches the damaged layers again from where their images came from and swaps them in; verifies them anew.

    A reader finds the old directory or the new one at every moment. What cannot be mended stands in the report's
    ``failures``, its damage stays in the report. Raises NotFoundError for an image that is gone, Cancelled.
    """
    started = time.monotonic()
    damaged = {layer.digest for layer in report.layers if layer.verdict is Verdict.DAMAGED}
    images = stored_images(store, report.images)
    failures = _fetch_damaged(store, images, damaged, client, options, observer, cancel)
    again = verify_layers(store, report.images, damaged, jobs=options.jobs, observer=observer, cancel=cancel)
    fresh = {layer.digest: layer for layer in again.layers}
    mended = {digest for digest in damaged if digest in fresh and fresh[digest].verdict is not Verdict.DAMAGED}
    layers = tuple(x if x.digest in mended else fresh.get(x.digest, x) for x in report.layers)
    seconds = report.seconds + time.monotonic() - started
    return VerifyReport(report.images, layers, tuple(sorted(mended)), seconds, tuple(failures))


def _fetch_damaged(
    store: Store,
    images: Sequence[StoredImage],
    damaged: Collection[str],
    client: Callable[[], RegistryClient],
    options: PullOptions,
    observer: Observer,
    cancel: threading.Event,
) -> list[MsbPullError]:
    """Tries one image after the other until each damaged layer is fetched; returns what went wrong."""
    failures: list[MsbPullError] = []
    left, tried = set(damaged), set[str]()
    for image in images:
        mine = left & {str(layer.key) for layer in image.layers}
        if not mine or image.source != "registry":
            continue
        tried |= mine
        try:
            _fetch_again(store, image, client(), replace(options, refetch=frozenset(mine)), observer, cancel)
            left -= mine
        except Cancelled:
            raise
        except MsbPullError as error:
            failures.append(error)
    if lost := left - tried:
        failures.append(
            NotFoundError(
                f"no image that came from a registry has {counted(len(lost), 'damaged layer')}",
                hint="pull its image again from the folder or archive with --force",
            )
        )
    return failures


def _fetch_again(
    store: Store,
    image: StoredImage,
    client: RegistryClient,
    options: PullOptions,
    observer: Observer,
    cancel: threading.Event,
) -> None:
    """A pull of some layers by the manifest and config that are recorded, whatever the tag means by now."""
    # Verifying needs none of this, and loading it takes longer than verifying a small image.
    from msb_pull.image.manifest import Manifest, parse_config, parse_document
    from msb_pull.image.platform import Platform
    from msb_pull.image.reference import Reference
    from msb_pull.source.interface import ResolvedImage
    from msb_pull.transfer import Transfer

    assert image.digest is not None and image.manifest_bytes is not None and image.config_bytes is not None
    manifest = parse_document(image.manifest_bytes, None, image.reference)
    assert isinstance(manifest, Manifest)
    reference = Reference.parse(image.reference)
    resolved = ResolvedImage(
        reference=reference,
        digest=image.digest,
        platform=image.platform or Platform.host(),
        manifest_bytes=image.manifest_bytes,
        manifest=manifest,
        config_bytes=image.config_bytes,
        config=parse_config(image.config_bytes, manifest, image.reference),
        source="registry",
    )
    with closing(client.source(reference)) as source:
        Transfer(resolved, source, store, options, observer, cancel).run(time.monotonic())
