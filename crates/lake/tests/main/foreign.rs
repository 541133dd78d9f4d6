//! Commits of other programs, made by hand: kept where the rows are the same, else undone.

use std::fs;
use std::path::Path;

use alluvium_change::{Error, Identity, Lsn, code};
use alluvium_lake::{ForeignWriters, LakeSettings, Silver};
use serde_json::{Value, json};

use crate::support::{
    Change, Row, TestLake, batch, delete, insert, item_rows, items, open_items, read_items, row,
    update,
};

fn lake(foreign: ForeignWriters) -> TestLake {
    TestLake::with(LakeSettings {
        fsync: false,
        foreign,
        ..LakeSettings::default()
    })
}

/// Rows 1 to 4 in two files, of which 2 is deleted by a vector.
fn started(test: &TestLake) -> Silver {
    let schema = items(Identity::Key(vec![0]));
    let mut silver = open_items(test).unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    let rows = [row(1, "a", "b"), row(2, "a", "b")];
    silver
        .stage_copied(&item_rows(&schema, &rows), Lsn(100))
        .unwrap();
    silver.commit_copied(Lsn(100), 7, u32::MAX).unwrap();
    silver.finish_copy().unwrap();
    let changes = [insert(110, row(3, "a", "b")), insert(110, row(4, "a", "b"))];
    apply(&mut silver, 110, &changes).unwrap();
    apply(&mut silver, 120, &[delete(120, 2)]).unwrap();
    silver
}

fn apply(
    silver: &mut Silver,
    lsn: u64,
    changes: &[crate::support::Change],
) -> Result<Option<u64>, Error> {
    let schema = items(Identity::Key(vec![0]));
    silver.apply(&batch(&schema, changes))?;
    silver.commit(Lsn(lsn))
}

fn expected() -> Vec<Row> {
    [1, 3, 4].map(|id| row(id, "a", "b")).to_vec()
}

/// Actions of the table's log, newest first.
fn actions(dir: &Path, kind: &str) -> Vec<Value> {
    let mut paths: Vec<_> = fs::read_dir(dir.join("_delta_log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths.iter().rev() {
        for line in fs::read_to_string(path).unwrap().lines() {
            let action: Value = serde_json::from_str(line).unwrap();
            found.extend(action.get(kind).cloned());
        }
    }
    found
}

/// Commits as another program.
fn commit(dir: &Path, version: u64, operation: &str, actions: &[Value]) {
    let mut text = json!({"commitInfo": {"operation": operation, "timestamp": 0}}).to_string();
    for action in actions {
        text.push('\n');
        text.push_str(&action.to_string());
    }
    fs::write(dir.join(format!("_delta_log/{version:020}.json")), text).unwrap();
}

fn removed(add: &Value, data_change: bool) -> Value {
    let mut remove = json!({
        "path": add["path"], "deletionTimestamp": 0, "dataChange": data_change,
        "extendedFileMetadata": true, "partitionValues": {}, "size": add["size"],
    });
    if let Some(vector) = add.get("deletionVector") {
        remove["deletionVector"] = vector.clone();
    }
    json!({ "remove": remove })
}

/// The current adds: the file with the vector, and the other.
fn current(dir: &Path) -> (Value, Value) {
    let adds = actions(dir, "add");
    let with_vector = adds.iter().find(|add| add.get("deletionVector").is_some());
    let with_vector = with_vector.unwrap().clone();
    let other = adds.iter().find(|add| add["path"] != with_vector["path"]);
    (with_vector, other.unwrap().clone())
}

/// What another program may do to rows.
fn row_changes(dir: &Path) -> Vec<(&'static str, Vec<Value>)> {
    let (with_vector, other) = current(dir);
    let mut again = other.clone();
    let copy = dir.join("foreign.parquet");
    fs::copy(dir.join(other["path"].as_str().unwrap()), &copy).unwrap();
    again["path"] = "foreign.parquet".into();
    let mut without = with_vector.clone();
    without.as_object_mut().unwrap().remove("deletionVector");
    vec![
        ("DELETE", vec![removed(&other, true)]),
        ("WRITE", vec![json!({"add": again})]),
        // Its state from before the delete, as RESTORE has it.
        (
            "RESTORE",
            vec![removed(&with_vector, true), json!({"add": without.clone()})],
        ),
        // A writer that does not know deletion vectors: the same rows, as it says.
        (
            "OPTIMIZE",
            vec![removed(&with_vector, false), {
                without["dataChange"] = false.into();
                json!({"add": without})
            }],
        ),
    ]
}

#[test]
fn changed_rows_are_put_back() {
    for foreign in [ForeignWriters::Follow, ForeignWriters::Repair] {
        for which in 0..4 {
            for while_open in [true, false] {
                let test = lake(foreign);
                let silver = started(&test);
                let dir = silver.dir().to_owned();
                let version = silver.version() + 1;
                let (operation, what) = row_changes(&dir).swap_remove(which);
                commit(&dir, version, operation, &what);
                let mut silver = if while_open {
                    silver
                } else {
                    drop(silver);
                    let silver = open_items(&test).unwrap();
                    assert_eq!(read_items(&dir), expected(), "{operation}");
                    silver
                };
                apply(&mut silver, 130, &[update(130, row(3, "c", "d"))]).unwrap();
                let rows = vec![row(1, "a", "b"), row(3, "c", "d"), row(4, "a", "b")];
                assert_eq!(read_items(&dir), rows, "{operation}");
                silver.check_index().unwrap();
                drop(silver);
                open_items(&test).unwrap().check_index().unwrap();
            }
        }
    }
}

/// The same rows in another file, as OPTIMIZE writes them: a copy of one without deleted rows.
fn optimized(dir: &Path, version: u64) {
    let (_, other) = current(dir);
    let name = "optimized.parquet";
    fs::copy(dir.join(other["path"].as_str().unwrap()), dir.join(name)).unwrap();
    let mut add = other.clone();
    add["path"] = name.into();
    add["dataChange"] = false.into();
    let actions = [removed(&other, false), json!({ "add": add })];
    commit(dir, version, "OPTIMIZE", &actions);
}

#[test]
fn the_same_rows_in_other_files_are_kept_or_not() {
    for (foreign, is_kept) in [
        (ForeignWriters::Follow, true),
        (ForeignWriters::Repair, false),
    ] {
        let test = lake(foreign);
        let silver = started(&test);
        let dir = silver.dir().to_owned();
        optimized(&dir, silver.version() + 1);
        drop(silver);
        let mut silver = open_items(&test).unwrap();
        let files: Vec<String> = fs_names(&test);
        let has = files.iter().any(|file| file == "optimized.parquet");
        assert_eq!(has, is_kept, "{files:?}");
        apply(&mut silver, 130, &[delete(130, 3)]).unwrap();
        assert_eq!(read_items(&dir), [row(1, "a", "b"), row(4, "a", "b")]);
        silver.check_index().unwrap();
    }
}

/// Whose rows were copied under two snapshots: which of them a row is of must be known until changes have
/// come up to the last.
#[test]
fn files_of_a_copy_are_not_followed_before_its_rows_are_of_one_moment() {
    for while_open in [true, false] {
        let test = lake(ForeignWriters::Follow);
        let schema = items(Identity::Key(vec![0]));
        let mut silver = open_items(&test).unwrap();
        silver.begin_copy(Lsn(100)).unwrap();
        for (snapshot, id) in [(100, 1), (200, 2)] {
            let copied = item_rows(&schema, &[row(id, "a", "b")]);
            silver.stage_copied(&copied, Lsn(snapshot)).unwrap();
            let page = if id == 1 { 1 } else { u32::MAX };
            silver.commit_copied(Lsn(snapshot), 7, page).unwrap();
        }
        silver.finish_copy().unwrap();
        let dir = silver.dir().to_owned();
        let add = actions(&dir, "add").swap_remove(0);
        fs::copy(
            dir.join(add["path"].as_str().unwrap()),
            dir.join("optimized.parquet"),
        )
        .unwrap();
        let mut other = add.clone();
        other["path"] = "optimized.parquet".into();
        other["dataChange"] = false.into();
        let done = [removed(&add, false), json!({ "add": other })];
        commit(&dir, silver.version() + 1, "OPTIMIZE", &done);
        if !while_open {
            drop(silver);
            silver = open_items(&test).unwrap();
        }
        // Before its snapshot a row of another key became this one.
        let moved = Change {
            old: Some(Row::key(3)),
            ..update(190, row(2, "a", "b"))
        };
        let changes = [insert(150, row(3, "a", "b")), moved];
        apply(&mut silver, 190, &changes).unwrap();
        apply(&mut silver, 210, &[delete(210, 2)]).unwrap();
        assert_eq!(read_items(&dir), [row(1, "a", "b")]);
        silver.check_index().unwrap();
    }
}

fn fs_names(test: &TestLake) -> Vec<String> {
    let dir = test.lake.silver_dir("items");
    let table = alluvium_lake::read::open_table(&dir, None).unwrap();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    table.files.iter().map(|file| name(&file.path)).collect()
}

/// The rows stand elsewhere now: the table is opened again, and what was staged comes from bronze.
#[test]
fn an_open_table_follows_by_being_opened_again() {
    let test = lake(ForeignWriters::Follow);
    let mut silver = started(&test);
    let dir = silver.dir().to_owned();
    optimized(&dir, silver.version() + 1);
    let error = apply(&mut silver, 130, &[delete(130, 3)]).unwrap_err();
    assert!(error.is(&code::LAKE_FOREIGN), "{error}");
    drop(silver);
    let mut silver = open_items(&test).unwrap();
    assert_eq!(silver.position(), Lsn(120));
    apply(&mut silver, 130, &[delete(130, 3)]).unwrap();
    assert_eq!(read_items(&dir), [row(1, "a", "b"), row(4, "a", "b")]);
}

#[test]
fn what_may_not_be_undone_is_refused() {
    // By choice.
    let test = lake(ForeignWriters::Refuse);
    let silver = started(&test);
    let dir = silver.dir().to_owned();
    let (operation, what) = row_changes(&dir).swap_remove(0);
    commit(&dir, silver.version() + 1, operation, &what);
    drop(silver);
    let error = open_items(&test).err().unwrap();
    assert!(error.is(&code::LAKE_FOREIGN), "{error}");
    assert!(error.detail().unwrap().contains("DELETE"), "{error:?}");

    // A file that was removed and vacuumed away.
    let test = lake(ForeignWriters::Repair);
    let silver = started(&test);
    let dir = silver.dir().to_owned();
    let (_, other) = current(&dir);
    let (operation, what) = row_changes(&dir).swap_remove(0);
    commit(&dir, silver.version() + 1, operation, &what);
    fs::remove_file(dir.join(other["path"].as_str().unwrap())).unwrap();
    drop(silver);
    let error = open_items(&test).err().unwrap();
    assert!(error.is(&code::LAKE_CORRUPT), "{error}");

    // Something that readers must know.
    let test = lake(ForeignWriters::Follow);
    let silver = started(&test);
    let dir = silver.dir().to_owned();
    let mut protocol = actions(&dir, "protocol").swap_remove(0);
    protocol["writerFeatures"]
        .as_array_mut()
        .unwrap()
        .push("appendOnly".into());
    let version = silver.version() + 1;
    commit(
        &dir,
        version,
        "UPGRADE PROTOCOL",
        &[json!({"protocol": protocol})],
    );
    drop(silver);
    let error = open_items(&test).err().unwrap();
    assert!(error.is(&code::LAKE_FOREIGN), "{error}");
}
