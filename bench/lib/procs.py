"""Runs programs and measures them: wall time, CPU of the program and of the servers it used, peak memory, load by others.

CPU of the program is its rusage. CPU of a server is that of the postmaster with all its children, those that ended included
(the postmaster has waited for them): resolution 10 ms. RssAnon is sampled, because mapped files count in RSS.
"""
from __future__ import annotations

import os
import subprocess
import threading
import time

from machine import TICKS, busy_seconds

SAMPLE_SECONDS = 0.03


def stat_of(pid: int) -> list[str] | None:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None


def cpu_of(pid: int, with_ended_children: bool = False) -> float:
    """CPU seconds of a process; of a postmaster also those of children it has waited for (in ticks of 10 ms)."""
    if not with_ended_children:
        try:
            return time.clock_gettime((~pid << 3) | 2)                 # clock_getcpuclockid(3): all its threads, in ns
        except OSError:
            return 0.0
    stat = stat_of(pid)
    if stat is None:
        return 0.0
    return sum(int(n) for n in stat[11:15 if with_ended_children else 13]) / TICKS


def children_of(pid: int) -> list[int]:
    try:
        return [int(n) for n in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    except OSError:
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return [p for p in pids if (stat := stat_of(p)) and stat[1] == str(pid)]


def server_cpu(postmaster: int) -> float:
    return cpu_of(postmaster, True) + sum(cpu_of(child, True) for child in children_of(postmaster))


def role_of(pid: int) -> str:
    try:
        return open(f"/proc/{pid}/cmdline").read().replace("\0", " ").strip()
    except OSError:
        return ""


def memory_of(pid: int) -> dict[str, float]:
    """VmHWM, RssAnon, RssFile in MiB."""
    found = {}
    try:
        for line in open(f"/proc/{pid}/status"):
            name, _, value = line.partition(":")
            if name in ("VmHWM", "VmRSS", "RssAnon", "RssFile"):
                found[name] = int(value.split()[0]) / 1024
    except OSError:
        pass
    return found


def written_bytes(pid: int) -> int:
    try:
        return next(int(line.split()[1]) for line in open(f"/proc/{pid}/io") if line.startswith("write_bytes"))
    except (OSError, StopIteration):
        return 0


class Sampler(threading.Thread):
    """Watches one process, and the walsenders of its servers, until told to stop."""

    def __init__(self, pid: int, postmasters: list[int]):
        super().__init__(daemon=True)
        self.pid, self.postmasters, self.done = pid, postmasters, threading.Event()
        self.peak = self.anon_peak = self.file_peak = 0.0
        self.walsenders: dict[int, float] = {}

    def run(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            now = memory_of(self.pid)
            self.peak = max(self.peak, now.get("VmHWM", 0.0))
            self.anon_peak = max(self.anon_peak, now.get("RssAnon", 0.0))
            self.file_peak = max(self.file_peak, now.get("RssFile", 0.0))
            for postmaster in self.postmasters:
                for child in children_of(postmaster):
                    if child in self.walsenders or "walsender" in role_of(child):
                        self.walsenders[child] = max(self.walsenders.get(child, 0.0), cpu_of(child))

    def finish(self) -> dict[str, float]:
        self.done.set()
        self.join()
        return {"rss_peak_mib": round(self.peak, 1), "anon_peak_mib": round(self.anon_peak, 1), "file_peak_mib": round(self.file_peak, 1),
                "walsender_cpu_s": round(sum(self.walsenders.values()), 2)}


class Failed(Exception):
    """A program that was measured did not succeed."""


class Clock:
    """Measures everything between `with` and its end; `cpu_own_s` is filled in by who knows it."""

    def __init__(self, postmasters: list[int]):
        self.postmasters, self.out = postmasters, {}

    def __enter__(self) -> dict:
        self.busy, self.servers = busy_seconds(), [server_cpu(p) for p in self.postmasters]
        self.since = time.monotonic()
        return self.out

    def __exit__(self, *_exc) -> None:
        wall = time.monotonic() - self.since
        server = sum(server_cpu(p) - before for p, before in zip(self.postmasters, self.servers))
        busy = busy_seconds() - self.busy
        others = max(0.0, busy - server - self.out.get("cpu_own_s", 0.0))
        self.out.update(wall_s=round(wall, 3), cpu_server_s=round(server, 2), other_cores=round(others / max(wall, 1e-3), 2))


def run(argv: list[str], postmasters: list[int], cwd: str | None = None, env: dict | None = None, stdout=subprocess.DEVNULL,
        log: str | None = None) -> dict:
    """Runs one program to its end and returns what it cost. Raises when it fails."""
    with open(log, "wb") if log else open(os.devnull, "wb") as err, Clock(postmasters) as out:
        process = subprocess.Popen(argv, cwd=cwd, env=env, stdout=stdout, stderr=err, stdin=subprocess.DEVNULL)
        sampler = Sampler(process.pid, postmasters)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out["cpu_own_s"] = round(usage.ru_utime + usage.ru_stime, 3)
    out.update(sampler.finish())
    # ru_maxrss also counts what the child had between fork and exec, so it says something only beyond our own size.
    if usage.ru_maxrss / 1024 > memory_of(os.getpid()).get("VmHWM", 0.0):
        out["rss_peak_mib"] = round(usage.ru_maxrss / 1024, 1)
    if process.returncode != 0:
        tail = open(log).read()[-3000:] if log else ""
        raise Failed(f"{' '.join(argv)} ended with {process.returncode}\n{tail}")
    return out


def run_all(argvs: list[list[str]], postmasters: list[int], env: dict | None = None) -> dict:
    """Runs several programs side by side; the wall time is that of the last to end."""
    with Clock(postmasters) as out:
        processes = [subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) for argv in argvs]
        cpu = 0.0
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
            if process.returncode != 0:
                raise Failed(f"{' '.join(process.args)}: {process.stderr.read().decode()[-2000:]}")
        out["cpu_own_s"] = round(cpu, 3)
    return out
