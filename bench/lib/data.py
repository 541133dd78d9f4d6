"""The tables and loads of the benchmarks. All of it is the same on every run: a fixed permutation, and random numbers from fixed seeds."""
from __future__ import annotations

import random

from servers import Server

# As in the measurements that the goals come from: 8 columns, about 110 bytes a row.
ORDERS = """CREATE TABLE orders (id bigint PRIMARY KEY, customer_id int, status text, amount numeric(12,2), note varchar(60),
  created_at timestamptz, updated_at timestamp, qty int)"""
ORDERS_ROW = """g, (g * 7919 % 100003)::int, (ARRAY['new','paid','packed','sent','done'])[1 + g % 5], (g * 31 % 1000000) / 100.0,
  'note ' || md5(g::text), '2026-01-01'::timestamptz + g * interval '1 second', '2026-01-01'::timestamp + g * interval '3 seconds', (g % 17)::int"""

WIDE_TYPES = (["bigint"] * 5 + ["int"] * 8 + ["text"] * 6 + ["numeric(12,2)"] * 3 + ["timestamptz"] * 3 + ["float8"] * 2 + ["boolean"] + ["date"])
WIDE_VALUE = {
    "bigint": "g * {n}", "int": "(g * {n} % 1000003)::int", "text": "'v{n} ' || (g * {n} % 100000)", "numeric(12,2)": "(g * {n} % 1000000) / 100.0",
    "timestamptz": "'2026-01-01'::timestamptz + g * interval '{n} seconds'", "float8": "g / {n}.0", "boolean": "g % {n} = 0",
    "date": "'2026-01-01'::date + (g % 1000)::int",
}
WIDE = "CREATE TABLE wide (id bigint PRIMARY KEY, " + ", ".join(f"c{n} {t}" for n, t in enumerate(WIDE_TYPES, 1)) + ")"
WIDE_ROW = "g, " + ", ".join(WIDE_VALUE[t].format(n=n + 1) for n, t in enumerate(WIDE_TYPES, 1))

TABLES = {"orders": (ORDERS, ORDERS_ROW), "wide": (WIDE, WIDE_ROW)}
# Coprime to all sizes used: i -> i * STEP % n visits every row once, in no order a disk would like.
STEP = 7_368_787


def random_ids(nth: int, count: int, rows: int) -> list[int]:
    """So many different ids for the nth transaction. The permutation would not do for updates that go over a table more than once: it comes
    to the rows in the same order again, which are next to each other by then."""
    return random.Random(nth).sample(range(1, rows + 1), count)


def fill(server: Server, db: str, table: str, rows: int) -> None:
    """Makes the table and its rows, then brings it to rest: hint bits set, all on disk."""
    create, row = TABLES[table]
    server.sql(db, create, f"INSERT INTO {table} SELECT {row} FROM generate_series(1::bigint, {rows}) g", f"VACUUM (FREEZE, ANALYZE) {table}", "CHECKPOINT")


def fill_orders_with_progress(server: Server, db: str, rows: int) -> None:
    """A database with `orders`, and with `progress`: one row, by which is seen how far changes have come."""
    server.create(db)
    fill(server, db, "orders", rows)
    server.sql(db, "CREATE TABLE progress (id int PRIMARY KEY, n bigint)", "INSERT INTO progress VALUES (1, -1)")


def insert(server: Server, db: str, table: str, first: int, count: int, per_transaction: int) -> int:
    """Rows first.., so many to a transaction. Returns the number of changes."""
    row = TABLES[table][1]
    run(server, db, f"""DO $$ BEGIN
      FOR i IN 0..{count // per_transaction} - 1 LOOP
        INSERT INTO {table} SELECT {row} FROM generate_series({first} + i::bigint * {per_transaction}, {first} + (i + 1)::bigint * {per_transaction} - 1) g;
        COMMIT;
      END LOOP;
    END $$""")
    return count // per_transaction * per_transaction


def permuted(rows: int, per_transaction: int) -> str:
    return f"ARRAY(SELECT 1 + (i::bigint * {per_transaction} + k) * {STEP} % {rows} FROM generate_series(0, {per_transaction} - 1) k)"


def update(server: Server, db: str, rows: int, count: int, per_transaction: int = 1000) -> int:
    """Rows all over the table, each at most once in `rows` changes."""
    run(server, db, f"""DO $$ BEGIN
      FOR i IN 0..{count // per_transaction} - 1 LOOP
        UPDATE orders SET amount = amount + 1, status = 'changed', updated_at = updated_at + interval '1 hour' WHERE id = ANY ({permuted(rows, per_transaction)});
        COMMIT;
      END LOOP;
    END $$""")
    return count // per_transaction * per_transaction


def delete(server: Server, db: str, rows: int, count: int, per_transaction: int = 1000) -> int:
    run(server, db, f"""DO $$ BEGIN
      FOR i IN 0..{count // per_transaction} - 1 LOOP
        DELETE FROM orders WHERE id = ANY ({permuted(rows, per_transaction)});
        COMMIT;
      END LOOP;
    END $$""")
    return count // per_transaction * per_transaction


def run(server: Server, db: str, statement: str) -> None:
    """A load that nobody measures need not wait for the disk."""
    server.sql(db, "SET synchronous_commit = off", statement, "SET synchronous_commit = on", "SELECT txid_current()")
