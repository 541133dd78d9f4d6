"""B8 and B11: a table after an hour of random updates: what reading it takes, and how much disk it has, against the same rows freshly copied."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import data
import procs
from deltalake import DeltaTable
from results import Line, Samples

TITLE = "B8, B11: reading and space after an hour of random updates"
RATE = 5_000
EACH = 100
SMALL_BYTES = 4 << 20
QUERY = ("SELECT count(*) AS n, sum(customer_id) AS a, count(DISTINCT status) AS b, sum(amount) AS c, max(note) AS d, CAST(max(created_at) AS VARCHAR) AS e, "
         "CAST(max(updated_at) AS VARCHAR) AS f, sum(qty) AS g FROM {table}")
READERS = ("DuckDB", "delta-rs", "alluvium sql")


def run(context) -> None:
    rows, seconds = context.size(10_000_000, 1_000_000), context.size(3600, 60)
    server, db = context.server(), "b8orders"
    server.create(db)
    data.fill(server, db, "orders", rows)
    project = context.project(db)
    project.catch_up()
    updates = age(context, project, rows, seconds)
    project.catch_up()
    project.compare()
    aged = os.path.join(project.dir, "aged")
    os.rename(project.lake, aged)
    project.forget()
    project.catch_up()
    case = f"{rows:,} rows, {seconds // 60} minutes"
    sides = {"aged": aged, "fresh": project.lake}
    for side, lake in sides.items():
        context.record(case, side, 0, rows=rows, updates=updates, **weigh(os.path.join(lake, "silver", "orders")))
    for reader in READERS:
        for round_ in range(max(context.repeat, 3) + 1):
            for side, lake in sides.items():
                took = read(context, reader, lake, project.dir)
                if round_ > 0:                                         # the first warms up
                    context.record(f"{case}: {reader}", side, round_ - 1, **took)
    shutil.rmtree(aged)
    project.remove()
    server.drop(db)


def age(context, project, rows: int, seconds: float) -> int:
    """How many rows were updated."""
    process = project.start()
    try:
        project.wait_until_live(process)
        conn = project.server.connect(project.db)
        since = time.monotonic()
        n = 0
        while time.monotonic() - since < seconds:
            pause = since + n * EACH / RATE - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            ids = data.random_ids(n, EACH, rows)
            conn.execute("UPDATE orders SET qty = qty + 1, status = %s WHERE id = ANY (%s)", (f"n{n % 1000}", ids))
            n += 1
        conn.close()
        context.say(f"{n * EACH / (time.monotonic() - since):,.0f} updates/s")
        return n * EACH
    finally:
        project.stop(process)


def weigh(table: str) -> dict:
    """Bytes of a table's directory, and of the files that its newest version has."""
    live = {os.path.basename(file) for file in DeltaTable(table).file_uris()}
    found = {"live_bytes": 0, "kept_bytes": 0, "kept_small_bytes": 0, "vector_bytes": 0, "log_bytes": 0, "live_files": len(live)}
    for name in os.listdir(table):
        path = os.path.join(table, name)
        if os.path.isfile(path):
            kind = "live" if name in live else "vector" if name.endswith(".bin") else "kept"
            found[f"{kind}_bytes"] += os.path.getsize(path)
            if kind == "kept" and os.path.getsize(path) < SMALL_BYTES:
                found["kept_small_bytes"] += os.path.getsize(path)
    log = os.path.join(table, "_delta_log")
    found["log_bytes"] = sum(os.path.getsize(os.path.join(log, name)) for name in os.listdir(log))
    found["commits"] = sum(name.endswith(".json") for name in os.listdir(log))
    return found


def read(context, reader: str, lake: str, directory: str) -> dict:
    """Seconds, all and to open the table."""
    table = os.path.join(lake, "silver", "orders")
    if reader != "alluvium sql":
        argv = [sys.executable, os.path.join(os.path.dirname(__file__), "read.py"), reader, table, QUERY]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode != 0:
            raise procs.Failed(f"{reader}: {done.stderr[-2000:]}")
        took = json.loads(done.stdout)
        return {"wall_s": took["seconds"], "open_s": took["open"]}
    # A project file for the lake, which need not be that of a project that runs.
    there = os.path.join(directory, "reading")
    os.makedirs(there, exist_ok=True)
    with open(os.path.join(there, "alluvium.toml"), "w") as file:
        file.write(f'[source.bench]\ntype = "postgres"\nurl = "postgres://nobody@localhost/none"\n[lake]\npath = "{lake}"\n')
    since = time.monotonic()
    done = subprocess.run([context.alluvium, "sql", QUERY.format(table="orders")], cwd=there, capture_output=True, text=True)
    if done.returncode != 0:
        raise procs.Failed(f"{reader}: {done.stderr[-2000:]}")
    return {"wall_s": round(time.monotonic() - since, 4)}


def report(samples: Samples) -> list[Line]:
    lines = []
    cases = samples.cases()
    for case in cases[1:]:
        ratio = samples.ratio(case, "aged", "fresh", lambda r: r["wall_s"])
        aged, fresh = (samples.figure(case, side, lambda r: r["wall_s"]) for side in ("aged", "fresh"))
        lines.append(Line(case, f"aged ({aged.text(' s')}) over fresh ({fresh.text(' s')})", ratio.text("×"), "≤ 1.3×", ratio.median <= 1.3))
    space = {side: samples.of(cases[0], side)[0] for side in ("aged", "fresh")}
    fresh = space["fresh"]["live_bytes"]
    for name, what in (("live_bytes", "files of the newest version"), ("kept_bytes", "kept for versions"), ("vector_bytes", "deletion vectors"), ("log_bytes", "log")):
        lines.append(Line(cases[0], f"space: {what}, over the fresh table ({fresh / 2**20:,.0f} MiB)", f"{space['aged'][name] / fresh:.2f}×"))
    whole = sum(space["aged"][name] for name in ("live_bytes", "kept_bytes", "vector_bytes", "log_bytes"))
    # Every version of the last hour can be read, so every row that was written in it is there.
    share = fresh * space["aged"]["updates"] / space["aged"]["rows"]
    lines.append(Line(cases[0], f"space: all of it, over the fresh table and the retention's share ({share / 2**20:,.0f} MiB of rows written in the hour)",
                      f"{whole / (fresh + share):.2f}×", "≤ 2×", whole <= 2 * (fresh + share)))
    return lines
