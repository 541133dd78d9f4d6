"""What the numbers were measured on: machine, versions, commit."""
from __future__ import annotations

import os
import platform
import subprocess

TICKS = os.sysconf("SC_CLK_TCK")


def text_of(argv: list[str], cwd: str | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_model() -> str:
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_mib() -> int:
    return int(next(line for line in open("/proc/meminfo") if line.startswith("MemTotal")).split()[1]) // 1024


def facts(root: str, alluvium: str) -> dict:
    """Machine, versions and commit, as they go into each results file."""
    status = [line for line in text_of(["git", "status", "--porcelain"], root).splitlines() if "bench/" not in line]
    return {
        "machine": cpu_model(), "cores": os.cpu_count(), "memory_mib": memory_mib(), "kernel": platform.release(),
        "alluvium": text_of([alluvium, "--version"]), "binary": alluvium, "rustc": text_of(["rustc", "--version"]),
        "commit": text_of(["git", "rev-parse", "--short", "HEAD"], root) or "none", "dirty": bool(status),
    }


def busy_seconds() -> float:
    """CPU seconds that all cores together have spent working, since boot."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(n) for n in open("/proc/stat").readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS
