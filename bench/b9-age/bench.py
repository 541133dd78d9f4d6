"""B9: a table after two million small commits, as it was after the first hour's worth of them?"""
from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess

import procs
from results import Line, Samples

TITLE = "B9: age: many small commits, with care"
ROWS, CHANGES = 100_000, 10
KEPT = 36_000                                                          # an hour's versions, at ten commits a second
FIGURES = {"files": "files", "bytes": "bytes", "log_files": "log files", "log_bytes": "bytes of the log", "live_files": "files of the newest version",
           "open_ms": "open by a new reader, ms", "anon_mib": "anonymous memory, MiB"}


def run(context) -> None:
    commits = context.size(2_000_000, 20_000)
    kept = min(KEPT, commits // 10)
    # How fast they come decides how long that is.
    rate = aged(context, commits // 20, 3600, commits // 20)[-1]
    seconds = max(round(kept * rate["seconds"] / rate["commits"]), 1)
    for nth, look in enumerate(aged(context, commits, seconds, max(commits // 100, 1))):
        context.record(f"{commits:,} commits", "aged", nth, keep_s=seconds, **look)


def aged(context, commits: int, keep: int, every: int) -> list[dict]:
    lake = os.path.join(context.dir, "b9lake")
    shutil.rmtree(lake, ignore_errors=True)
    argv = [context.harness, "age", "--lake", lake, "--rows", str(ROWS), "--commits", str(commits), "--changes", str(CHANGES),
            "--keep-seconds", str(keep), "--look-every", str(every)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        raise procs.Failed(f"age: {done.stderr[-2000:]}")
    shutil.rmtree(lake, ignore_errors=True)
    return json.loads(done.stdout)


def report(samples: Samples) -> list[Line]:
    lines = []
    for case in samples.cases():
        looks = samples.of(case, "aged")
        fifth = max(len(looks) // 5, 1)
        early, late = looks[fifth:2 * fifth] or looks, looks[-fifth:]
        for name, what in FIGURES.items():
            before, after = (statistics.mean(look[name] for look in part) for part in (early, late))
            ratio = after / max(before, 1e-9)
            lines.append(Line(case, f"{what}: {before:,.1f} → {after:,.1f}", f"{ratio:.2f}×", "≤ 1.5×", ratio <= 1.5))
        lines.append(Line(case, "commits a second, all of it on one thread", f"{looks[-1]['commits'] / looks[-1]['seconds']:,.0f}"))
    return lines
