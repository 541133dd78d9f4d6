#!/usr/bin/env python3
"""Writes to a Delta table as another program would, with delta-rs.

    foreign.py TABLE_DIR optimize | delete PREDICATE | append | restore VERSIONS_BACK | vacuum

Exit: 0 done, 3 this writer refuses the table (its message is printed), 2 bad arguments.
"""
from __future__ import annotations

import sys

import _venv

_venv.ensure()

from deltalake import DeltaTable, write_deltalake  # noqa: E402
from deltalake.exceptions import DeltaError  # noqa: E402


def write(path: str, what: str, more: list[str]) -> object:
    table = DeltaTable(path)
    if what == "optimize":
        return table.optimize.compact()
    if what == "delete":
        return table.delete(more[0])
    if what == "append":
        # Rows it has already, once more.
        return write_deltalake(path, _few(path), mode="append")
    if what == "restore":
        return table.restore(table.version() - int(more[0]))
    if what == "vacuum":
        return table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    raise ValueError(what)


def _few(path: str):
    from deltalake import QueryBuilder

    return QueryBuilder().register("t", DeltaTable(path)).execute("select * from t limit 3")


def main() -> int:
    try:
        print(write(sys.argv[1], sys.argv[2], sys.argv[3:]))
    except (IndexError, ValueError):
        print(__doc__)
        return 2
    except DeltaError as error:
        print(error)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
