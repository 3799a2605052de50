"""Django's own tests on greenletio's backend: `make test-django CHECKOUT=path`.

CHECKOUT is a copy of Django's repository or of its sdist (`pip download --no-deps --no-binary
django django==5.2.*`), and also the Django that is tested, whichever is installed; nothing of it is
in ours. Sync code runs in greenlets, as under ASGI with the application
"greenletio.integrations.django". What does not pass is in known.toml, with reasons: any other
failure fails the run, and so does a listed test that passes. The databases are made, and dropped,
on the server in DATABASE_URL, else on an embedded one. With ``--engine
django.db.backends.postgresql``: the measure.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent))

from fix_postgres import SETTINGS, TemporaryDatabase

from greenletio._embedded import EmbeddedServer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent

#: What concerns a database, its transactions, and sync code in async code.
LABELS = (
    "aggregation annotations asgi async atomic bulk_create backends constraints custom_pk "
    "datatypes dates datetimes db_functions db_utils defer delete expressions expressions_case "
    "expressions_window fixtures handlers indexes inspectdb introspection lookup "
    "many_to_many migrations model_fields nested_foreign_keys ordering postgres_tests "
    "prefetch_related queries raw_query save_delete_hooks schema select_for_update serializers "
    "sessions_tests signals test_client test_utils timezones transaction_hooks transactions "
    "unmanaged_models update update_only_fields"
).split()


@contextlib.contextmanager
def database() -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        url = os.environ.get("DATABASE_URL")
        if url is None:
            url = stack.enter_context(EmbeddedServer(settings=SETTINGS)).url
        yield stack.enter_context(TemporaryDatabase(url)).url


def server(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }


def listed(version: str) -> list[str]:
    """The tests that known.toml says fail with this version of Django."""
    entries = tomllib.loads((HERE / "known.toml").read_text())["fails"]
    major = int(version.partition(".")[0])
    entries = [entry for entry in entries if major >= entry.get("since", 0)]
    return [test for entry in entries for test in entry["tests"]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make test-django", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("checkout", type=Path, help="a copy of Django's repository")
    parser.add_argument("labels", nargs="*", help="queries transactions ...; all that concern us")
    parser.add_argument("--engine", default="greenletio.integrations.django")
    options, rest = parser.parse_known_args()
    checkout = options.checkout.absolute()
    tests = checkout / "tests"
    if not (tests / "runtests.py").exists():
        parser.error(f"{options.checkout} is no copy of Django's repository")
    sys.path.insert(0, str(checkout))
    version: str = importlib.import_module("django").__version__
    labels = options.labels or [label for label in LABELS if (tests / label).is_dir()]
    with database() as url:
        told = {
            "engine": options.engine,
            "server": server(url),
            "database": urlsplit(url).path.strip("/"),
            "fails": listed(version),
        }
        command = [sys.executable, "runtests.py", "--settings=settings", "--parallel=1"]
        print(f"Django {version}: {' '.join(labels)}", flush=True)
        return subprocess.run(
            [*command, "--noinput", *rest, *labels],
            cwd=tests,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(HERE), str(checkout)]),
                "GREENLETIO_DJANGO_TESTS": json.dumps(told),
            },
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
