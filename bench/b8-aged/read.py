"""Reads a whole Delta table once, by DuckDB or delta-rs, and prints what the query took: read.py READER TABLE QUERY."""
from __future__ import annotations

import glob
import json
import os
import sys
import time

reader, table, query = sys.argv[1:]
if reader == "DuckDB":
    import duckdb
    import duckdb_extension_delta

    con = duckdb.connect(config={"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"})
    extension = os.path.join(os.path.dirname(duckdb_extension_delta.__file__), "extensions", "*", "delta.duckdb_extension")
    con.execute(f"LOAD '{glob.glob(extension)[0]}'")
    since = opened = time.monotonic()
    rows = con.execute(query.format(table=f"delta_scan('{table}')")).fetchone()[0]
else:
    from deltalake import DeltaTable, QueryBuilder

    since = time.monotonic()
    delta = DeltaTable(table)
    opened = time.monotonic()
    rows = QueryBuilder().register("orders", delta).execute(query.format(table="orders")).read_all().num_rows
print(json.dumps({"seconds": round(time.monotonic() - since, 4), "open": round(opened - since, 4), "rows": rows}))
