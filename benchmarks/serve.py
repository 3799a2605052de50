"""A server of benchmarks.apps: run by path, with the module of the server and its arguments.

As in worker.py the checkout is the last place that is searched for imports: what is measured is
what the environment has installed.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
