#!/usr/bin/env python3
"""Follows a Delta table's change data feed version by version, with delta-rs, and compares what it leads to with the table.

    feed.py TABLE_DIR KEY [--from VERSION]

Prints how many changes there were of each kind. Exit: 0 they lead to the table as it is, 1 they do not (the first differences are printed), 2 bad arguments.
"""
from __future__ import annotations

import argparse
import collections
import json
import sys

import _venv

_venv.ensure()

import duckdb  # noqa: E402
from deltalake import DeltaTable, QueryBuilder  # noqa: E402


def rows_of(reader: object, key: str) -> dict:
    found = duckdb.sql("SELECT * FROM reader")                             # DuckDB finds it by its name
    names = [column[0] for column in found.description]
    return {row[names.index(key)]: dict(zip(names, row)) for row in found.fetchall()}


def snapshot(path: str, version: int, key: str) -> dict:
    return rows_of(QueryBuilder().register("t", DeltaTable(path, version=version)).execute("SELECT * FROM t").read_all(), key)


def changes(path: str, version: int) -> list[dict]:
    feed = DeltaTable(path).load_cdf(starting_version=version, ending_version=version)
    read = feed.read_all() if hasattr(feed, "read_all") else feed  # noqa: F841
    found = duckdb.sql("SELECT * FROM read")
    names = [column[0] for column in found.description]
    return [dict(zip(names, row)) for row in found.fetchall()]


def short(row: dict | None) -> str:
    return "absent" if row is None else ", ".join(f"{name} {str(value)[:20]}" for name, value in row.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("key")
    parser.add_argument("--from", dest="start", type=int, default=1)
    args = parser.parse_args()
    last = DeltaTable(args.table).version()
    rows, kinds = snapshot(args.table, args.start, args.key), collections.Counter()
    told_of = collections.defaultdict(list)                                   # what each version said of a row
    for version in range(args.start + 1, last + 1):
        of_version = changes(args.table, version)
        for change in of_version:
            kinds[change["_change_type"]] += 1
            told_of[change[args.key]].append(f"{version} {change['_change_type']}")
            if change["_change_type"] in ("delete", "update_preimage"):
                before = rows.pop(change[args.key], None)
                told = {name: value for name, value in change.items() if not name.startswith("_c")}
                if before != told:
                    print(f"version {version}: {change['_change_type']} of {short(told)}, which was {short(before)}; {told_of[change[args.key]]}")
                    return 1
        for change in of_version:
            if change["_change_type"] in ("insert", "update_postimage"):
                rows[change[args.key]] = {name: value for name, value in change.items() if not name.startswith("_c")}
    print(json.dumps(kinds))
    there = snapshot(args.table, last, args.key)
    for key in sorted(set(rows) | set(there), key=str):
        if rows.get(key) != there.get(key):
            print(f"{key}: the feed leads to {short(rows.get(key))}, the table has {short(there.get(key))}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
