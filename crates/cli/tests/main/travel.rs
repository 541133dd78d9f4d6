//! Tables as they were, and what `history` says of them.

use serde_json::{Value, json};

use crate::setup::Setup;

#[test]
fn every_version_that_history_tells_of_is_read_as_it_was() {
    let setup = Setup::new(
        "CREATE TABLE vectors (id int PRIMARY KEY, v int);
         INSERT INTO vectors SELECT g, g FROM generate_series(1, 1000) g;
         CREATE TABLE copies (LIKE vectors INCLUDING ALL);
         INSERT INTO copies SELECT * FROM vectors",
        "\"public.*\"",
    );
    setup.configure(
        "\"public.*\"",
        "[tables.\"public.copies\"]\nmerge_mode = \"copy_on_write\"\n",
    );
    setup.catch_up();
    let tables = ["vectors", "copies"];
    let newest = |table: &str| {
        let history = setup.alluvium(&["history", table, "--limit", "1", "--output", "json"]);
        let history: Value = serde_json::from_str(&history.success().unwrap().stdout).unwrap();
        history[0].clone()
    };
    let mut seen = vec![(tables.map(newest), (1000, 500_500))];
    for (changes, expected) in [
        (
            "UPDATE {t} SET v = v + 1000 WHERE id <= 10",
            (1000, 510_500),
        ),
        ("DELETE FROM {t} WHERE id > 900", (900, 415_450)),
        ("INSERT INTO {t} VALUES (5000, 50)", (901, 415_500)),
        ("TRUNCATE {t}; INSERT INTO {t} VALUES (1, 1)", (1, 1)),
    ] {
        for table in tables {
            let changes = changes.replace("{t}", table);
            setup
                .pg
                .execute(&format!("BEGIN; {changes}; COMMIT"))
                .unwrap();
        }
        setup.catch_up();
        seen.push((tables.map(newest), expected));
    }
    // The same rows in other files: no version before it is another one for that.
    setup.alluvium(&["optimize"]).success().unwrap();
    for (commits, (count, sum)) in &seen {
        for (table, commit) in tables.iter().zip(commits) {
            let (version, time) = (&commit["version"], commit["committed_at"].as_str().unwrap());
            for moment in [
                format!("VERSION AS OF {version}"),
                format!("TIMESTAMP AS OF '{time}'"),
            ] {
                let sql = format!("SELECT count(*) AS n, sum(v) AS s FROM {table} {moment}");
                assert_eq!(
                    setup.sql(&sql)[0],
                    json!({"n": count, "s": sum}),
                    "{sql}: {commit}"
                );
            }
        }
    }
    for (nth, table) in tables.iter().enumerate() {
        let told = |key: &str| {
            seen.iter()
                .map(|(commits, _)| commits[nth][key].clone())
                .collect::<Vec<_>>()
        };
        // The last commit of a copy says that it is complete.
        let rows = [told("rows_added"), told("rows_deleted")];
        assert_eq!(rows[0], [0, 10, 0, 1, 1].map(Value::from), "{table}");
        assert_eq!(rows[1], [0, 10, 100, 0, 901].map(Value::from), "{table}");
        assert!(told("lsn").iter().all(Value::is_string), "{seen:?}");
    }
    let gone = setup.alluvium(&["sql", "SELECT * FROM vectors VERSION AS OF 1000"]);
    assert!(
        gone.stderr.contains("error[AL-LAKE-008]"),
        "{}",
        gone.stderr
    );
}
