"""asyncpg's own tests on greenletio.pg.aio: `make test-asyncpg CHECKOUT=path`.

CHECKOUT is a copy of asyncpg's repository, 0.30 or newer, as its tag has it; nothing of it is in
ours. Its tests find greenletio.pg.aio under the name asyncpg. Each file runs in a process of its
own with servers of its own, made by the PostgreSQL programs in PGINSTALLATION, else in
`pg_config --bindir`. What does not pass is in known.toml, with reasons: any other failure fails
the run, and so does a listed test that passes.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "stdlib"))

import known
from run import (
    File,
    Runner,
    add_common_arguments,
    failures,
    judge,
    print_table,
    side_by_side,
    write_outcomes,
)

HERE = Path(__file__).parent

# Of its own source and of its own packaging.
NOT_OURS = {"test__environment", "test__sourcecode"}

# PostgreSQL's programs refuse root: they run as nobody then, who gets the folder first.
AS_NOBODY = """#!/bin/sh
next=
for word; do
    case $next$word in
        -D/* | -D=/*) chown -R nobody "${word#-D}" ;;
    esac
    next=
    [ "$word" = -D ] && next=-D
done
exec setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups %s "$@"
"""


def programs() -> Path:
    """Where PostgreSQL's programs are."""
    place = os.environ.get("PGINSTALLATION")
    if place is None:
        try:
            asked = subprocess.run(
                ["pg_config", "--bindir"], capture_output=True, text=True, check=True
            )
        except FileNotFoundError:
            raise SystemExit("no pg_config: name the folder of initdb by PGINSTALLATION") from None
        place = asked.stdout.strip()
    if not (Path(place) / "initdb").exists():
        raise SystemExit(f"{place} has no initdb: name its folder by PGINSTALLATION")
    return Path(place)


def prepare(checkout: Path, folder: Path) -> dict[str, str]:
    """The tests, where libpq takes their keys, and the programs; the environment for the tests."""
    shutil.copytree(checkout / "tests", folder / "tests")
    for key in (folder / "tests").glob("certs/*.key*.pem"):
        key.chmod(0o600)
    binaries = programs()
    if os.geteuid() == 0:
        wrappers = folder / "bin"
        wrappers.mkdir()
        for program in binaries.iterdir():
            wrapper = wrappers / program.name
            wrapper.write_text(AS_NOBODY % program)
            wrapper.chmod(0o755)
        binaries = wrappers
        folder.chmod(0o755)
    temporary = folder / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**env, "PGINSTALLATION": str(binaries), "TMPDIR": str(temporary), "HOME": str(folder)}


async def run_all(options: argparse.Namespace, folder: Path, console: Console) -> list[File]:
    runner = Runner(
        options,
        child=HERE / "suite.py",
        env=prepare(options.checkout, folder),
        package="tests",
        loop=options.loop,
        checkout=str(options.checkout),
        last=known.patterns(options.expected),
        folder=str(folder),
    )

    async def one(name: str) -> File:
        file = await runner.file(name, lambda file: None)
        file.loops = False
        return file

    return await side_by_side(options, one, console.print)


def present(checkout: Path) -> list[str]:
    names = sorted(path.stem for path in checkout.glob("tests/test_*.py"))
    return [name for name in names if name not in NOT_OURS]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make test-asyncpg", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("checkout", type=Path, help="a copy of asyncpg's repository")
    parser.add_argument("files", nargs="*", metavar="FILE", help="test_codecs ...; all of them")
    parser.add_argument(
        "--loop", default="asyncio", metavar="MODULE:CLASS", help="greenletio:EventLoop, say"
    )
    add_common_arguments(parser, only="*.test_cursor_*", jobs=2, expected=HERE / "known.toml")
    options = parser.parse_args()
    options.checkout = options.checkout.absolute()
    if not (options.checkout / "asyncpg" / "_testbase").is_dir():
        parser.error(f"{options.checkout} is no copy of asyncpg's repository")
    options.files = options.files or present(options.checkout)
    if unknown := set(options.files) - set(present(options.checkout)):
        parser.error(f"no such file in its tests: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory(prefix="apg-", ignore_cleanup_errors=True) as folder:
        try:
            files = asyncio.run(run_all(options, Path(folder), console))
        except KeyboardInterrupt:
            console.print("stopped")
            return 130
    total = print_table(console, files, {})
    console.print(f"{total['passed'] / max(total['ran'], 1):.1%} of those that ran passed")
    complete = not options.only and options.files == present(options.checkout)
    ok = judge(console, files, failures(files), options, complete)
    write_outcomes(options.json, files, total)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
