"""B7: start-up of a table that has rows: from its saved index, without one, and after kill -9 in the middle of work."""
from __future__ import annotations

import json
import os
import shutil
import signal
import time

import data
import procs
from results import Line, Samples

TITLE = "B7: start-up, clean and after kill -9, against a bare read of the key column"
REBUILD = 1.5
SAVED_S = 2


def run(context) -> None:
    sizes = [context.size(10_000_000, 1_000_000)] + ([] if context.quick else [50_000_000])
    for rows in sizes:
        case, db = f"{rows / 1e6:g}M rows", "b7orders"
        server = context.server()
        server.create(db)
        data.fill(server, db, "orders", rows)
        project = context.project(db)
        project.catch_up()
        data.update(server, db, rows, 50_000)
        project.catch_up()
        for round_ in range(context.repeat):
            context.record(case, "clean", round_, rows=rows, **project.start_up())
            shutil.rmtree(os.path.join(project.dir, ".alluvium", "index"), ignore_errors=True)
            context.record(case, "rebuilt", round_, rows=rows, **project.start_up())
            crash(project, rows, round_)
            context.record(case, "killed", round_, rows=rows, **project.start_up())
            context.record(case, "read-keys", round_, rows=rows, **read_keys(context, project))
        project.compare()
        project.remove()
        server.drop(db)
    server = context.server()
    server.create("b7empty", data.ORDERS)
    project = context.project("b7empty")
    project.catch_up()
    for round_ in range(context.repeat):
        context.record("empty table", "clean", round_, rows=0, **project.start_up())
    project.compare()
    project.remove()
    server.drop("b7empty")


def crash(project, rows: int, round_: int) -> None:
    """Killed while it takes in changes."""
    process = project.start()
    try:
        project.wait_until_live(process)
        data.update(project.server, project.db, rows, 5_000 + 1_000 * round_)
        time.sleep(0.05)
    finally:
        project.stop(process, signal.SIGKILL)


def read_keys(context, project) -> dict:
    out = os.path.join(project.dir, "keys.json")
    with open(out, "wb") as file:
        measured = procs.run([context.harness, "read-keys", "--table", os.path.join(project.lake, "silver", "orders"), "--column", "id"], [], stdout=file,
                             log=os.path.join(project.dir, "keys.log"))
    return {**measured, "reader": json.load(open(out))}


def report(samples: Samples) -> list[Line]:
    empty = samples.figure("empty table", "clean", lambda r: r["streams_s"])
    lines = [Line("empty table", "start until the stream begins", empty.text(" s"))]
    for case in samples.cases():
        if case == "empty table":
            continue
        keys = samples.figure(case, "read-keys", lambda r: r["wall_s"])
        lines.append(Line(case, "bare read of the key column", f"{keys.text(' s')}, {samples.figure(case, 'read-keys', lambda r: r['cpu_own_s']).text(' CPU-s')}"))
        for side, what in (("clean", "clean start, the index was saved"), ("rebuilt", "start without a saved index: it is rebuilt"),
                           ("killed", "start after kill -9")):
            streams = samples.figure(case, side, lambda r: r["streams_s"])
            goal = side == "clean"
            lines.append(Line(case, f"{what}: until the stream begins", streams.text(" s"), f"≤ {SAVED_S} s" if goal else "", streams.median <= SAVED_S if goal else None))
            lines.append(Line(case, f"{what}: start to end, the index saved again where it changed",
                              f"{samples.figure(case, side, lambda r: r['wall_s']).text(' s')}, {samples.figure(case, side, lambda r: r['cpu_own_s']).text(' CPU-s')}"))
        over = samples.ratio(case, "rebuilt", "read-keys", lambda r: max(r["streams_s"] - empty.median, 1e-3) if r["side"] == "rebuilt" else r["wall_s"])
        lines.append(Line(case, "rebuild without the fixed part, over the bare read", over.text("×"), f"≤ {REBUILD}×", over.median <= REBUILD))
    return lines
