#!/bin/sh
# Runs the driver's tests on a build with the libpq of the embedded PostgreSQL. The arguments are
# pytest's.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
python=$root/.venv/bin/python
site=$(sh scripts/build-libpq.sh "$python")

# A folder without a greenletio/ of its own: there Python finds the one that was just built, before
# the usual build.
mkdir -p build/libpq/run
cd build/libpq/run
ln -sfn "$root/tests" tests # so that paths among the arguments hold here, too
export PYTHONPATH=$site PYTHONSAFEPATH=1
"$python" -c 'from greenletio import _pg; print(_pg.__file__, _pg.libpq_version())'
exec "$python" -m pytest --rootdir "$root" -c "$root/pyproject.toml" "${@:-$root/tests/pg}"
