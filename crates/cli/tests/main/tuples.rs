//! Values in binary form: equal to the source, given up where a type forbids it, refused by name.

use alluvium_testkit::{PgCluster, sql};

use crate::equality::types_policies;
use crate::setup::{CAUGHT_UP, Setup, terminate};
use crate::streamed::SMALL_PIECES;

/// Keeps of the type map what binary tuples carry.
const KEEP_WHAT_IS_EXACT: &str = r#"
DO $$
DECLARE
    of_column record;
    of_table regclass;
BEGIN
    FOR of_column IN
        SELECT a.attrelid::regclass AS name, quote_ident(a.attname) AS quoted
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.relnamespace = 'types'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
          AND a.attname <> 'id' AND (t.typname = 'numeric' AND ((a.atttypmod - 4) >> 16) NOT BETWEEN 1 AND 38
            OR t.typname <> ALL ('{numeric,bool,int2,int4,int8,oid,float4,float8,money,text,varchar,bpchar,name,json,jsonb,uuid,bytea,date,
              timestamp,timestamptz,mood,positive,price,net_price,short,citext}'))
    LOOP
        EXECUTE format('ALTER TABLE %s DROP COLUMN %s', of_column.name, of_column.quoted);
    END LOOP;
    FOR of_table IN
        SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'types'::regnamespace AND c.relkind = 'r'
          AND (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) = 1
    LOOP
        EXECUTE format('DROP TABLE %s', of_table);
    END LOOP;
END
$$"#;

#[test]
fn every_type_that_may_be_binary_survives_the_stream() {
    for version in PgCluster::versions_to_test().unwrap() {
        if version < 14 {
            continue;
        }
        let pg = PgCluster::start(Some(version), &[]).unwrap();
        pg.execute(sql::TYPES).unwrap();
        pg.execute(KEEP_WHAT_IS_EXACT).unwrap();
        pg.execute("ALTER TABLE types.numbers REPLICA IDENTITY FULL")
            .unwrap();
        let columns = "SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
                       WHERE relnamespace = 'types'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped";
        let columns: u32 = pg.query_text(columns).unwrap().trim().parse().unwrap();
        assert!(columns > 40, "{columns} columns are left");
        let policy = types_policies(&pg);
        let setup = Setup::on(pg, "", "\"types.*\"", &policy);
        setup.set_in_source("tuples = \"binary\"");
        setup.catch_up();
        setup.pg.execute(sql::TYPES_CHANGES).unwrap();
        let ended = setup.alluvium(CAUGHT_UP).success().unwrap();
        assert!(ended.stderr.contains("tuples=binary"), "{}", ended.stderr);
        setup.assert_equal();
    }
}

const TIMES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, a timestamptz, b timestamptz, c float8, d float8, big text);
    ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
    ALTER TABLE t REPLICA IDENTITY FULL;
    INSERT INTO t SELECT g, now(), now(), g / 3.0, g / 7.0, repeat('x', 3000) FROM generate_series(1, 200) g;";

fn rows(from: u32, to: u32, more: &str) -> String {
    format!(
        "INSERT INTO t SELECT g, now(), now() + g * interval '1 second', g / 3.0, g / 7.0, repeat('y', 2500){more}
         FROM generate_series({from}, {to}) g;"
    )
}

/// A column that is read as text only is added within a transaction that comes in pieces, then a
/// table with another one joins: the stream starts again as text, and nothing is lost or misread.
#[test]
fn the_stream_goes_back_to_text_when_a_type_demands_it() {
    let pg = PgCluster::start(None, SMALL_PIECES).unwrap();
    let setup = Setup::on(pg, TIMES, "\"public.*\"", "[limits]\nmemory = \"128MiB\"\n");
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    setup.pg.execute(&rows(201, 300, "")).unwrap();
    setup.wait(&running, "rows came in binary form", || {
        setup.status("public.t")["silver_rows"] == 300
    });
    assert!(running.stderr().contains("tuples=binary"));
    let script = [
        "BEGIN;",
        &rows(1001, 2000, ""),
        "SAVEPOINT s; UPDATE t SET d = -d WHERE id % 3 = 0;",
        "ALTER TABLE t ADD COLUMN span interval DEFAULT '1 day';",
        &rows(2001, 3000, ", '1 year 2 days'::interval"),
        "SAVEPOINT gone;",
        &rows(5001, 5500, ", NULL"),
        "ROLLBACK TO gone; DELETE FROM t WHERE id % 10 = 7; COMMIT;",
    ];
    setup.pg.execute(&script.concat()).unwrap();
    setup
        .pg
        .execute("CREATE TABLE listed (id int PRIMARY KEY, tags text[]); INSERT INTO listed VALUES (1, '{a,NULL}')")
        .unwrap();
    let count = |table: &str| -> u64 {
        let count = setup
            .pg
            .query_text(&format!("SELECT count(*) FROM {table}"));
        count.unwrap().trim().parse().unwrap()
    };
    setup.wait(&running, "the rows are there", || {
        setup.status("public.t")["silver_rows"] == count("t")
    });
    setup.wait(&running, "the new table is live", || {
        setup.status("public.listed")["phase"] == "live"
    });
    setup
        .pg
        .execute("INSERT INTO listed VALUES (2, '{b}'); UPDATE t SET span = '3 days' WHERE id < 50")
        .unwrap();
    let said = terminate(running);
    let again = "the stream starts again with values as text";
    assert_eq!(said.matches(again).count(), 1, "{said}");
    let ended = setup.alluvium(CAUGHT_UP).success().unwrap();
    assert!(ended.stderr.contains("tuples=text"), "{}", ended.stderr);
    setup.assert_equal();
}

/// Where binary is insisted on, the column that forbids it is named: when it comes in the middle of a
/// stream, and at the next start. Nothing is lost by it.
#[test]
fn binary_by_force_names_what_forbids_it() {
    const NAMED: &str = "error[AL-PG-019]: table \"public.t\", column \"span\"";
    let setup = Setup::new(TIMES, "\"public.*\"");
    setup.set_in_source("tuples = \"binary\"");
    let mut running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    assert!(running.stderr().contains("tuples=binary"));
    setup
        .pg
        .execute("ALTER TABLE t ADD COLUMN span interval; UPDATE t SET span = '1 day' WHERE id = 1")
        .unwrap();
    let ended = running.wait_timeout(crate::setup::PATIENCE).unwrap();
    let said = running.stderr();
    assert_eq!(ended.and_then(|status| status.code()), Some(1), "{said}");
    assert!(said.contains(NAMED), "{said}");
    let ended = setup.alluvium(CAUGHT_UP);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(NAMED), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("set tuples = \"auto\""),
        "{}",
        ended.stderr
    );
    let doctor = setup.alluvium(&["doctor"]);
    assert!(
        doctor.stdout.contains("column \"span\""),
        "{}",
        doctor.stdout
    );
    setup.configure("\"public.*\"", "");
    setup.catch_up();
    setup.assert_equal();
}

/// Nothing is made on a server that cannot do what was insisted on.
#[test]
fn binary_by_force_is_refused_before_anything_is_made() {
    for version in PgCluster::versions_to_test().unwrap() {
        let pg = PgCluster::start(Some(version), &[]).unwrap();
        let create = "CREATE TABLE listed (id int PRIMARY KEY, tags text[])";
        let setup = Setup::on(pg, create, "\"public.*\"", "");
        setup.set_in_source("tuples = \"binary\"");
        let ended = setup.alluvium(CAUGHT_UP);
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("error[AL-PG-019]"),
            "{}",
            ended.stderr
        );
        let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)";
        assert_eq!(setup.pg.query_text(made).unwrap().trim(), "0");
        setup.configure("\"public.*\"", "");
        setup.catch_up();
    }
}

/// A table that is not followed, but published, has a type that the server cannot send in binary form.
#[test]
fn a_type_without_binary_form_in_another_table_is_survived() {
    let setup = Setup::new(
        &format!(
            "{TIMES} CREATE TABLE other (id int PRIMARY KEY, acl aclitem[]);
             CREATE PUBLICATION alluvium_test FOR ALL TABLES"
        ),
        "\"public.t\"",
    );
    let ended = setup.alluvium(CAUGHT_UP).success().unwrap();
    assert!(ended.stderr.contains("tuples=binary"), "{}", ended.stderr);
    setup.pg.execute(&rows(1001, 1100, "")).unwrap();
    setup
        .pg
        .execute("INSERT INTO other VALUES (1, ARRAY['postgres=r/postgres'::aclitem])")
        .unwrap();
    setup.pg.execute(&rows(2001, 2100, "")).unwrap();
    let ended = setup.alluvium(CAUGHT_UP).success().unwrap();
    let again = "the stream starts again with values as text";
    assert!(ended.stderr.contains(again), "{}", ended.stderr);
    setup.assert_equal_but(&["--tables", "public.t"]);
}
