//! The change data feed, as delta-rs reads it: followed version by version it leads to the table.

use alluvium_testkit::check;

use crate::setup::Setup;

/// So many changes of a kind.
fn count(kinds: &str, kind: &str) -> u64 {
    let kinds: serde_json::Value = serde_json::from_str(kinds).unwrap();
    kinds[kind].as_u64().unwrap_or(0)
}

#[test]
fn the_feed_leads_from_version_to_version() {
    let setup = Setup::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text, n numeric(10,2));
         ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL;
         CREATE TABLE copied (LIKE t INCLUDING ALL);
         INSERT INTO t SELECT g, 'old', repeat('x', 3000), g FROM generate_series(1, 300) g;
         INSERT INTO copied SELECT * FROM t",
        "\"public.*\"",
    );
    let copied =
        "[tables.\"public.copied\"]\nmerge_mode = \"copy_on_write\"\ncommit_every = \"1s\"\n";
    setup.configure("\"public.*\"", copied);
    setup.catch_up();
    // Also for a table that has been there without it.
    let feeds = "change_data_feed = true\n";
    setup.configure(
        "\"public.*\"",
        &format!("{copied}{feeds}[tables.\"public.t\"]\n{feeds}"),
    );
    setup.catch_up();
    let version = |table: &str| {
        let status = setup.status(&format!("public.{table}"));
        status["silver_version"].as_u64().unwrap()
    };
    let from = [version("t"), version("copied")];
    for table in ["t", "copied"] {
        let changes = format!(
            "UPDATE {table} SET v = 'new' WHERE id <= 100;
             UPDATE {table} SET id = id + 1000 WHERE id BETWEEN 101 AND 110;
             DELETE FROM {table} WHERE id BETWEEN 111 AND 130;
             INSERT INTO {table} VALUES (500, 'in', 'b', 1), (501, 'and out', 'b', 1);
             DELETE FROM {table} WHERE id = 501; DELETE FROM {table} WHERE id = 200;
             INSERT INTO {table} VALUES (200, 'again', 'b', 2)"
        );
        setup
            .pg
            .execute(&format!("BEGIN; {changes}; COMMIT"))
            .unwrap();
    }
    setup.catch_up();
    for (table, from) in ["t", "copied"].into_iter().zip(from) {
        let dir = setup.lake().join("silver").join(table);
        let kinds = check::follow_feed(&dir, "id", from).unwrap();
        // Row 200 was deleted and inserted in one transaction: an update.
        for (kind, expected) in [
            ("update_preimage", 101),
            ("update_postimage", 101),
            ("delete", 30),
            ("insert", 11),
        ] {
            assert_eq!(count(&kinds, kind), expected, "{table}, {kind}: {kinds}");
        }
    }
    // Many versions, a truncate among them; then a new copy.
    for round in 0..5 {
        let mut changes = format!(
            "UPDATE t SET v = 'round {round}' WHERE id % 3 = {round} % 3; DELETE FROM t WHERE id % 17 = {round};
             INSERT INTO t VALUES ({round} + 2000, 'new', 'b', 1)"
        );
        if round == 3 {
            changes.push_str("; TRUNCATE t; INSERT INTO t SELECT g, 'after', 'b', 1 FROM generate_series(1, 50) g");
        }
        setup.pg.execute(&changes).unwrap();
        setup.catch_up();
    }
    check::follow_feed(&setup.lake().join("silver/t"), "id", from[0]).unwrap();
    setup.alluvium(&["resync", "t"]).success().unwrap();
    setup.catch_up();
    setup.assert_equal();
    // And off again.
    setup.configure("\"public.*\"", copied);
    setup.pg.execute("UPDATE t SET v = 'untold'").unwrap();
    setup.catch_up();
    setup.assert_equal();
    let last = setup
        .lake()
        .join(format!("silver/t/_delta_log/{:020}.json", version("t")));
    assert!(!std::fs::read_to_string(last).unwrap().contains("\"cdc\""));
}
