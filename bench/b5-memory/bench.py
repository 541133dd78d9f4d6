"""B5: peak memory against the budget: copy, catch-up, and one very large transaction."""
from __future__ import annotations

import data
from results import Line, Samples

TITLE = "B5: peak memory against `memory`"
ALLOWED_OVER_MIB = 64
BUDGETS = {"512MiB": 512, "1GiB": 1024, "4GiB": 4096}


def run(context) -> None:
    for budget in ["512MiB"] if context.quick else BUDGETS:
        for table in ("orders", "wide"):
            copy_and_changes(context, table, budget)
        large_transaction(context, budget)


def copy_and_changes(context, table: str, budget: str) -> None:
    """A copy, then changes in transactions of 1000."""
    if context.quick and table == "wide":
        return
    rows, changes = context.size(5_000_000 if table == "orders" else 1_000_000, 1_000_000), context.size(1_000_000, 200_000)
    db, server = f"b5{table}", context.server()
    server.create(db)
    data.fill(server, db, table, rows)
    project = context.project(db)
    project.memory = budget
    context.record(f"copy of {rows / 1e6:g}M {table}", budget, 0, rows=rows, **project.catch_up())
    if table == "orders":
        done = data.update(server, db, rows, changes)
        context.record(f"{done / 1e6:g}M random updates", budget, 0, changes=done, **project.catch_up())
    else:
        done = data.insert(server, db, table, rows + 1, changes // 2, 1000)
        context.record(f"{done / 1e6:g}M inserts of 30 columns", budget, 0, changes=done, **project.catch_up())
    project.compare()
    project.remove()
    server.drop(db)


def large_transaction(context, budget: str) -> None:
    """One transaction, half of it rolled back to a savepoint."""
    rows = context.size(10_000_000, 2_000_000)
    db, server = "b5large", context.server()
    server.create(db)
    data.fill(server, db, "orders", 1000)
    project = context.project(db)
    project.memory = budget
    project.catch_up()
    row = data.ORDERS_ROW
    with server.connect(db) as conn:
        conn.execute("BEGIN")
        conn.execute(f"INSERT INTO orders SELECT {row} FROM generate_series(1001::bigint, {1000 + rows // 2}) g")
        conn.execute("SAVEPOINT half")
        conn.execute(f"INSERT INTO orders SELECT {row} FROM generate_series({1001 + rows // 2}::bigint, {1000 + rows}) g")
        conn.execute("ROLLBACK TO half")
        conn.execute("COMMIT")
    context.record(f"one transaction of {rows / 1e6:g}M rows, half rolled back", budget, 0, changes=rows // 2, **project.catch_up())
    project.compare()
    project.remove()
    server.drop(db)


def report(samples: Samples) -> list[Line]:
    lines = []
    for case in samples.cases():
        for budget, mib in BUDGETS.items():
            peak = samples.figure(case, budget, lambda r: r["rss_peak_mib"])
            if not peak.values:
                continue
            limit = mib + ALLOWED_OVER_MIB
            anon = samples.figure(case, budget, lambda r: r["anon_peak_mib"])
            lines.append(Line(case, f"memory = {budget}: peak RSS · anonymous, MiB", f"{peak.text()} · {anon.text()}", f"≤ {limit}", max(peak.values) <= limit))
            wall = samples.figure(case, budget, lambda r: r["wall_s"])
            lines.append(Line(case, f"memory = {budget}: start to end", wall.text(" s")))
    return lines
