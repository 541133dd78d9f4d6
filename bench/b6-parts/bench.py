"""B6: the pure parts on one core, against memory bandwidth and the bare Parquet encoder."""
from __future__ import annotations

import json
import os

import data
import procs
from results import Figure, Line, Samples

TITLE = "B6: the pure parts, on one core"
CASE = "orders"
PARTS = (
    ("pgoutput_decode_rows", "pgoutput → Arrow", "M rows/s", 1e6), ("pgoutput_binary_decode_rows", "pgoutput with binary tuples → Arrow", "M rows/s", 1e6),
    ("copy_decode_rows", "binary COPY → Arrow", "M rows/s", 1e6),
    ("plan_insert_changes", "merge planning: inserts", "M changes/s", 1e6),
    ("plan_update_changes", "merge planning: updates", "M changes/s", 1e6), ("index_insert_keys", "key index: new keys", "M/s", 1e6),
    ("index_update_keys", "key index: keys moved", "M/s", 1e6), ("index_lookup_keys", "key index: lookups", "M/s", 1e6),
    ("deletion_vector_rows", "deletion vector of 100 k random rows", "M rows/s", 1e6), ("encode_rows", "Parquet encode with statistics", "M rows/s", 1e6),
    ("bare_encode_rows", "bare Parquet encode (arrow-rs, zstd 1)", "M rows/s", 1e6), ("memory_copy_bytes", "memory copy", "GB/s", 1e9),
)


def run(context) -> None:
    rows = context.size(1_000_000, 300_000)
    server, db = context.server(), "b6orders"
    server.create(db, data.ORDERS, "CREATE PUBLICATION bench FOR TABLE orders", "SELECT pg_create_logical_replication_slot('b6', 'pgoutput')")
    data.insert(server, db, "orders", 1, rows, 1000)
    scratch = os.path.join(context.dir, "parts")
    os.makedirs(scratch, exist_ok=True)
    out = os.path.join(scratch, "parts.json")
    argv = [context.harness, "parts", "--url", server.url(db), "--table", "orders", "--slot", "b6", "--publication", "bench", "--scratch", scratch]
    with open(out, "wb") as file:
        measured = procs.run(argv, [server.postmaster], stdout=file, log=os.path.join(scratch, "parts.log"))
    context.record(CASE, "parts", 0, rows=rows, **measured, parts=json.load(open(out)))
    server.drop(db)


def report(samples: Samples) -> list[Line]:
    found = samples.records[0]["parts"]
    lines = []
    for name, what, unit, scale in PARTS:
        if name not in found:                                          # of an earlier run
            continue
        figure = Figure([v / scale for v in found[name]])
        decodes = name in ("pgoutput_decode_rows", "copy_decode_rows")
        lines.append(Line("8 columns", what, figure.text(f" {unit}"), "≥ 2 M rows/s" if decodes else "", figure.median >= 2 if decodes else None))
    encode = Figure(found["encode_rows"]).median / Figure(found["bare_encode_rows"]).median
    lines.append(Line("8 columns", "our encode over the bare one", f"{encode:.2f}×", "≥ 0.9×", encode >= 0.9))
    lines.append(Line("8 columns", "key index, bytes a key (2 M keys)", f"{found['index_bytes'] / 2e6:.1f}"))
    return lines
