"""From an argument of the command line to the source it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from msb_pull.ground.running import Job
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.interface import Source
    from msb_pull.source.registry.early import Expect
    from msb_pull.source.registry.registry import RegistryClient
    from msb_pull.work.pull.plan import Pin


def open_source(
    argument: ImageArgument,
    client: Callable[[], RegistryClient],
    *,
    name: str | None,
    scratch: Path,
    job: Job,
    pin: Pin | None = None,
    expect: Expect | None = None,
) -> Source:
    """The source an argument names; nothing is opened or asked before it is used.

    ``name`` is what to record a local image under, ``pin`` what to take of one from a registry, and ``expect`` says
    what to ask for beside its config. ``scratch`` is a folder on a disk with room, for archives that are compressed or
    come from standard input; what is put there has no name and goes with the source. Raises UsageError.
    """
    if argument.reference is not None:
        if name is not None:
            raise UsageError("--as is for local sources", hint="an image from a registry keeps its reference")
        if pin is None:
            return client().source(argument.reference, expect=expect)
        return client().source(argument.reference, pin.target, pin.stated)
    if argument.transport == "oci":
        from msb_pull.source.local.oci import open_layout

        return open_layout(argument, name, job)
    from msb_pull.source.local.archive import open_archive

    return open_archive(argument, name, scratch, job)
