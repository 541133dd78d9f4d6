#!/usr/bin/env python3
"""Random updates for a long time, beside a reader that scans the table again and again: is all of it still equal, and flat?

    bench/soak/soak.py [--seconds 3600] [--rate 5000] [--rows 10000000] [--keep 300] [--profile release|debug] [--out DIR]

Writes soak.jsonl (a sample each 5 seconds), soak.png and soak.md into DIR. Ends with 1 when the lake differs from the source, when the
reader met an error, or when memory, files or log grew: the last fifth of the run over the second one, most 1.5 times.
"""
from __future__ import annotations

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.dont_write_bytecode = True
sys.path[:0] = [os.path.join(HERE, "..", "lib"), os.path.join(ROOT, "tools", "check")]

import _venv  # noqa: E402

_venv.ensure(os.path.join(HERE, "requirements.txt"))

import data  # noqa: E402
import machine  # noqa: E402
import procs  # noqa: E402
from project import Project  # noqa: E402
from servers import Server, lsn_number  # noqa: E402

DB = "soak"
SAMPLE_SECONDS = 5
EACH = 100                                                             # updates a transaction
MOST_GROWTH = 1.5


class Load(threading.Thread):
    """So many updates a second of rows all over the table, as long as it is wanted."""

    def __init__(self, server: Server, rows: int, rate: int):
        super().__init__(daemon=True)
        self.conn, self.rows, self.rate = server.connect(DB), rows, rate
        self.done = threading.Event()
        self.updates, self.error = 0, None

    def run(self) -> None:
        try:
            since, n = time.monotonic(), 0
            while not self.done.is_set():
                pause = since + n * EACH / self.rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
                ids = data.random_ids(n, EACH, self.rows)
                self.conn.execute("UPDATE orders SET qty = qty + 1, status = %s WHERE id = ANY (%s)", (f"n{n}", ids))
                n += 1
                self.updates = n * EACH
        except Exception as error:  # noqa: BLE001 - told at the end
            self.error = error


READER = r'''
import glob, json, os, sys, time
import duckdb, duckdb_extension_delta
table, rows = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    con = duckdb.connect(config={"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false", "threads": 1})
    # It would be drawn between our answers.
    con.execute("SET enable_progress_bar = false")
    con.execute("LOAD '%s'" % glob.glob(os.path.join(os.path.dirname(duckdb_extension_delta.__file__), "extensions", "*", "delta.duckdb_extension"))[0])
    since = time.monotonic()
    try:
        counted, distinct = con.execute("SELECT count(*), sum(hash(id)::HUGEINT) FROM delta_scan('%s')" % table).fetchone()
        con.execute("SELECT status, sum(qty), max(note) FROM delta_scan('%s') GROUP BY ALL ORDER BY ALL LIMIT 3" % table).fetchall()
        # Updates never change which keys there are.
        answer = {"rows": counted, "keys": str(distinct), "error": None if counted == rows else "%s rows of %s" % (counted, rows)}
    except Exception as error:
        answer = {"error": str(error)}
    answer["seconds"] = time.monotonic() - since
    print(json.dumps(answer), flush=True)
    con.close()
'''


class Reader(threading.Thread):
    """DuckDB in a process of its own: a scan of the whole table every so often."""

    def __init__(self, table: str, rows: int, every: float):
        super().__init__(daemon=True)
        self.child = subprocess.Popen([sys.executable, "-c", READER, table, str(rows)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.every, self.done, self.scans = every, threading.Event(), []

    def run(self) -> None:
        while not self.done.wait(self.every):
            self.child.stdin.write("\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
            if not line:
                self.scans.append({"error": "the reader ended"})
                return
            try:
                answer = json.loads(line)
            except ValueError:
                answer = {"error": f"the reader said {line!r}", "seconds": 0}
            self.scans.append({"at": time.time(), **answer})

    def end(self) -> None:
        self.done.set()
        self.child.stdin.close()
        self.child.wait(600)


def sizes(directory: str) -> dict:
    """Files and bytes of one Delta table's directory."""
    found = {"data_files": 0, "vector_files": 0, "bytes": 0, "log_files": 0, "log_bytes": 0}
    for path in glob.glob(os.path.join(directory, "*")) + glob.glob(os.path.join(directory, "_delta_log", "*")):
        try:
            size = os.path.getsize(path)
        except OSError:
            continue
        log = os.path.dirname(path).endswith("_delta_log")
        found["log_bytes" if log else "bytes"] += size
        if log:
            found["log_files"] += 1
        elif path.endswith(".parquet"):
            found["data_files"] += 1
        elif path.endswith(".bin"):
            found["vector_files"] += 1
    return found


def sample(project: Project, process: subprocess.Popen, load: Load, since: float) -> dict:
    memory = procs.memory_of(process.pid)
    status = project.status()
    table = next(iter(status.get("tables", {}).values()), {})
    return {
        "seconds": round(time.time() - since, 1), "updates": load.updates, "cpu_own_s": round(procs.cpu_of(process.pid), 2),
        "anon_mib": round(memory.get("RssAnon", 0), 1), "rss_mib": round(memory.get("VmRSS", 0), 1), "phase": table.get("phase"),
        "lag_bytes": lsn_number(project.server.end_of_wal()) - lsn_number(table.get("silver_position", "0/0")),
        "silver": sizes(os.path.join(project.lake, "silver", "orders")), "bronze": sizes(os.path.join(project.lake, "bronze", "orders")),
    }


def growth(values: list[float]) -> float:
    """The last fifth over the second one: the first is still filling what is kept."""
    fifth = max(len(values) // 5, 1)
    early, late = (statistics.median(part) for part in (values[fifth:2 * fifth] or values, values[-fifth:]))
    return late / max(early, 1e-9)


FLAT = [("anonymous memory", lambda s: s["anon_mib"]), ("silver: data files", lambda s: s["silver"]["data_files"]),
        ("silver: deletion vector files", lambda s: s["silver"]["vector_files"]), ("silver: log files", lambda s: s["silver"]["log_files"]),
        ("silver: bytes", lambda s: s["silver"]["bytes"]), ("bronze: log files", lambda s: s["bronze"]["log_files"])]


def chart(samples: list[dict], scans: list[dict], since: float, path: str, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [s["seconds"] / 60 for s in samples]
    panels = [
        ("updates a second", [0] + [(b["updates"] - a["updates"]) / max(b["seconds"] - a["seconds"], 1) for a, b in zip(samples, samples[1:])]),
        ("lag behind the WAL's end, MiB", [max(s["lag_bytes"], 0) / 2**20 for s in samples]),
        ("anonymous memory, MiB", [s["anon_mib"] for s in samples]),
        ("silver: data files in the directory", [s["silver"]["data_files"] for s in samples]),
        ("silver: log files", [s["silver"]["log_files"] for s in samples]),
        ("silver: MiB on disk", [s["silver"]["bytes"] / 2**20 for s in samples]),
    ]
    figure, axes = pyplot.subplots(4, 2, figsize=(11, 12), constrained_layout=True)
    axes = axes.flatten()
    for axis, (name, values) in zip(axes, panels):
        axis.plot(minutes, values, linewidth=1)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
    good = [scan for scan in scans if "seconds" in scan]
    axes[6].plot([(scan["at"] - since) / 60 for scan in good], [scan["seconds"] for scan in good], "o-", markersize=3, linewidth=1)
    axes[6].set_title("DuckDB: two scans of the whole table, s (one thread)", fontsize=10, loc="left")
    axes[6].set_ylim(bottom=0)
    axes[7].plot(minutes, [0] + [(b["cpu_own_s"] - a["cpu_own_s"]) / max(b["seconds"] - a["seconds"], 1) for a, b in zip(samples, samples[1:])], linewidth=1)
    axes[7].set_title("own CPU, cores", fontsize=10, loc="left")
    for axis in axes:
        axis.set_xlabel("minutes", fontsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=90)


def soak(args: argparse.Namespace, directory: str) -> int:
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(os.path.expanduser("~"), ".cache", "alluvium-target")
    alluvium = args.alluvium or os.path.join(target, args.profile, "alluvium")
    facts = machine.facts(ROOT, alluvium)
    server = Server(os.path.join(directory, "source"))
    project = Project(os.path.join(directory, "project"), alluvium, server, DB)
    try:
        server.create(DB)
        data.fill(server, DB, "orders", args.rows)
        server.sql("postgres", "ALTER SYSTEM SET autovacuum = on", "SELECT pg_reload_conf()")
        project.catch_up()
        keep = f'all_versions = "{args.keep}s"\nremoved_files = "{args.keep}s"\nold_versions = "{args.keep}s"\n'
        process = project.start(f"[maintain]\n{keep}{args.more}")
        project.wait_until_live(process)
        clean = sizes(os.path.join(project.lake, "silver", "orders"))["bytes"]
        load = Load(server, args.rows, args.rate)
        reader = Reader(os.path.join(project.lake, "silver", "orders"), args.rows, args.scan_every)
        since, samples = time.time(), []
        load.start()
        reader.start()
        with open(os.path.join(args.out, "soak.jsonl"), "w") as out:
            out.write(json.dumps({"kind": "facts", **facts, **vars(args), "clean_bytes": clean}) + "\n")
            while time.time() - since < args.seconds and process.poll() is None and load.error is None:
                samples.append(sample(project, process, load, since))
                out.write(json.dumps(samples[-1]) + "\n")
                out.flush()
                time.sleep(SAMPLE_SECONDS)
            load.done.set()
            load.join()
            reader.end()
            for scan in reader.scans:
                out.write(json.dumps({"kind": "scan", **scan}) + "\n")
        if process.poll() is not None or load.error is not None:
            print(f"it ended: {load.error} {open(project.log).read()[-3000:]}")
            return 1
        project.stop(process)
        project.catch_up()
        project.compare()
        return tell(args, facts, samples, reader.scans, since, clean)
    finally:
        server.destroy()


def tell(args: argparse.Namespace, facts: dict, samples: list[dict], scans: list[dict], since: float, clean: int) -> int:
    failed = [scan for scan in scans if scan.get("error")] + ([] if len({scan.get("keys") for scan in scans}) <= 1 else ["the keys changed"])
    rate = samples[-1]["updates"] / samples[-1]["seconds"]
    cpu = (samples[-1]["cpu_own_s"] - samples[0]["cpu_own_s"]) / (samples[-1]["seconds"] - samples[0]["seconds"])
    title = (f"{rate:,.0f} random updates/s into {args.rows:,} rows for {samples[-1]['seconds'] / 60:.0f} minutes, "
             f"{args.keep} s of versions kept; {facts['cores']} cores of {facts['machine']}")
    lines = [title + ".", "", f"Commit {facts['commit']}. Lake and source compared: equal. Reader: {len(scans)} times, {len(failed)} errors. Own CPU: {cpu:.2f} cores.", "",
             "| what | second fifth | last fifth | ratio |", "|---|---|---|---|"]
    grown = []
    fifth = max(len(samples) // 5, 1)
    for name, of in FLAT:
        values = [of(s) for s in samples]
        early, late = statistics.median(values[fifth:2 * fifth] or values), statistics.median(values[-fifth:])
        lines.append(f"| {name} | {early:,.0f} | {late:,.0f} | {growth(values):.2f}× |")
        if growth(values) > MOST_GROWTH:
            grown.append(name)
    took = [scan["seconds"] for scan in scans if "seconds" in scan]
    if took:
        lines.append(f"| DuckDB, two scans | {statistics.median(took[:max(len(took) // 5, 1)]):.2f} s | {statistics.median(took[-max(len(took) // 5, 1):]):.2f} s | |")
    lines += ["", f"On disk at the end: {samples[-1]['silver']['bytes'] / clean:.2f}× of the table as it was copied."]
    text = "\n".join(lines) + "\n"
    open(os.path.join(args.out, "soak.md"), "w").write(text)
    chart(samples, scans, since, os.path.join(args.out, "soak.png"), title)
    print(text)
    for what in failed:
        print(f"reader: {what}")
    for name in grown:
        print(f"not flat: {name}")
    return 1 if failed or grown else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keep", type=int, default=300, help="seconds for which versions and removed files are kept")
    parser.add_argument("--scan-every", type=float, default=60)
    parser.add_argument("--more", default="", help="more lines for [maintain]")
    parser.add_argument("--profile", default="release")
    parser.add_argument("--alluvium")
    parser.add_argument("--out", default=HERE)
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="alluvium-soak-", dir=os.environ.get("TMPDIR")) as directory:
        os.chmod(directory, 0o755)                                     # the server runs as another user under root
        return soak(args, directory)


if __name__ == "__main__":
    sys.exit(main())
