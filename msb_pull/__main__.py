"""The program's door: what must answer at once is answered here, before anything heavy is loaded."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the program with the words of the command line; returns its exit code."""
    argv = sys.argv[1:]
    if argv[:1] == ["__complete"]:
        from msb_pull.cli_complete import complete

        return complete(argv[1:])
    if argv and set(argv) <= {"-V", "--version", "-v", "-vv", "--verbose"} and {"-V", "--version"} & set(argv):
        from msb_pull.cli_version import show_version

        return show_version(detailed=len(argv) > 1)
    from msb_pull.cli import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
