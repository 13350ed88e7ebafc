"""Runs a command as a user without any privilege, whatever folders of this machine only root may enter.

Interpreters and caches of root often lie below a 0700 home. The command runs in a mount namespace of its own in which
the named folders can be reached, and with no capability at all.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


def closed_ancestor(path: Path) -> Path | None:
    """The outermost folder on the way to ``path`` that others may not enter."""
    for folder in [*reversed(path.parents), path]:
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def as_nobody(command: list[str], reachable: list[Path]) -> list[str]:
    """The command line that runs ``command`` as uid and gid 65534 and lets it read the folders ``reachable``.

    Needs root, util-linux's unshare and setpriv. The interpreter of this test run is always reachable.
    """
    paths = {path.resolve() for path in [*reachable, Path(sys.prefix), Path(sys.base_prefix)]}
    hidden = sorted(path for path in paths if closed_ancestor(path))
    quoted = [shlex.quote(str(path)) for path in hidden]
    script = ["set -e", "aside=$(mktemp -d)", 'mount -t tmpfs -o mode=755 none "$aside"']
    for number, path in enumerate(quoted):
        script.append(f'mkdir "$aside/{number}"; mount --bind {path} "$aside/{number}"')
    for folder in sorted({str(closed_ancestor(path)) for path in hidden}):
        script.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(folder)}")
    for number, path in enumerate(quoted):
        script.append(f'mkdir -p {path}; mount --bind "$aside/{number}" {path}')
    script += [
        'umount -R "$aside"; rmdir "$aside"',
        'exec setpriv --reuid=$0 --regid=$0 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"',
    ]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(script), str(NOBODY), *command]


@contextmanager
def folder_of_nobody():
    """A temporary folder that uid 65534 owns and reaches (pytest's own lie below a 0700 folder)."""
    with tempfile.TemporaryDirectory(prefix="msb-pull-nobody-") as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)
