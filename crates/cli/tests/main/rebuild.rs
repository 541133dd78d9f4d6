//! Bronze replayed, by a model of a few lines that shares no code with the program: whole rows.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::setup::Setup;

type Row = Map<String, Value>;

/// The rows of a query that has more memory than a pipeline with the least of it.
fn replay(setup: &Setup, query: &str) -> Value {
    let project = std::fs::read_to_string(setup.dir.path().join("alluvium.toml")).unwrap();
    let roomy = project.replace("memory = \"128MiB\"", "memory = \"2GiB\"");
    std::fs::write(setup.dir.path().join("replay.toml"), roomy).unwrap();
    let args = ["--config", "replay.toml", "sql", query, "--output", "json"];
    let finished = setup.alluvium(&args).success().unwrap();
    serde_json::from_str(&finished.stdout).unwrap()
}

/// What bronze rebuilds, value by value, is what silver holds. `key` names the column that
/// identifies a row; without one, the whole old image does, and equal rows are counted.
pub(crate) fn bronze_rebuilds_silver(setup: &Setup, table: &str, key: Option<&str>) {
    let events = replay(
        setup,
        &format!(
            "SELECT * FROM bronze.{table} \
         ORDER BY _commit_lsn, coalesce(_event_serial, -1), CASE _op WHEN 't' THEN 0 ELSE 1 END"
        ),
    );
    let mut rebuilt = Rebuilt {
        key,
        rows: BTreeMap::new(),
    };
    let events: Vec<&Row> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e.as_object().unwrap())
        .collect();
    // Without a key a row copied is not told from the same row inserted before: what came before the
    // newest copy does not count.
    let copied_at = events
        .iter()
        .filter(|event| event["_op"] == "r" && key.is_none())
        .filter_map(|event| event["_commit_lsn"].as_i64())
        .max();
    for event in events {
        let lsn = event["_commit_lsn"].as_i64();
        if lsn > copied_at || (lsn == copied_at && event["_op"] == "r") {
            rebuilt.replay(event);
        }
    }
    let mut silver: BTreeMap<String, (Row, usize)> = BTreeMap::new();
    for row in setup
        .sql(&format!("SELECT * FROM {table}"))
        .as_array()
        .unwrap()
    {
        let row = row.as_object().unwrap().clone();
        silver.entry(rebuilt.id(&row)).or_insert((row, 0)).1 += 1;
    }
    assert!(!silver.is_empty(), "{table} has no rows to compare");
    let differing: Vec<_> = rebuilt
        .rows
        .keys()
        .chain(silver.keys())
        .filter(|id| rebuilt.rows.get(*id) != silver.get(*id))
        .take(5)
        .map(|id| (id, rebuilt.rows.get(id), silver.get(id)))
        .collect();
    assert!(
        differing.is_empty(),
        "bronze gives other rows for {table}: {differing:?}"
    );
}

/// Rows and how many there are of each, by what identifies them.
struct Rebuilt<'a> {
    key: Option<&'a str>,
    rows: BTreeMap<String, (Row, usize)>,
}

impl Rebuilt<'_> {
    fn id(&self, row: &Row) -> String {
        match self.key {
            Some(key) => row[key].to_string(),
            None => format!("{row:?}"),
        }
    }

    fn replay(&mut self, event: &Row) {
        let mut row: Row = event
            .iter()
            .filter(|(name, _)| !name.starts_with('_'))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let before = event["_before"].as_object();
        match event["_op"].as_str().unwrap() {
            "t" => self.rows.clear(),
            "r" | "c" => self.add(row),
            "u" => {
                let old = before.cloned().unwrap_or_else(|| row.clone());
                let gone = self.remove(&old);
                for name in event["_unchanged"].as_array().into_iter().flatten() {
                    let name = name.as_str().unwrap();
                    // Before the row's copy there is none; the copy then brings the value.
                    let kept = gone.as_ref().map_or(Value::Null, |gone| gone[name].clone());
                    row.insert(name.to_owned(), kept);
                }
                self.add(row);
            }
            "d" => {
                self.remove(&row);
            }
            other => panic!("unknown _op {other}"),
        }
    }

    fn add(&mut self, row: Row) {
        let id = self.id(&row);
        let entry = self.rows.entry(id).or_insert_with(|| (row.clone(), 0));
        // A row copied under two snapshots comes twice under its key: the later one is the row.
        entry.1 = if self.key.is_some() { 1 } else { entry.1 + 1 };
        entry.0 = row;
    }

    /// Takes one such row away. A change from before a row's copy finds none.
    fn remove(&mut self, old: &Row) -> Option<Row> {
        let id = self.id(old);
        let (row, count) = self.rows.get_mut(&id)?;
        let row = row.clone();
        *count -= 1;
        if *count == 0 {
            self.rows.remove(&id);
        }
        Some(row)
    }
}
