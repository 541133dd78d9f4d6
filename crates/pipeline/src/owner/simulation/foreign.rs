//! Another program that commits to silver, by hand: it knows the log's form, and nothing of us.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use alluvium_change::TableSchema;
use alluvium_testkit::history::{Row, item_rows, write_file};
use serde_json::{Value, json};

use super::log::State;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// All rows in one file; it says that none changed.
    Optimize,
    /// The rows of one file, all of them.
    Delete(usize),
    /// Rows of one file once more.
    Append(usize),
    /// The files of an earlier version.
    Restore(usize),
}

/// The table as the program finds it.
pub(super) struct Found<'a> {
    pub(super) dir: &'a Path,
    pub(super) version: u64,
    pub(super) state: &'a State,
    pub(super) rows: &'a [Row],
    pub(super) earlier: &'a [&'a State],
    pub(super) now_ms: i64,
}

/// Makes the next commit, if there is anything to do and nobody made it before.
pub(super) fn commit(deed: Deed, found: &Found<'_>, schema: &TableSchema, name: &str) {
    let path = found
        .dir
        .join(format!("_delta_log/{:020}.json", found.version + 1));
    let files: Vec<&Value> = found.state.adds.values().collect();
    let nth = |at: usize| {
        at.checked_rem(files.len())
            .and_then(|at| files.get(at).copied())
    };
    let Some(first) = nth(0).filter(|_| !path.exists()) else {
        return;
    };
    let actions: Vec<Value> = match deed {
        Deed::Optimize => {
            let whole = found.dir.join(name);
            write_file(&whole, &item_rows(schema, found.rows));
            touch(&whole, found.now_ms);
            let size = fs::metadata(&whole).unwrap().len();
            let mut actions: Vec<Value> = files
                .iter()
                .map(|add| remove(add, false, found.now_ms))
                .collect();
            let stats = json!({"numRecords": found.rows.len()}).to_string();
            actions.push(json!({"add": {
                "path": name, "partitionValues": {}, "size": size, "modificationTime": found.now_ms,
                "dataChange": false, "stats": stats,
            }}));
            actions
        }
        Deed::Delete(at) => vec![remove(nth(at).unwrap_or(first), true, found.now_ms)],
        Deed::Append(at) => {
            let mut add = nth(at).unwrap_or(first).clone();
            let _ = fs::hard_link(
                found.dir.join(add["path"].as_str().unwrap()),
                found.dir.join(name),
            );
            add["path"] = name.into();
            add["dataChange"] = true.into();
            vec![json!({"add": add})]
        }
        Deed::Restore(at) => {
            let before = at
                .checked_rem(found.earlier.len())
                .and_then(|at| found.earlier.get(at));
            let Some(before) = before else { return };
            let is_there = |add: &&Value| found.dir.join(add["path"].as_str().unwrap()).exists();
            let back: Vec<&Value> = before.adds.values().collect();
            if !back.iter().all(is_there) {
                return;
            }
            let same = |a: &&Value, all: &[&Value]| {
                all.iter()
                    .any(|b| a["path"] == b["path"] && a["deletionVector"] == b["deletionVector"])
            };
            let gone = files
                .iter()
                .filter(|add| !same(add, &back))
                .map(|add| remove(add, true, found.now_ms));
            let came = back.iter().filter(|add| !same(add, &files)).map(|add| {
                let mut add = (*add).clone();
                add["dataChange"] = true.into();
                json!({"add": add})
            });
            gone.chain(came).collect()
        }
    };
    let operation = format!("{deed:?}").to_uppercase();
    let mut text =
        json!({"commitInfo": {"operation": operation, "engineInfo": "another"}}).to_string();
    for action in &actions {
        text.push('\n');
        text.push_str(&action.to_string());
    }
    fs::write(&path, text).unwrap();
    touch(&path, found.now_ms);
}

fn touch(path: &Path, now_ms: i64) {
    let since = Duration::from_millis(u64::try_from(now_ms).unwrap());
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(UNIX_EPOCH + since).unwrap();
}

fn remove(add: &Value, data_change: bool, now_ms: i64) -> Value {
    let mut remove = json!({
        "path": add["path"], "deletionTimestamp": now_ms, "dataChange": data_change,
        "extendedFileMetadata": true, "partitionValues": {}, "size": add["size"],
    });
    if !add["deletionVector"].is_null() {
        remove["deletionVector"] = add["deletionVector"].clone();
    }
    json!({"remove": remove})
}
