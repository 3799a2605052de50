"""Writes pg/_sqlstates.py from PostgreSQL's own table: scripts/make_sqlstates.py errcodes.txt

The table is in the server's source (src/backend/utils/errcodes.txt) and in Debian's package of the
server (/usr/share/postgresql/VERSION/errcodes.txt). It is not needed to build or run anything.
"""

import re
import sys
from pathlib import Path

# The DB-API class of a SQLSTATE, by its first two characters; anything else is a DatabaseError.
FAMILIES = {
    "OperationalError": "08 27 28 40 53 54 55 57 58 HV F0",
    "NotSupportedError": "0A",
    "DataError": "22",
    "IntegrityError": "23",
    "InternalError": "24 25 2B 2D 2F 38 39 3B P0 XX 72",
    "ProgrammingError": "20 21 26 34 3D 3F 42 44",
}
# Where another class has the name already.
RENAMED = {"XX000": "InternalServerError"}

HEAD = '''"""A class for every SQLSTATE: made by scripts/make_sqlstates.py, not by hand."""

from __future__ import annotations

from greenletio.pg._errors import (
    DatabaseError,
    DataError,
    IntegrityError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

'''


def main(table: Path) -> None:
    family = {code: name for name, codes in FAMILIES.items() for code in codes.split()}
    base = {}
    classes: dict[str, tuple[str, str]] = {}
    for line in table.read_text().splitlines():
        found = re.match(r"(\w{5})\s+E\s+\w+\s+(\w+)", line)
        if found is None:
            continue
        state, condition = found.groups()
        name = RENAMED.get(state) or "".join(map(str.capitalize, condition.split("_")))
        if name in classes:  # the SQL standard has some twice
            name += "Ext"
        parent = base.get(state[:2]) or family.get(state[:2], "DatabaseError")
        if state.endswith("000"):
            base[state[:2]] = name
        classes[name] = (state, parent)
    text = HEAD
    text += f"__all__ = (\n{''.join(f'    {name!r},' + chr(10) for name in sorted(classes))})\n"
    for name, (state, parent) in classes.items():
        text += f"\n\nclass {name}({parent}):\n    sqlstate = {state!r}\n"
    out = Path(__file__).parents[1] / "pg" / "_sqlstates.py"
    out.write_text(text.replace("'", '"'))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
