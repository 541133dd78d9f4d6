"""B10: catch-up rate and freshness while tables are cared for at full share, against the same without care."""
from __future__ import annotations

import data
from results import Line, Samples

TITLE = "B10: upserts and freshness beside care at its full share"
KEEP = 'all_versions = "10s"\nremoved_files = "10s"\nold_versions = "10s"\n'
SIDES = {
    "care": f"[maintain]\ncpu_percent = 100\nsmall_files = 4\ndeleted_percent = 2\n{KEEP}[commit]\ndelta_checkpoint_every_commits = 20\n",
    "none": "[maintain]\nenabled = false\n[commit]\ndelta_checkpoint_every_commits = 100000\n",
}


def run(context) -> None:
    b4 = context.modules["b4"]
    rows, updates = context.size(10_000_000, 1_000_000), context.size(3_000_000, 500_000)
    seconds = context.size(180, 20)
    server, db = context.server(), "b10orders"
    data.fill_orders_with_progress(server, db, rows)
    project = context.project(db)
    project.catch_up()
    project.freeze()
    count = data.update(server, db, rows, updates)
    for round_ in range(context.repeat):
        for side, more in SIDES.items():
            project.more = more
            project.restore()
            measured = project.catch_up()
            context.record("catch-up", side, round_, changes=count, compactions=compactions(project), **measured)
    project.compare()
    for round_ in range(1 if context.quick else context.repeat):
        for side, more in SIDES.items():
            project.more = more
            measured = b4.through_queries(project, 4, seconds)
            context.record("freshness", side, round_, compactions=compactions(project), **measured)
    project.more = ""
    project.catch_up()
    project.compare()
    project.remove()
    server.drop(db)


def compactions(project) -> int:
    return sum(table.get("compactions", 0) for table in project.status().get("tables", {}).values())


def report(samples: Samples) -> list[Line]:
    lines = []
    rate = lambda r: r["changes"] / r["wall_s"]  # noqa: E731
    ratio = samples.ratio("catch-up", "care", "none", rate)
    with_care, without = (samples.figure("catch-up", side, rate) for side in SIDES)
    lines.append(Line("catch-up", f"changes/s with care ({with_care.text()}) over without ({without.text()})", ratio.text("×"), "≥ 0.8×", ratio.median >= 0.8))
    ratio = samples.ratio("freshness", "care", "none", lambda r: r["p99_ms"])
    with_care, without = (samples.figure("freshness", side, lambda r: r["p99_ms"]) for side in SIDES)
    lines.append(Line("freshness at 2k changes/s", f"p99 with care ({with_care.text(' ms')}) over without ({without.text(' ms')})", ratio.text("×"), "≤ 2×", ratio.median <= 2))
    for case in ("catch-up", "freshness"):
        lines.append(Line(case, "files written anew as one, times", samples.figure(case, "care", lambda r: r["compactions"]).text()))
        own = [samples.figure(case, side, lambda r: r["cpu_own_s"]).text(" s") for side in SIDES]
        lines.append(Line(case, "own CPU with care · without", " · ".join(own)))
    return lines
