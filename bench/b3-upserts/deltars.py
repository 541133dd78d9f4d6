"""delta-rs: MERGE of 10 000 rows into a plain copy of a table, some rounds. Prints one JSON line a round.

    deltars.py <silver table> <scratch directory> <rows> <rounds> <step>
"""
import glob
import json
import os
import resource
import sys
import time

import duckdb
import duckdb_extension_delta
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

BATCH = 10_000


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    silver, target, rows, rounds, step = sys.argv[1], sys.argv[2], *(int(n) for n in sys.argv[3:6])
    duck = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    extension, = glob.glob(os.path.join(os.path.dirname(duckdb_extension_delta.__file__), "extensions", "*", "delta.duckdb_extension"))
    duck.execute(f"LOAD '{extension}'")
    write_deltalake(target, duck.execute(f"SELECT * FROM delta_scan('{silver}')").to_arrow_reader(1_000_000))
    schema = pa.schema(DeltaTable(target).schema().to_arrow())
    for round_ in range(rounds):
        ids = [1 + (round_ * BATCH + k) * step % rows for k in range(BATCH)]
        wanted = duck.execute(f"SELECT * FROM delta_scan('{silver}') WHERE id IN (SELECT unnest(?::bigint[]))", [ids]).to_arrow_table()
        changed = wanted.set_column(wanted.schema.get_field_index("status"), "status", pa.array(["merged"] * len(wanted))).cast(schema)
        before, since = cpu(), time.monotonic()
        metrics = (DeltaTable(target).merge(changed, "t.id = s.id", source_alias="s", target_alias="t")
                   .when_matched_update_all().when_not_matched_insert_all().execute())
        print(json.dumps({"wall_s": round(time.monotonic() - since, 3), "cpu_own_s": round(cpu() - before, 3), "rows": BATCH,
                          "updated": metrics["num_target_rows_updated"], "copied": metrics["num_target_rows_copied"]}), flush=True)


main()
