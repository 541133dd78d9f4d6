"""B3: 10 000 random upserts a round into tables of growing size, steady state, against delta-rs MERGE."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import data
import procs
from deltalog import LogWatcher
from results import Figure, Line, Samples
from servers import lsn_number

TITLE = "B3: 10 000 random upserts, steady state, against delta-rs MERGE"
BATCH = 10_000
WARM_UP = 2
ROOMY = "8GiB"                                                         # so that the index of every size is in memory
SPARK = "Spark 4.2 + Delta 4.4 (measured apart, see the README): 22–70 CPU-s into 10M, 9.7–14.8 into 1M"


def run(context) -> None:
    sizes = [100_000, 1_000_000] if context.quick else [100_000, 1_000_000, 10_000_000]
    free = shutil.disk_usage(context.dir).free
    if not context.quick and free > 45 * 2**30:
        sizes.append(50_000_000)
    if context.smoke:
        sizes = [100_000]
    for rows in sizes:
        db = "b3orders"
        context.server().create(db)
        data.fill(context.server(), db, "orders", rows)
        project = context.project(db)
        project.catch_up()
        upserts(context, project, rows, f"{rows:,} rows")
        if rows >= 10_000_000:
            default, project.memory = project.memory, ROOMY
            upserts(context, project, rows, f"{rows:,} rows, memory = {ROOMY}")
            project.memory = default
        project.compare()
        if rows in (1_000_000, 10_000_000) or context.smoke:
            merges(context, project, rows)
        project.remove()
        context.server().drop(db)


def upserts(context, project, rows: int, case: str) -> None:
    """`alluvium run` stays up; each round is one transaction."""
    server = context.server()
    process = project.start()
    try:
        project.wait_until_live(process)
        watcher = LogWatcher(os.path.join(project.lake, "silver", "orders"), "/public.orders")
        watcher.start()
        for round_ in range(WARM_UP + max(8, context.repeat)):
            time.sleep(0.3)                                            # what the round before left to do is done
            before, written = procs.cpu_of(process.pid), procs.written_bytes(process.pid)
            with server.connect(project.db) as conn, procs.Clock([server.postmaster]) as out:
                start = lsn_number(str(conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]))
                conn.execute(f"UPDATE orders SET status = 'round {round_}', qty = qty + 1 WHERE id IN "
                             f"(SELECT 1 + ({round_ * BATCH}::bigint + k) * {data.STEP} % {rows} FROM generate_series(0, {BATCH - 1}) k)")
                committed = time.monotonic()
                visible = watcher.wait_for(start, 120)
                time.sleep(0.2)                                        # bronze's and silver's commits both
                out["cpu_own_s"] = round(procs.cpu_of(process.pid) - before, 3)
            out.update(rows=BATCH, commit_s=round(visible - committed, 3), written_mib=round((procs.written_bytes(process.pid) - written) / 2**20, 2),
                       anon_mib=round(procs.memory_of(process.pid).get("RssAnon", 0), 1))
            if round_ >= WARM_UP:
                context.record(case, "alluvium", round_ - WARM_UP, **out)
        watcher.finish()
    finally:
        project.stop(process)
    project.catch_up()


def merges(context, project, rows: int) -> None:
    target = os.path.join(project.dir, "deltars")
    argv = [sys.executable, os.path.join(os.path.dirname(__file__), "deltars.py"), os.path.join(project.lake, "silver", "orders"), target,
            str(rows), str(context.repeat), str(data.STEP)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise procs.Failed(f"delta-rs: {done.stderr[-2000:]}")
    for round_, line in enumerate(done.stdout.splitlines()):
        context.record(f"{rows:,} rows", "delta-rs", round_, **json.loads(line))
    shutil.rmtree(target, ignore_errors=True)


def report(samples: Samples) -> list[Line]:
    lines, costs = [], {}
    for case in samples.cases():
        own = samples.figure(case, "alluvium", lambda r: r["cpu_own_s"])
        costs[case] = own.median
        lines.append(Line(case, "own CPU-s a round of 10 000", own.text(" s")))
        lines.append(Line(case, "COMMIT returned → in silver's log", samples.figure(case, "alluvium", lambda r: r["commit_s"]).text(" s")))
        lines.append(Line(case, "written a round, bronze and silver", samples.figure(case, "alluvium", lambda r: r["written_mib"]).text(" MiB")))
        theirs = samples.figure(case, "delta-rs", lambda r: r["cpu_own_s"])
        if theirs.values:
            ratio = Figure([t / max(own.median, 0.001) for t in theirs.values])
            goal = ("≥ 100×", ratio.median >= 100) if case == "10,000,000 rows" else ("", None)
            lines.append(Line(case, f"delta-rs MERGE ({theirs.text(' CPU-s')}) over ours", ratio.text("×"), *goal))
    first, *others = costs
    for other in others:
        grown = costs[other] / max(costs[first], 0.001)
        lines.append(Line(f"{other} over {first}", "own CPU", f"{grown:.2f}×", *(("≤ 1.3×", grown <= 1.3) if other.startswith("50,") else ("", None))))
    lines.append(Line("all", SPARK, ""))
    return lines
