//! Silver equals the source: types, identities, transactions, names, partitions.

use alluvium_testkit::{PgCluster, sql, workload};

use crate::settings::Settings;
use crate::setup::Setup;

/// Every row of the type map, with its difficult values, copied and then streamed, on several
/// versions of PostgreSQL.
#[test]
fn every_type_survives_copy_insert_update_and_delete() {
    for version in PgCluster::versions_to_test().unwrap() {
        let pg = PgCluster::start(Some(version), &[]).unwrap();
        pg.execute(sql::TYPES).unwrap();
        if version >= 14 {
            pg.execute(sql::TYPES_14).unwrap();
        }
        let policy = types_policies(&pg);
        let setup = Setup::on(pg, "", "\"types.*\"", &policy);
        setup.catch_up();
        setup.assert_equal();
        setup.pg.execute(sql::TYPES_CHANGES).unwrap();
        setup.catch_up();
        setup.assert_equal();
        // The same rows, copied instead of streamed.
        std::fs::remove_dir_all(setup.lake()).unwrap();
        setup
            .pg
            .execute("SELECT pg_drop_replication_slot('alluvium_test')")
            .unwrap();
        setup.catch_up();
        setup.assert_equal();
    }
}

/// Values that Delta cannot hold are NULL by choice in these tests; the comparer knows them.
pub(crate) fn types_policies(pg: &PgCluster) -> String {
    let tables = pg
        .query_text("SELECT tablename FROM pg_tables WHERE schemaname = 'types' ORDER BY 1")
        .unwrap();
    // What is nested keeps its infinities as text.
    let choice = |table: &str| match table {
        "special_arrays" | "special_ranges" => "string",
        _ => "null",
    };
    let policy = |table: &str| {
        format!(
            "[tables.\"types.{table}\"]\non_invalid = \"{}\"\n",
            choice(table)
        )
    };
    tables.lines().map(policy).collect()
}

const IDENTITIES: &str = "
CREATE TABLE keyed (id int PRIMARY KEY, v text);
CREATE TABLE composite (a int, b text, v numeric(10,2), PRIMARY KEY (b, a));
CREATE TABLE by_index (u text NOT NULL, n int NOT NULL, v text);
CREATE UNIQUE INDEX by_index_u ON by_index (u);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_u;
CREATE TABLE full_no_key (a int, b text, c float8);
ALTER TABLE full_no_key REPLICA IDENTITY FULL;
CREATE TABLE full_with_key (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), big text, n int);
ALTER TABLE full_with_key REPLICA IDENTITY FULL;
CREATE TABLE nothing (a int, at timestamptz DEFAULT now());
INSERT INTO keyed SELECT g, 'v' || g FROM generate_series(1, 100) g;
INSERT INTO composite SELECT g % 10, 'k' || g, g FROM generate_series(1, 100) g;
INSERT INTO by_index SELECT 'u' || g, g, NULL FROM generate_series(1, 100) g;
INSERT INTO full_no_key SELECT g % 5, 'same', 0.5 FROM generate_series(1, 50) g;
INSERT INTO full_with_key (big, n) SELECT repeat(md5(g::text), 400), g FROM generate_series(1, 20) g;
INSERT INTO nothing (a) SELECT g FROM generate_series(1, 10) g;
ALTER TABLE keyed ALTER COLUMN v SET STORAGE EXTERNAL;
";

const IDENTITY_CHANGES: &str = "
UPDATE keyed SET id = id + 1000 WHERE id <= 10;
DELETE FROM keyed WHERE id BETWEEN 20 AND 30;
UPDATE keyed SET v = repeat('long ', 1000) WHERE id BETWEEN 40 AND 45;
UPDATE composite SET a = a + 1, v = v * 2 WHERE b < 'k50';
UPDATE by_index SET u = u || '-new' WHERE n % 3 = 0;
UPDATE by_index SET v = 'x' WHERE n % 2 = 0;
DELETE FROM by_index WHERE n > 90;
DELETE FROM full_no_key WHERE ctid IN (SELECT ctid FROM full_no_key LIMIT 7);
UPDATE full_no_key SET b = 'other' WHERE ctid IN (SELECT ctid FROM full_no_key LIMIT 11);
INSERT INTO full_no_key SELECT 1, 'same', 0.5 FROM generate_series(1, 5);
UPDATE full_with_key SET n = -n;
INSERT INTO nothing (a) SELECT g FROM generate_series(11, 20) g;
";

#[test]
fn every_kind_of_identity_is_mirrored() {
    let setup = Setup::new(IDENTITIES, "\"public.*\"");
    setup.catch_up();
    setup.assert_equal();
    setup.pg.execute(IDENTITY_CHANGES).unwrap();
    // Unchanged large values are not sent; a table that nobody updates is still open to updates.
    setup
        .pg
        .execute("UPDATE keyed SET id = id + 5000 WHERE id BETWEEN 40 AND 45")
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
    setup
        .pg
        .execute("TRUNCATE by_index, full_no_key; INSERT INTO by_index VALUES ('a', 1, 'b')")
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
    assert_eq!(
        setup.status("public.nothing")["identity"],
        "none: append-only"
    );
}

const TRANSACTION_TABLES: &str = "
CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
ALTER TABLE t REPLICA IDENTITY FULL;
CREATE TABLE big (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 50) g;
";

/// Two rows exchange keys in one statement, rows are undone by savepoints, transactions are
/// prepared, rolled back, and of so many rows.
fn transactions(pg: &PgCluster, rows: u32) {
    for script in [
        "BEGIN; UPDATE t SET id = 51 - id; SAVEPOINT a; DELETE FROM t; ROLLBACK TO a; INSERT INTO t VALUES (60, 'kept'); COMMIT",
        "BEGIN; DELETE FROM t WHERE id < 10; ROLLBACK",
        "BEGIN; UPDATE t SET v = 'prepared' WHERE id = 7; PREPARE TRANSACTION 'p'",
        "COMMIT PREPARED 'p'",
        "BEGIN; DELETE FROM t WHERE id = 60; INSERT INTO t VALUES (60, 'again'); UPDATE t SET v = 'twice' WHERE id = 60; COMMIT",
        &format!("INSERT INTO big SELECT g, md5(g::text) FROM generate_series(1, {rows}) g"),
        "BEGIN; UPDATE big SET v = v || 'x' WHERE id % 2 = 0; DELETE FROM big WHERE id % 5 = 0; UPDATE big SET id = -id WHERE id % 7 = 0; COMMIT",
    ] {
        pg.execute(script).unwrap();
    }
}

#[test]
fn transactions_are_followed_as_they_committed() {
    let setup = Setup::new(TRANSACTION_TABLES, "\"public.*\"");
    setup.catch_up();
    transactions(&setup.pg, 200_000);
    setup.catch_up();
    setup.assert_equal();
}

/// Every table of types, inserted, updated and deleted in one transaction, half of which is rolled
/// back.
const ALL_TYPES_AT_ONCE: &str = "
DO $$ DECLARE t regclass; c text; BEGIN
  FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'types'::regnamespace AND relkind = 'r' ORDER BY relname LOOP
    SELECT string_agg(quote_ident(attname), ', ') INTO c FROM pg_attribute
      WHERE attrelid = t AND attnum > 0 AND NOT attisdropped AND attname <> 'id';
    EXECUTE format('INSERT INTO %s (id, %s) SELECT id + 100000, %s FROM %s', t, c, c, t);
    BEGIN
      EXECUTE format('UPDATE %s SET id = -id', t);
      EXECUTE format('DELETE FROM %s', t);
      RAISE EXCEPTION 'back';
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
    EXECUTE format('UPDATE %s SET id = id + 100000 WHERE id > 100000 AND id %% 2 = 0', t);
    EXECUTE format('DELETE FROM %s WHERE id > 100000 AND id %% 3 = 0', t);
  END LOOP;
END $$";

/// However often is committed, whatever memory there is, however the server sends.
#[test]
fn types_identities_and_transactions_are_equal_at_every_setting() {
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, "", "\"public.*\"", "");
    let pg = &setup.pg;
    for settings in Settings::of_any_types_to_test() {
        pg.execute(
            "DROP SCHEMA IF EXISTS types CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public",
        )
        .unwrap();
        for script in [sql::TYPES, IDENTITIES, TRANSACTION_TABLES] {
            pg.execute(script).unwrap();
        }
        setup.start_anew();
        settings.apply(&setup, "\"types.*\", \"public.*\"", &types_policies(pg));
        setup.catch_up();
        for script in [ALL_TYPES_AT_ONCE, IDENTITY_CHANGES] {
            pg.execute(script).unwrap();
        }
        transactions(pg, 5000);
        setup.catch_up();
        setup.assert_equal();
        settings.assert_in_effect(&setup, "keyed");
    }
}

/// A transaction many times larger than what may be held in memory at once is one commit.
#[test]
fn a_transaction_beyond_memory_is_one_commit() {
    let setup = Setup::on(
        PgCluster::start(None, &[]).unwrap(),
        "CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big VALUES (0, 'first')",
        "\"public.*\"",
        "[limits]\nmemory = \"128MiB\"\n",
    );
    setup.catch_up();
    setup.pg
        .execute("BEGIN; INSERT INTO big SELECT g, repeat(md5(g::text), 5) FROM generate_series(1, 600000) g; UPDATE big SET v = 'u' WHERE id % 3 = 0; DELETE FROM big WHERE id % 4 = 0; COMMIT")
        .unwrap();
    let before = setup.sql("SELECT count(*) AS n FROM big");
    assert_eq!(before[0]["n"], 1);
    let version = setup.status("public.big")["silver_version"]
        .as_u64()
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
    assert_eq!(
        setup.status("public.big")["silver_version"]
            .as_u64()
            .unwrap(),
        version + 1
    );
}

#[test]
fn odd_names_partitions_and_inheritance() {
    let setup = Setup::new(
        r#"
        CREATE SCHEMA "Größe ✓"; CREATE SCHEMA sales;
        CREATE TABLE "Größe ✓"."odd ""name"" %41" ("the id" int PRIMARY KEY, "sele ct" text, "ünï" int);
        CREATE TABLE sales.orders (id int PRIMARY KEY, v text);
        CREATE TABLE _hidden (id int PRIMARY KEY);
        CREATE TABLE "UPPER" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "V" text);
        CREATE TABLE parts (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
        CREATE TABLE parts_2 (v text, at date NOT NULL, id int NOT NULL);
        ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
        CREATE TABLE parent (id int PRIMARY KEY, v text);
        CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent);
        CREATE TABLE gen (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
        INSERT INTO "Größe ✓"."odd ""name"" %41" VALUES (1, 'x', 2), (2, NULL, 3);
        INSERT INTO sales.orders VALUES (1, 'a'); INSERT INTO _hidden VALUES (1);
        INSERT INTO "UPPER" ("V") VALUES ('x');
        INSERT INTO parts SELECT g, date '2026-01-01' + g, 'p' FROM generate_series(1, 300) g;
        INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 3);
        INSERT INTO gen (id, a) VALUES (1, 2);
        "#,
        "\"*.*\"",
    );
    setup.catch_up();
    setup.assert_equal();
    setup
        .pg
        .execute(
            r#"
        UPDATE "Größe ✓"."odd ""name"" %41" SET "the id" = 5 WHERE "the id" = 1;
        UPDATE parts SET at = at + 183 WHERE id <= 100; DELETE FROM parts WHERE id > 280;
        UPDATE parent SET v = v || '!'; INSERT INTO "UPPER" ("V") VALUES ('y');
        INSERT INTO gen (id, a) VALUES (2, 3); UPDATE gen SET a = 9 WHERE id = 1;
        DELETE FROM sales.orders; INSERT INTO _hidden VALUES (2);
        "#,
        )
        .unwrap();
    setup.catch_up();
    setup.assert_equal();
}

/// Settings of server, database and role do not change a value.
#[test]
fn settings_of_the_server_change_no_value() {
    let pg = PgCluster::builder()
        .initdb_arg("--encoding=LATIN1")
        .initdb_arg("--locale=C")
        .start()
        .unwrap();
    pg.execute(
        "ALTER DATABASE postgres SET DateStyle = 'German';
         ALTER DATABASE postgres SET IntervalStyle = 'sql_standard';
         ALTER ROLE postgres SET TimeZone = 'America/New_York';
         ALTER ROLE postgres SET extra_float_digits = -5;
         ALTER ROLE postgres SET bytea_output = 'escape';
         CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamptz, i interval, f float8, b bytea, s text, m money);",
    )
    .unwrap();
    let insert = |pg: &PgCluster, from: i32| {
        pg.execute(&format!(
            "INSERT INTO t SELECT g, date '2026-03-04' + g, timestamptz '2026-11-01 01:30:00+00' + g * interval '1 hour',
             g * interval '1 month 2 days 03:04:05.678', g / 3.0::float8, decode(lpad(to_hex(g), 4, '0'), 'hex'), U&'gr\\00fc\\00df' || g, g * 1.25::numeric::money
             FROM generate_series({from}, {from} + 50) g"
        ))
        .unwrap();
    };
    insert(&pg, 1);
    let setup = Setup::on(pg, "", "\"public.*\"", "");
    setup.catch_up();
    insert(&setup.pg, 1000);
    setup.catch_up();
    setup.assert_equal();
}

/// The seeded random workload: key swaps, savepoints, COPY, mass updates, truncates, TOAST.
#[test]
fn a_random_workload_ends_equal() {
    let setup = Setup::new("", "\"public.*\"");
    let url = setup.pg.url("postgres");
    workload::setup(&url, 100).unwrap();
    setup.catch_up();
    for seed in [1, 2] {
        workload::run(&url, seed, &["--txns", "600"]).unwrap();
        setup.catch_up();
        setup.assert_equal();
    }
}
