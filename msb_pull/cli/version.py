"""What ``--version`` says; loads next to nothing."""

from __future__ import annotations

import os
import sys

from msb_pull.ground.version import __version__


def show_version(*, detailed: bool) -> int:
    """Writes the version to standard output; returns the exit code."""
    text = version_text(detailed=detailed)
    # Straight to the descriptor: Display would cost more than all the rest.
    try:
        os.write(1, text.encode())
    except OSError:
        return _write_patiently(text)
    return 0


def _write_patiently(text: str) -> int:
    """Writes it as every other result: to a slow reader too, or with an error that says why not."""
    from msb_pull.cli.run import Session
    from msb_pull.cli.signals import Interrupts
    from msb_pull.display.streams import Streams

    session = Session(Streams.of_process(), Interrupts(), [])
    return session.guard(lambda: session.display.result(text))


def version_text(*, detailed: bool) -> str:
    """``msb-pull 0.2.0``, and with ``detailed`` where it runs, how it is jailed and which paths it would use."""
    text = f"msb-pull {__version__}\n"
    return text + "".join(f"{name:<9} {value}\n" for name, value in _details()) if detailed else text


def _details() -> list[tuple[str, str]]:
    from msb_pull.config import settings as config
    from msb_pull.ground.errors import MsbPullError
    from msb_pull.image.platform import Platform
    from msb_pull.layer.unpack.jail import describe

    facts = [
        ("Python", f"{sys.version.split()[0]} ({sys.executable})"),
        ("Platform", str(Platform.host())),
        ("Jail", describe()),
    ]
    try:
        settings = config.load({})
    except MsbPullError as error:
        return [*facts, ("Settings", f"unusable: {error.message}")]
    return [
        *facts,
        ("Home", str(settings.home)),
        ("Layers", str(settings.layers_dir or settings.home / "layers")),
        ("Config", str(settings.config or "none")),
    ]
