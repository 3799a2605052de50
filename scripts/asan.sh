#!/bin/sh
# Runs the tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer (gcc).
# The arguments are pytest's; or `--soak`, and those of tests/loop/soak.py; or `--fuzz`, and those of
# tests/pg/fuzz.py.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)

export GREENLETIO_SANITIZE=1 VENV=.venvs/asan
scripts/bootstrap.sh test

library() {
    path=$("${CC:-gcc}" -print-file-name="$1")
    case $path in
    /*) echo "$path" ;;
    *) echo "greenletio: $1 is missing: apt-get install gcc (it comes with it)" >&2 && exit 1 ;;
    esac
}

# The interpreter is not instrumented, so the runtime has to be there first; libstdc++ with it,
# whose exceptions (greenlet is C++) the runtime intercepts when it starts, or not at all.
asan=$(library libasan.so)
stdcxx=$(library libstdc++.so.6)

# A folder without a greenletio/ of its own: there Python finds the instrumented one.
cd build/asan
ln -sfn "$root/tests" tests # so that paths among the arguments hold here, too
export LD_PRELOAD="$asan $stdcxx" PYTHONMALLOC=malloc PYTHONSAFEPATH=1
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
if [ "${1:-}" = --soak ]; then
    shift
    # What is freed is kept for a while, and would pass for growth.
    export ASAN_OPTIONS=$ASAN_OPTIONS:quarantine_size_mb=16
    exec "$root/.venvs/asan/bin/python" -X faulthandler tests/loop/soak.py "$@"
fi
if [ "${1:-}" = --fuzz ]; then
    shift
    exec "$root/.venvs/asan/bin/python" tests/pg/fuzz.py "$@"
fi
exec "$root/.venvs/asan/bin/pytest" --rootdir "$root" -c "$root/pyproject.toml" "${@:-$root/tests}"
