#!/bin/sh
# Runs the tests on every Python from 3.10 to 3.14 that is found, each in a virtual environment of
# its own under .venvs/. The arguments are pytest's.
set -eu
cd "$(dirname "$0")/.."

find_python() {
    pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
    for candidate in "python3.$1" "$pyenv/3.$1."*/bin/python; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (3, $1))" 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

passed='' failed='' absent=''
for minor in 10 11 12 13 14; do
    python=$(find_python "$minor")
    if [ -z "$python" ]; then
        absent="$absent 3.$minor"
        continue
    fi
    echo "== Python 3.$minor ($python)"
    if PYTHON=$python VENV=.venvs/3.$minor scripts/bootstrap.sh test && ".venvs/3.$minor/bin/pytest" "$@"; then
        passed="$passed 3.$minor"
    else
        failed="$failed 3.$minor"
    fi
done
echo "passed:${passed:- none}; failed:${failed:- none}; not on this machine:${absent:- none}"
[ -n "$passed" ] && [ -z "$failed" ]
