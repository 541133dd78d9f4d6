"""PostgreSQL for benchmarks: fsync on, 1 GB of shared buffers, no autovacuum at odd moments."""
from __future__ import annotations

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "check"))
import psycopg  # noqa: E402
from pg_private import PrivatePg  # noqa: E402

SETTINGS = {
    "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "shared_buffers": "1GB", "max_wal_size": "16GB",
    "checkpoint_timeout": "30min", "autovacuum": "off", "max_worker_processes": "16", "max_logical_replication_workers": "8",
    "work_mem": "64MB", "maintenance_work_mem": "256MB",
}


class Server:
    """One private cluster."""

    def __init__(self, directory: str):
        self.pg = PrivatePg(directory, conf=dict(SETTINGS)).start()
        self.postmaster = self.pg.postmaster_pid()

    def settings(self) -> dict:
        return {**SETTINGS, "version": str(self.one("postgres", "SELECT current_setting('server_version')")).split()[0]}

    def url(self, db: str) -> str:
        return self.pg.url(db)

    def connect(self, db: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.url(db), autocommit=True)

    def sql(self, db: str, *statements: str) -> list[tuple]:
        """Runs statements, each on its own; returns the rows of the last."""
        with self.connect(db) as conn:
            rows: list[tuple] = []
            for statement in statements:
                cursor = conn.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
            return rows

    def one(self, db: str, statement: str):
        return self.sql(db, statement)[0][0]

    def create(self, db: str, *statements: str) -> None:
        self.drop(db)
        self.sql("postgres", f'CREATE DATABASE "{db}"')
        if statements:
            self.sql(db, *statements)

    def drop(self, db: str) -> None:
        for (slot,) in self.sql("postgres", f"SELECT slot_name FROM pg_replication_slots WHERE database = '{db}'"):
            self.drop_slot(slot)
        self.sql("postgres", f'DROP DATABASE IF EXISTS "{db}" WITH (FORCE)')

    # -- slots ------------------------------------------------------------------------------------------------------
    def drop_slot(self, slot: str) -> None:
        """Waits for the walsender that still holds it."""
        for _ in range(200):
            active = self.sql("postgres", f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'")
            if not active:
                return
            if not active[0][0]:
                self.sql("postgres", f"SELECT pg_drop_replication_slot('{slot}')")
                return
            time.sleep(0.05)
        raise RuntimeError(f"slot {slot} stays in use")

    def copy_slot(self, db: str, source: str, target: str) -> None:
        self.drop_slot(target)
        self.sql(db, f"SELECT pg_copy_logical_replication_slot('{source}', '{target}')")

    def end_of_wal(self) -> str:
        return str(self.one("postgres", "SELECT pg_current_wal_insert_lsn()"))

    # -- programs ---------------------------------------------------------------------------------------------------
    def program(self, name: str) -> str:
        """A client program of the same version where there is one."""
        own = os.path.join(self.pg.bin, name)
        return own if os.path.exists(own) else name

    def pgbench(self, db: str, *args: str) -> str:
        done = subprocess.run([self.program("pgbench"), *args, self.url(db)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"pgbench: {done.stderr[-2000:]}")
        return done.stdout

    def clone_into(self, db: str, other: "Server", target: str) -> None:
        """The same tables with the same rows in another cluster."""
        other.create(target)
        dump = subprocess.Popen([self.program("pg_dump"), "--no-publications", "--no-subscriptions", self.url(db)], stdout=subprocess.PIPE)
        load = subprocess.run([self.program("psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", other.url(target)], stdin=dump.stdout,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if dump.wait() != 0 or load.returncode != 0:
            raise RuntimeError(f"cannot clone {db}: {load.stderr[-2000:]}")

    def destroy(self) -> None:
        self.pg.stop("immediate")


def lsn_number(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) | int(low, 16)
