"""B1: the initial copy against bare COPY."""
from __future__ import annotations

import data
import procs
from results import Line, Samples

TITLE = "B1: initial copy into bronze and silver, against bare COPY"
CASES = (("orders", "8 columns", 5_000_000, 1_000_000), ("wide", "30 columns", 1_000_000, 200_000))
EMPTY = "empty table"


def bare_copy(context, db: str, table: str, connections: int) -> dict:
    """What PostgreSQL gives to nobody: COPY of ranges of pages into /dev/null."""
    server = context.server()
    pages = server.one(db, f"SELECT pg_relation_size('{table}') / 8192")
    cut = [pages * n // connections for n in range(connections)] + [4_294_967_294]
    argvs = []
    for first, end in zip(cut, cut[1:]):
        where = f"WHERE ctid >= '({first},0)' AND ctid < '({end},0)'" if connections > 1 else ""
        argvs.append([server.program("psql"), "-X", "-q", "-d", server.url(db), "-o", "/dev/null", "-c", f"COPY (SELECT * FROM {table} {where}) TO STDOUT (FORMAT binary)"])
    return procs.run_all(argvs, [server.postmaster])


def our_copy(project, workers: int, compression: str = "zstd") -> dict:
    project.copy_workers, project.compression = workers, compression
    project.forget()
    return project.catch_up()


def run(context) -> None:
    server = context.server()
    server.create("b1empty", data.ORDERS)
    project = context.project("b1empty")
    for round_ in range(context.repeat):
        project.forget()
        context.record(EMPTY, "alluvium", round_, rows=0, **project.catch_up())
    project.remove()
    server.drop("b1empty")
    for table, columns, full, quick in CASES:
        rows = context.size(full, quick)
        db = f"b1{table}"
        case = f"{rows / 1e6:g}M × {columns}"
        server.create(db)
        data.fill(server, db, table, rows)
        project = context.project(db)
        bare_copy(context, db, table, 1)                               # warms the caches for both sides
        for round_ in range(context.repeat):
            for connections in (1, 2):
                context.record(case, f"copy-{connections}", round_, rows=rows, **bare_copy(context, db, table, connections))
                context.record(case, f"alluvium-{connections}", round_, rows=rows, **our_copy(project, connections), lake_mib=lake_mib(project))
            context.record(case, "alluvium-lz4", round_, rows=rows, **our_copy(project, 2, "lz4"), lake_mib=lake_mib(project))
        project.compare()
        project.remove()
        server.drop(db)


def lake_mib(project) -> float:
    return round((project.parquet_bytes("silver") + project.parquet_bytes("bronze")) / 2**20, 1)


def report(samples: Samples) -> list[Line]:
    wall = samples.figure(EMPTY, "alluvium", lambda r: r["wall_s"])
    cpu = samples.figure(EMPTY, "alluvium", lambda r: r["cpu_own_s"])
    lines = [Line(EMPTY, "start to end, subtracted below", f"{wall.text(' s')}, own CPU {cpu.text(' s')}")]

    def rate(r: dict) -> float:
        start = wall.median if r["side"].startswith("alluvium") else 0.0
        return r["rows"] / max(r["wall_s"] - start, 1e-3)

    for case in samples.cases():
        if case == EMPTY:
            continue
        for n in (1, 2):
            side = f"alluvium-{n}"
            ratio = samples.ratio(case, side, "copy-1", rate)
            lines.append(Line(case, f"{n} connection(s): rows/s over one bare COPY", ratio.text("×"), "≥ 0.8×" if n == 2 else "", ratio.median >= 0.8 if n == 2 else None))
            if n == 2:
                lines.append(Line(case, "rows/s over two bare COPYs", samples.ratio(case, side, "copy-2", rate).text("×")))
            ours, theirs = samples.figure(case, side, rate), samples.figure(case, f"copy-{n}", rate)
            lines.append(Line(case, f"{n} connection(s): k rows/s, ours · bare", f"{scaled(ours)} · {scaled(theirs)}"))
            own = samples.figure(case, side, lambda r: (r["cpu_own_s"] - cpu.median) / r["rows"] * 1e6)
            goal = ("≤ 1.2", own.median <= 1.2) if "8 columns" in case else ("", None)
            lines.append(Line(case, f"{n} connection(s): own CPU-s per million rows", own.text(), *goal))
            server = samples.figure(case, side, lambda r: r["cpu_server_s"] / r["rows"] * 1e6)
            lines.append(Line(case, f"{n} connection(s): server CPU-s per million rows, ours · bare",
                              f"{server.text()} · {samples.figure(case, f'copy-{n}', lambda r: r['cpu_server_s'] / r['rows'] * 1e6).text()}"))
            lines.append(Line(case, f"{n} connection(s): peak RSS · of it anonymous, MiB",
                              f"{samples.figure(case, side, lambda r: r['rss_peak_mib']).text()} · {samples.figure(case, side, lambda r: r['anon_peak_mib']).text()}"))
        lz4 = samples.figure(case, "alluvium-lz4", lambda r: (r["cpu_own_s"] - cpu.median) / r["rows"] * 1e6)
        sizes = " · ".join(samples.figure(case, side, lambda r: r["lake_mib"]).text() for side in ("alluvium-2", "alluvium-lz4"))
        lines.append(Line(case, '2 connections, `compression = "lz4"`: rows/s over one bare COPY', samples.ratio(case, "alluvium-lz4", "copy-1", rate).text("×")))
        lines.append(Line(case, '2 connections, `compression = "lz4"`: own CPU-s per million rows', lz4.text()))
        lines.append(Line(case, "lake, MiB: zstd · lz4", sizes))
    return lines


def scaled(figure) -> str:
    return type(figure)([v / 1000 for v in figure.values]).text()
