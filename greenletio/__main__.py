"""``python -m greenletio``: runs programs green, as python would run them; and other commands.

Each other command is a module of its own.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

__all__ = ("main",)

# Not imported, as little else is, before it is asked for: programs that are run start at once.
COMMANDS = {
    "demo": "greenletio.demo.cli",
    "doctor": "greenletio.doctor",
    "top": "greenletio.top",
}

USAGE = """\
usage: greenletio [--all] [--loop LOOP] (SCRIPT | -m MODULE | -c CODE | -) [ARGUMENT ...]
       greenletio {commands} [OPTION ...]
       greenletio --help | --version

Synchronous and asynchronous Python in one program. The first form runs a program as python does,
in a greenlet of an event loop: what it imports is green, its threads are greenlets.

  SCRIPT        a file, a folder or a zip archive with a __main__; - reads standard input
  -m MODULE     a module or a package
  -c CODE       the program itself
  --all         make the whole process green (patch_all), not only what the program imports
  --loop LOOP   greenletio (the default), asyncio, uvloop, or MODULE:FACTORY
"""


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("greenletio")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _refuse(problem: str) -> int:
    print(f"greenletio: {problem} (greenletio --help tells more)", file=sys.stderr)
    return 2


def _piped(write: Callable[[], int | None]) -> int:
    """The exit status of `write`, whose output may go to somebody who does not read all of it."""
    try:
        status = write() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # What is buffered would be written at exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _command(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="greenletio")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    modules = {name: importlib.import_module(module) for name, module in COMMANDS.items()}
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP))
    args = parser.parse_args(argv)
    status: int = modules[args.command].run(args)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program, or one command; returns its exit status. Bad arguments: status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    patch_all, loop = False, "greenletio"
    while args:
        option = args.pop(0)
        if option == "--all":
            patch_all = True
        elif option == "--loop" and args:
            loop = args.pop(0)
        elif option.startswith("--loop="):
            loop = option.removeprefix("--loop=")
        elif option in ("-h", "--help"):
            return _piped(lambda: print(USAGE.format(commands=" | ".join(COMMANDS)), end=""))
        elif option == "--version":
            return _piped(lambda: print(f"greenletio {_version()}"))
        elif option[:2] in ("-m", "-c") and (len(option) > 2 or args):
            return _run(option[:2], option[2:] or args.pop(0), args, patch_all, loop)
        elif option == "-" or option[:1] != "-":
            if option in COMMANDS and not os.path.exists(option):
                return _piped(partial(_command, [option, *args]))
            return _run("", option, args, patch_all, loop)
        else:
            return _refuse(f"unknown or incomplete option {option}")
    return _refuse("nothing to run")


def _run(kind: str, what: str, args: list[str], patch_all: bool, loop: str) -> int:
    from greenletio._program import Program, load_loop

    try:
        new_loop = load_loop(loop)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        return _refuse(f"no event loop is called {loop}: {error}")
    try:
        if kind == "-c":
            program = Program.of_code(what)
        elif kind == "-m":
            program = Program.of_module(what)
        elif what == "-":
            program = Program.of_stdin()
        else:
            program = Program.of_path(what)
    except ImportError as error:
        print(f"{sys.executable}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        why = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {error.filename!r}: {why}", file=sys.stderr)
        return 2
    program.run(args, patch_all=patch_all, new_loop=new_loop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
