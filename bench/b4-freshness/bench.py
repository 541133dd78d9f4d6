"""B4: how long after COMMIT returned a change is visible: to a query inside Alluvium, in silver's Delta log, and at PostgreSQL's own subscriber."""
from __future__ import annotations

import http.client
import json
import os
import threading
import time

import data
import procs
from deltalog import LogWatcher
from results import Figure, Line, Samples
from servers import lsn_number

TITLE = "B4: freshness: COMMIT returned → visible"
TRANSACTIONS_PER_SECOND = 500
ROWS = 100_000


# The last transaction that is there: every transaction notes its number beside its other changes.
QUERY = "SELECT n FROM progress"


class Load(threading.Thread):
    """One client at a fixed pace: `each` changes a transaction, one of them its number. Late transactions are counted as they come, not dropped."""

    def __init__(self, server, db: str, each: int, seconds: float):
        super().__init__(daemon=True)
        self.conn, self.each, self.count = server.connect(db), each, int(TRANSACTIONS_PER_SECOND * seconds)
        self.committed: list[tuple[float, int]] = []                   # when COMMIT returned, end of WAL before the transaction
        self.numbered: list[tuple[float, int]] = []                    # when COMMIT returned, number of the transaction

    def run(self) -> None:
        update = "WITH p AS (UPDATE progress SET n = %s) UPDATE orders SET qty = qty + 1 WHERE id = ANY (%s)"
        end = self.end_of_wal()
        since = time.monotonic()
        for n in range(self.count):
            pause = since + n / TRANSACTIONS_PER_SECOND - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            ids = [1 + (n * self.each + k) * data.STEP % ROWS for k in range(self.each - 1)]
            self.conn.execute(update, (n, ids))
            self.committed.append((time.monotonic(), end))
            self.numbered.append((self.committed[-1][0], n))
            end = self.end_of_wal()
        self.seconds = time.monotonic() - since
        self.conn.close()

    def end_of_wal(self) -> int:
        return lsn_number(str(self.conn.execute("SELECT pg_current_wal_insert_lsn()").fetchone()[0]))


def delays(committed: list[tuple[float, int]], seen: list[tuple[float, int]], strictly: bool) -> list[float]:
    """For each transaction, from COMMIT to the first sight of a position behind its start. Both lists are in order."""
    found, at = [], 0
    for when, start in committed:
        while at < len(seen) and not (seen[at][1] > start if strictly else seen[at][1] >= start):
            at += 1
        if at == len(seen):
            raise procs.Failed("some transactions were never seen")
        found.append(max(0.0, seen[at][0] - when))
    return found


class Asker(threading.Thread):
    """Asks the running pipeline again and again, on one connection."""

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self.conn = http.client.HTTPConnection(address, timeout=60)
        self.seen: list[tuple[float, int]] = []
        self.took: list[float] = []
        self.done = threading.Event()

    def ask(self) -> int:
        self.conn.request("POST", "/api/v1/sql", QUERY, {"content-type": "text/plain"})
        answer = self.conn.getresponse()
        rows = json.loads(answer.read())
        if answer.status != 200:
            raise procs.Failed(f"the query failed: {rows}")
        return rows[0]["n"]

    def run(self) -> None:
        while not self.done.is_set():
            since = time.monotonic()
            number = self.ask()
            now = time.monotonic()
            self.took.append(now - since)
            if not self.seen or number > self.seen[-1][1]:
                self.seen.append((now, number))

    def wait_for(self, number: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.is_alive() and not (self.seen and self.seen[-1][1] >= number):
            time.sleep(0.01)
        self.done.set()
        self.join()


def percentiles(found: list[float]) -> dict:
    found = sorted(found)
    pick = lambda p: round(found[min(len(found) - 1, int(len(found) * p))] * 1000, 2)  # noqa: E731
    return {"p50_ms": pick(0.5), "p99_ms": pick(0.99), "max_ms": round(found[-1] * 1000, 2), "transactions": len(found)}


def run(context) -> None:
    seconds = context.size(300, 15)
    rounds = 1 if context.quick else min(context.repeat, 3)
    server, db = context.server(), "b4orders"
    data.fill_orders_with_progress(server, db, ROWS)
    project = context.project(db)
    project.catch_up()
    for round_ in range(rounds):
        for each in (2, 20):
            case = f"{each * TRANSACTIONS_PER_SECOND // 1000}k changes/s"
            context.record(case, "query", round_, **through_queries(project, each, seconds))
            context.record(case, "delta-log", round_, **through_alluvium(project, each, seconds))
            context.record(case, "subscriber", round_, **through_subscriber(context, db, each, seconds))
    project.catch_up()
    project.compare()
    project.remove()
    context.server("subscriber").drop("b4sub")
    server.drop(db)


def through_queries(project, each: int, seconds: float) -> dict:
    project.server.sql(project.db, "UPDATE progress SET n = -1")
    process = project.start('[serve.http]\nlisten = "127.0.0.1:0"\n')
    try:
        project.wait_until_live(process)
        time.sleep(1)
        asker = Asker(project.status()["http"]["address"])
        # What others wrote before comes first, with higher numbers.
        while asker.ask() != -1:
            time.sleep(0.1)
        load = Load(project.server, project.db, each, seconds)
        before = procs.cpu_of(process.pid)
        with procs.Clock([project.server.postmaster]) as out:
            asker.start()
            load.start()
            load.join()
            asker.wait_for(load.numbered[-1][1], 60)
            out["cpu_own_s"] = round(procs.cpu_of(process.pid) - before, 2)
        took = percentiles(asker.took)
        return {**out, **percentiles(delays(load.numbered, asker.seen, False)), "load_s": round(load.seconds, 2), "queries": len(asker.took),
                "query_p50_ms": took["p50_ms"], "query_p99_ms": took["p99_ms"]}
    finally:
        project.stop(process)


def through_alluvium(project, each: int, seconds: float) -> dict:
    process = project.start()
    try:
        project.wait_until_live(process)
        time.sleep(1)
        watcher = LogWatcher(os.path.join(project.lake, "silver", "orders"), "/public.orders")
        watcher.start()
        load = Load(project.server, project.db, each, seconds)
        before = procs.cpu_of(process.pid)
        with procs.Clock([project.server.postmaster]) as out:
            load.start()
            load.join()
            watcher.wait_for(load.committed[-1][1], 60)
            out["cpu_own_s"] = round(procs.cpu_of(process.pid) - before, 2)
        seen = watcher.finish()
        return {**out, **percentiles(delays(load.committed, seen, False)), "load_s": round(load.seconds, 2), "commits": len(seen),
                "anon_mib": round(procs.memory_of(process.pid).get("RssAnon", 0), 1)}
    finally:
        project.stop(process)


def through_subscriber(context, db: str, each: int, seconds: float) -> dict:
    server, peer = context.server(), context.server("subscriber")
    server.clone_into(db, peer, "b4sub")
    peer.sql("b4sub", f"CREATE SUBSCRIPTION b4 CONNECTION 'host=127.0.0.1 port={server.pg.port} user={server.pg.user} dbname={db}' PUBLICATION alluvium_bench "
             "WITH (create_slot = false, slot_name = 'b4sub', copy_data = false, enabled = false)")
    server.drop_slot("b4sub")
    server.sql(db, "SELECT pg_create_logical_replication_slot('b4sub', 'pgoutput')")
    peer.sql("b4sub", "ALTER SUBSCRIPTION b4 ENABLE")
    time.sleep(1)
    seen: list[tuple[float, int]] = []
    done = threading.Event()

    def poll() -> None:
        with peer.connect("b4sub") as conn:
            last = 0
            while not done.is_set():
                row = conn.execute("SELECT max(remote_lsn) FROM pg_replication_origin_status").fetchone()
                position = lsn_number(str(row[0])) if row and row[0] else 0
                if position > last:
                    seen.append((time.monotonic(), position))
                    last = position
                time.sleep(0.001)

    watcher = threading.Thread(target=poll, daemon=True)
    watcher.start()
    load = Load(server, db, each, seconds)
    with procs.Clock([server.postmaster, peer.postmaster]) as out:
        load.start()
        load.join()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (seen and seen[-1][1] > load.committed[-1][1]):
            time.sleep(0.01)
    done.set()
    watcher.join()
    peer.sql("b4sub", "ALTER SUBSCRIPTION b4 DISABLE", "ALTER SUBSCRIPTION b4 SET (slot_name = NONE)", "DROP SUBSCRIPTION b4")
    server.drop_slot("b4sub")
    return {**out, **percentiles(delays(load.committed, seen, True)), "load_s": round(load.seconds, 2)}


def report(samples: Samples) -> list[Line]:
    lines = []
    for case in samples.cases():
        p50, p99 = (samples.figure(case, "query", lambda r, name=name: r[name]) for name in ("p50_ms", "p99_ms"))
        (most_p50, most_p99) = (5, 50) if case.startswith("1k") else (float("inf"), 100)
        goal = f"p50 ≤ 5 ms, p99 ≤ {most_p99} ms" if most_p99 == 50 else f"p99 ≤ {most_p99} ms"
        lines.append(Line(case, "(a) in the answer of a query inside Alluvium: p50 · p99", f"{p50.text(' ms')} · {p99.text(' ms')}", goal,
                          p50.median <= most_p50 and p99.median <= most_p99))
        query = " · ".join(samples.figure(case, "query", lambda r, name=name: r[name]).text(" ms") for name in ("query_p50_ms", "query_p99_ms"))
        lines.append(Line(case, "of it the query itself, HTTP included: p50 · p99", query))
        asked = samples.figure(case, "query", lambda r: r["queries"] / r["wall_s"])
        cores = samples.figure(case, "query", lambda r: r["cpu_own_s"] / r["wall_s"])
        lines.append(Line(case, "queries/s beside it · own CPU, cores", f"{asked.text()} · {cores.text()}"))
        for side, what in (("delta-log", "(b) in silver's Delta log"), ("subscriber", "applied by PostgreSQL's subscriber")):
            p50, p99 = (samples.figure(case, side, lambda r, name=name: r[name]) for name in ("p50_ms", "p99_ms"))
            goal = ("p99 ≤ 1 s", p99.median <= 1000) if side == "delta-log" else ("", None)
            lines.append(Line(case, f"{what}: p50 · p99", f"{p50.text(' ms')} · {p99.text(' ms')}", *goal))
        own = samples.figure(case, "delta-log", lambda r: r["cpu_own_s"] / r["wall_s"])
        lines.append(Line(case, "own CPU, cores", own.text()))
        lines.append(Line(case, "anonymous memory at the end", samples.figure(case, "delta-log", lambda r: r["anon_mib"]).text(" MiB")))
        reached = Figure([r["transactions"] / r["load_s"] for r in samples.of(case, "delta-log")])
        lines.append(Line(case, "transactions/s reached by the load beside us", reached.text()))
    return lines
