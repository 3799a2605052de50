"""``python -m greenletio``: the command line. Each subcommand is a module of its own."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from greenletio.demo import cli as demo

__all__ = ("main",)

COMMANDS = {"demo": demo}


def _version() -> str:
    try:
        return importlib.metadata.version("greenletio")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. Bad arguments exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="greenletio",
        description="Synchronous and asynchronous Python in one program.",
    )
    parser.add_argument("--version", action="version", version=f"greenletio {_version()}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    args = parser.parse_args(argv)
    status: int = COMMANDS[args.command].run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
