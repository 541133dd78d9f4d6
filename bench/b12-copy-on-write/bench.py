"""B12: what readers without deletion vectors cost: upserts with files written anew, against deletion vectors."""
from __future__ import annotations

import data
from results import Line, Samples

TITLE = "B12: 10 000 random upserts, copy on write against deletion vectors"
MODES = {"deletion vectors": "", "copy on write": '[tables."public.orders"]\nmerge_mode = "copy_on_write"\ncommit_every = "1s"\n'}
ROW_BYTES = 110


def run(context) -> None:
    for rows in [100_000] + ([] if context.quick else [1_000_000, 10_000_000]):
        for mode, more in MODES.items():
            db = "b12orders"
            context.server().create(db)
            data.fill(context.server(), db, "orders", rows)
            project = context.project(db)
            project.more = more
            project.catch_up()
            context.modules["b3"].upserts(context, project, rows, f"{rows:,} rows: {mode}")
            project.compare()
            project.remove()
            context.server().drop(db)


def report(samples: Samples) -> list[Line]:
    lines = []
    for case in samples.cases():
        written = samples.figure(case, "alluvium", lambda r: r["written_mib"])
        over = samples.figure(case, "alluvium", lambda r: r["written_mib"] * 2**20 / (r["rows"] * ROW_BYTES))
        lines.append(Line(case, f"written a round ({written.text(' MiB')}): amplification", over.text("×")))
        lines.append(Line(case, "own CPU-s a round", samples.figure(case, "alluvium", lambda r: r["cpu_own_s"]).text(" s")))
        lines.append(Line(case, "COMMIT returned → in silver's log", samples.figure(case, "alluvium", lambda r: r["commit_s"]).text(" s")))
    return lines
