"""An Alluvium project that benchmarks run, freeze and restore; and the comparer over it."""
from __future__ import annotations

import datetime
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import procs
from servers import Server

SLOT = "alluvium_bench"
CHECK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "check")


class Different(Exception):
    """The comparer found lake and source different: the numbers are worth nothing."""


class Project:
    def __init__(self, directory: str, alluvium: str, server: Server, db: str):
        self.dir, self.alluvium, self.server, self.db = directory, alluvium, server, db
        self.memory, self.copy_workers = "1GiB", 2
        self.tuples, self.compression = "auto", "zstd"
        self.more = ""                                                 # of the project file, always
        self.log = os.path.join(directory, "run.log")
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)

    def write(self, more: str = "") -> None:
        with open(os.path.join(self.dir, "alluvium.toml"), "w") as file:
            file.write(f'[source.bench]\ntype = "postgres"\nurl = "{self.server.url(self.db)}"\nslot = "{SLOT}_{self.db}"\ntuples = "{self.tuples}"\n[lake]\npath = "lake"\ncompression = "{self.compression}"\n'
                       f'[limits]\nmemory = "{self.memory}"\ncopy_workers = {self.copy_workers}\n{self.more}{more}')

    @property
    def slot(self) -> str:
        return f"{SLOT}_{self.db}"

    @property
    def publication(self) -> str:
        return "alluvium_bench"

    @property
    def lake(self) -> str:
        return os.path.join(self.dir, "lake")

    def environment(self) -> dict:
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")}

    # -- running ----------------------------------------------------------------------------------------------------
    def catch_up(self, **environment: str) -> dict:
        """`alluvium run --until-caught-up`, measured."""
        self.write()
        return procs.run([self.alluvium, "run", "--until-caught-up"], [self.server.postmaster], self.dir, {**self.environment(), **environment}, log=self.log)

    def start_up(self) -> dict:
        """As `catch_up`, with `streams_s`: how long until its tables were open and the stream began."""
        begun = time.time()
        measured = self.catch_up(ALLUVIUM_LOG="info")
        with open(self.log) as log:
            moment = next(line.split()[0] for line in log if " streaming " in line)
        return {**measured, "streams_s": datetime.datetime.fromisoformat(moment).timestamp() - begun}

    def start(self, more: str = "") -> subprocess.Popen:
        """`alluvium run`, left running; `more` is added to the project file."""
        self.write(more)
        return subprocess.Popen([self.alluvium, "run"], cwd=self.dir, env=self.environment(), stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=open(self.log, "wb"))

    def stop(self, process: subprocess.Popen, how: int = signal.SIGTERM) -> None:
        process.send_signal(how)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wait_until_live(self, process: subprocess.Popen, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise procs.Failed(f"alluvium run ended with {process.returncode}: {open(self.log).read()[-2000:]}")
            status = self.status()
            tables = status.get("tables", {})
            if status.get("process_id") == process.pid and tables and all(t["phase"] == "live" for t in tables.values()):
                return
            time.sleep(0.05)
        raise procs.Failed("the tables did not become live")

    def status(self) -> dict:
        try:
            return json.load(open(os.path.join(self.dir, ".alluvium", "status.json")))
        except (OSError, ValueError):
            return {}

    # -- state ------------------------------------------------------------------------------------------------------
    def forget(self) -> None:
        """As before the first run."""
        shutil.rmtree(self.lake, ignore_errors=True)
        shutil.rmtree(os.path.join(self.dir, ".alluvium"), ignore_errors=True)
        self.server.drop_slot(self.slot)
        for (name,) in self.server.sql(self.db, "SELECT pubname FROM pg_publication"):
            self.server.sql(self.db, f'DROP PUBLICATION "{name}"')

    def freeze(self) -> None:
        """Keeps lake, state and slot as they are now, for `restore`. The frozen slot keeps the WAL."""
        self.server.copy_slot(self.db, self.slot, f"frozen_{self.db}")
        for name in ("lake", ".alluvium"):
            copy(os.path.join(self.dir, name), os.path.join(self.dir, "frozen", name))

    def restore(self) -> None:
        for name in ("lake", ".alluvium"):
            shutil.rmtree(os.path.join(self.dir, name), ignore_errors=True)
            copy(os.path.join(self.dir, "frozen", name), os.path.join(self.dir, name))
        self.server.copy_slot(self.db, f"frozen_{self.db}", self.slot)
        os.sync()

    def reader_slot(self, name: str) -> str:
        """A copy of the frozen slot for somebody else."""
        slot = f"{name}_{self.db}"
        self.server.copy_slot(self.db, f"frozen_{self.db}", slot)
        return slot

    def remove(self) -> None:
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- looking at it ------------------------------------------------------------------------------------------------
    def compare(self) -> None:
        done = subprocess.run([sys.executable, os.path.join(CHECK, "compare.py"), "--pg", self.server.url(self.db), "--lake", self.lake, "--probes", "4"],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise Different(f"{self.db}: {done.stdout[-3000:]}{done.stderr[-2000:]}")

    def parquet_bytes(self, layer: str) -> int:
        return sum(os.path.getsize(f) for f in glob.glob(os.path.join(self.lake, layer, "*", "*.parquet")))


def copy(source: str, target: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)
