"""Runs one module of asyncpg's tests in this process, on greenletio.pg.aio; run.py is the parent.

It is asked and answers as ../stdlib/child.py does.
"""

import asyncio
import atexit
import os
import sys
import unittest
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TextIO

sys.path.append(str(Path(__file__).parent.parent / "stdlib"))

import child
import names
import swap


def run(request: dict[str, Any], replies: TextIO) -> None:
    tell = child.teller(replies)
    os.umask(0o077)  # libpq wants keys that are nobody else's, and tests copy theirs
    package = request["package"]
    names.install(Path(request["checkout"]))
    sys.path.insert(0, request["folder"])  # where its tests are
    if request["loop"] != "asyncio":
        asyncio.new_event_loop = swap.load(request["loop"])
    found = child.cases(unittest.TestLoader().loadTestsFromName(f"{package}.{request['module']}"))
    wanted = {child.short_id(test, package): test for test in found}
    wanted = {
        name: test
        for name, test in wanted.items()
        if any(fnmatchcase(name, pattern) for pattern in request["only"])
    }
    last = request["last"]  # what is known to fail may leave things behind for the others
    wanted = dict(
        sorted(wanted.items(), key=lambda test: any(fnmatchcase(test[0], each) for each in last))
    )
    tell(tests=list(wanted), repeats=0)
    for name in request["done"]:
        wanted.pop(name, None)
    result = child.Result(tell, package, request["limit"], [], swap.Counts())
    unittest.TestSuite(wanted.values()).run(result)
    atexit._run_exitfuncs()  # ends its servers: the parent will not wait for that
    tell(complete=True)


if __name__ == "__main__":
    child.main(run)
