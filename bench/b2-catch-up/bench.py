"""B2: catching up with a backlog, against readers that throw it away and against PostgreSQL's own subscriber."""
from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Callable

import data
import procs
from project import Project
from results import Figure, Line, Samples
from servers import Server, lsn_number

TITLE = "B2: catch-up on a backlog into bronze and silver"
# Goals: over the lazy reader, over pg_recvlogical, over the subscriber.
LAZY = 0.85
FORMS = ("text", "binary")
OURS = ("alluvium", *FORMS)


@dataclass
class Scenario:
    name: str
    prepare: Callable[[Server, str, int], None]
    load: Callable[[Server, str, int, int], int]
    base: tuple[int, int]                                              # rows before, full and quick
    count: tuple[int, int]                                             # changes, full and quick
    recvlogical: float | None = None
    subscriber: float | None = None
    cpu_goal: bool = True
    forms: bool = False                                                # also with values as text and in binary form, in turn


def orders(server: Server, db: str, rows: int) -> None:
    data.fill(server, db, "orders", rows)


def wide(server: Server, db: str, rows: int) -> None:
    data.fill(server, db, "wide", rows)


def tpcb(server: Server, db: str, scale: int) -> None:
    server.pgbench(db, "-q", "-i", "-s", str(scale))
    server.sql(db, "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY", "CHECKPOINT")


def tpcb_load(server: Server, db: str, _scale: int, count: int) -> int:
    server.sql("postgres", f'ALTER DATABASE "{db}" SET synchronous_commit = off')
    server.pgbench(db, "-n", "-c", "2", "-t", str(count // 8))
    server.sql(db, "SET synchronous_commit = on", "SELECT txid_current()")
    return count // 8 * 2 * 4


SCENARIOS = (
    Scenario("inserts, 1000 per transaction", orders, lambda s, d, b, n: data.insert(s, d, "orders", b + 1, n, 1000), (10_000, 10_000), (2_000_000, 300_000), 1.2, 1.0, forms=True),
    Scenario("inserts, one per transaction", orders, lambda s, d, b, n: data.insert(s, d, "orders", b + 1, n, 1), (10_000, 10_000), (500_000, 120_000), 1.6),
    Scenario("random updates", orders, data.update, (5_000_000, 500_000), (1_000_000, 200_000), None, 2.0),
    Scenario("deletes", orders, data.delete, (5_000_000, 500_000), (1_000_000, 300_000), 2.0),
    Scenario("TPC-B", tpcb, tpcb_load, (20, 5), (800_000, 160_000)),
    Scenario("inserts of 30 columns", wide, lambda s, d, b, n: data.insert(s, d, "wide", b + 1, n, 1000), (10_000, 10_000), (500_000, 100_000), None, None, False, True),
)


def run(context) -> None:
    for number, scenario in enumerate(SCENARIOS):
        Backlog(context, f"b2n{number}", scenario).measure()


class Backlog:
    """One scenario: a frozen lake and slot, the changes after them, and everyone who reads them."""

    def __init__(self, context, db: str, scenario: Scenario):
        self.context, self.db, self.scenario = context, db, scenario
        self.server: Server = context.server()
        self.peer: Server = context.server("subscriber")
        self.project: Project = context.project(db)
        self.base, self.wanted = context.size(*scenario.base), context.size(*scenario.count)

    def prepare(self) -> None:
        self.server.create(self.db)
        self.scenario.prepare(self.server, self.db, self.base)
        self.project.catch_up()
        self.project.freeze()

    def load(self) -> None:
        self.changes = self.scenario.load(self.server, self.db, self.base, self.wanted)
        self.end = self.server.end_of_wal()
        self.server.sql("postgres", "CHECKPOINT")

    def measure(self) -> None:
        self.prepare()
        self.server.clone_into(self.db, self.peer, f"{self.db}base")
        self.load()
        case = self.scenario.name
        for round_ in range(self.context.repeat):
            self.project.restore()
            self.context.record(case, "alluvium", round_, changes=self.changes, **self.project.catch_up())
            self.context.record(case, "alluvium-idle", round_, changes=0, **self.project.catch_up())
            for form in FORMS if self.scenario.forms else ():
                self.project.restore()
                self.project.tuples = form
                self.context.record(case, form, round_, changes=self.changes, **self.project.catch_up())
            self.project.tuples = "auto"
            self.context.record(case, "pg_recvlogical", round_, changes=self.changes, **self.recvlogical())
            for mode in ("lazy", "eager"):
                self.context.record(case, mode, round_, changes=self.changes, **self.reader(mode))
            self.context.record(case, "subscriber", round_, changes=self.changes, **self.subscriber())
        self.project.compare()
        self.clean()

    def clean(self) -> None:
        self.peer.drop(f"{self.db}base")
        self.server.drop(self.db)
        self.project.remove()

    # -- the other sides ----------------------------------------------------------------------------------------------
    def recvlogical(self) -> dict:
        slot = self.project.reader_slot("recv")
        argv = [self.server.program("pg_recvlogical"), "-d", self.server.url(self.db), "-S", slot, "--start", "--no-loop", "-f", "/dev/null",
                "--endpos", self.end, "-o", "proto_version=1", "-o", f"publication_names={self.project.publication}"]
        measured = procs.run(argv, [self.server.postmaster])
        self.server.drop_slot(slot)
        return measured

    def reader(self, mode: str) -> dict:
        slot = self.project.reader_slot(mode)
        argv = [self.context.harness, "read-slot", "--host", "127.0.0.1", "--port", str(self.server.pg.port), "--user", self.server.pg.user,
                "--database", self.db, "--slot", slot, "--publication", self.project.publication, "--end-lsn", self.end, "--mode", mode]
        out = f"{self.project.dir}/reader.json"
        with open(out, "wb") as file:
            measured = procs.run(argv, [self.server.postmaster], stdout=file, log=f"{self.project.dir}/reader.log")
        seen = json.load(open(out))
        if seen["changes"] != self.changes:
            raise procs.Failed(f"the reader saw {seen['changes']} changes of {self.changes}")
        self.server.drop_slot(slot)
        return {**measured, "reader": seen}

    def subscriber(self) -> dict:
        """The same rows in a fresh database of the second cluster, which then subscribes to a copy of the slot."""
        slot, target, name = self.project.reader_slot("sub"), f"{self.db}sub", f"sub_{self.db}"
        self.peer.sql("postgres", f'CREATE DATABASE "{target}" TEMPLATE "{self.db}base"', "CHECKPOINT")
        end = lsn_number(self.end)
        with self.peer.connect(target) as conn, procs.Clock([self.server.postmaster, self.peer.postmaster]) as out:
            before = procs.server_cpu(self.peer.postmaster)
            conn.execute(f"CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={self.server.pg.port} user={self.server.pg.user} dbname={self.db}' "
                         f"PUBLICATION {self.project.publication} WITH (slot_name = '{slot}', create_slot = false, copy_data = false)")
            deadline = time.monotonic() + 1800
            while time.monotonic() < deadline:
                row = conn.execute(f"SELECT latest_end_lsn FROM pg_stat_subscription WHERE subname = '{name}'").fetchone()
                if row and row[0] and lsn_number(str(row[0])) >= end:
                    break
                time.sleep(0.01)
            else:
                raise procs.Failed("the subscriber did not catch up")
        out["cpu_peer_s"] = round(procs.server_cpu(self.peer.postmaster) - before, 2)
        self.peer.sql(target, f"ALTER SUBSCRIPTION {name} DISABLE", f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)", f"DROP SUBSCRIPTION {name}")
        self.server.drop_slot(slot)
        self.peer.drop(target)
        return out


def report(samples: Samples) -> list[Line]:
    lines = []
    for scenario in SCENARIOS:
        case = scenario.name
        if not samples.of(case, "alluvium"):
            continue
        idle = samples.figure(case, "alluvium-idle", lambda r: r["wall_s"])
        idle_cpu = samples.figure(case, "alluvium-idle", lambda r: r["cpu_own_s"])

        def rate(r: dict) -> float:
            return r["changes"] / max(r["wall_s"] - (idle.median if r["side"] in OURS else 0.0), 1e-3)

        def thousands(side: str) -> str:
            return Figure([v / 1000 for v in samples.figure(case, side, rate).values]).text()

        count = samples.of(case, "alluvium")[0]["changes"]
        title = f"{case} ({count:,})"
        lines.append(Line(title, "k changes/s: ours", thousands("alluvium")))
        lines.append(Line(title, "start to end with nothing to do, subtracted", idle.text(" s")))
        for side, what, goal in (("lazy", "the lazy reader", LAZY), ("pg_recvlogical", "pg_recvlogical", scenario.recvlogical), ("eager", "an eager reader", None),
                                 ("subscriber", "PostgreSQL's subscriber", scenario.subscriber)):
            ratio = samples.ratio(case, "alluvium", side, rate)
            lines.append(Line(title, f"over {what} ({thousands(side)} k/s)", ratio.text("×"), f"≥ {goal:g}×" if goal else "", ratio.median >= goal if goal else None))
        own = samples.figure(case, "alluvium", lambda r: (r["cpu_own_s"] - idle_cpu.median) / r["changes"] * 1e6)
        lines.append(Line(title, "own CPU, µs a change", own.text(), "≤ 3" if scenario.cpu_goal else "", own.median <= 3 if scenario.cpu_goal else None))
        sender = " · ".join(samples.figure(case, side, lambda r: r.get("walsender_cpu_s", 0) / r["changes"] * 1e6).text() for side in ("alluvium", "lazy"))
        lines.append(Line(title, "walsender CPU, µs a change: under us · under the lazy reader", sender))
        if scenario.forms and samples.of(case, "binary"):
            ratio = samples.ratio(case, "binary", "text", rate)
            lines.append(Line(title, f"`tuples = \"binary\"` ({thousands('binary')} k/s) over `\"text\"` ({thousands('text')} k/s)", ratio.text("×")))
            both = " · ".join(" / ".join((samples.figure(case, form, lambda r: (r["cpu_own_s"] - idle_cpu.median) / r["changes"] * 1e6).text(),
                                          samples.figure(case, form, lambda r: r.get("walsender_cpu_s", 0) / r["changes"] * 1e6).text())) for form in FORMS)
            lines.append(Line(title, "CPU, µs a change, own / walsender: text · binary", both))
        lines.append(Line(title, "peak RSS · of it anonymous, MiB", f"{samples.figure(case, 'alluvium', lambda r: r['rss_peak_mib']).text()} · "
                          f"{samples.figure(case, 'alluvium', lambda r: r['anon_peak_mib']).text()}"))
    return lines
