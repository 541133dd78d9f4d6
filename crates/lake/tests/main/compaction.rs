//! Files written anew as one: what the log says of it, and when it is given up.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Identity, Lsn, TableSchema};
use alluvium_lake::{Compacted, CompactionSettings, LakeSettings, Silver, SilverSettings, read};
use serde_json::Value;

use crate::support::{
    Change, TestLake, batch, delete, insert, items, owner, read_items, read_version, row, truncate,
    update,
};

const SETTINGS: CompactionSettings = CompactionSettings {
    small_files: 3,
    deleted_percent: 50,
    least_deleted_rows: 1,
    kept_percent: u32::MAX,
    sort_small: false,
};

fn schema() -> Arc<TableSchema> {
    items(Identity::Key(vec![0]))
}

fn lake() -> TestLake {
    TestLake::with(LakeSettings {
        fsync: false,
        ..LakeSettings::default()
    })
}

fn open(test: &TestLake) -> Silver {
    let settings = SilverSettings::default();
    Silver::open(&test.lake, &owner("items"), &schema(), settings).unwrap()
}

/// Three files of ten rows each, and what is to be one file of them.
fn begun(test: &TestLake) -> (Silver, Compacted) {
    let mut silver = open(test);
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    for n in 0..3 {
        let rows = (n * 10..n * 10 + 10).map(|id| insert(200, row(id, "a", "b")));
        let lsn = 200 + u64::try_from(n).unwrap();
        let changes: Vec<_> = rows
            .map(|mut change| {
                change.lsn = lsn;
                change
            })
            .collect();
        silver.apply(&batch(&schema(), &changes)).unwrap();
        silver.commit(Lsn(lsn)).unwrap();
    }
    let job = silver.take_compaction_job(&SETTINGS).unwrap().unwrap();
    assert_eq!(job.rows(), 30);
    let done = job.run(&|_| true).unwrap().unwrap();
    (silver, done)
}

fn parquet_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".parquet")).count()
}

fn actions(dir: &Path, version: u64) -> Vec<Value> {
    let path = dir.join(format!("_delta_log/{version:020}.json"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn it_changes_no_row_and_brings_what_was_deleted_meanwhile() {
    let test = lake();
    let (mut silver, done) = begun(&test);
    let meanwhile = [
        delete(300, 3),
        update(300, row(15, "new", "b")),
        delete(300, 29),
    ];
    silver.apply(&batch(&schema(), &meanwhile)).unwrap();
    silver.commit(Lsn(300)).unwrap();
    let before = read_items(silver.dir());
    let version = silver.adopt_compaction(done).unwrap().unwrap();
    assert_eq!(version, silver.version());
    assert_eq!(silver.position(), Lsn(300));
    assert_eq!(read_items(silver.dir()), before);
    assert_eq!(read_version(silver.dir(), version - 1), before);
    let table = read::open_table(silver.dir(), None).unwrap();
    assert_eq!(table.files.len(), 2);
    silver.check_index().unwrap();
    let mut kinds = Vec::new();
    for action in actions(silver.dir(), version) {
        let (kind, said) = action.as_object().unwrap().iter().next().unwrap();
        match kind.as_str() {
            "add" => {
                assert_eq!(said["dataChange"], false);
                assert_eq!(said["deletionVector"]["cardinality"], 3);
                assert!(
                    said["stats"]
                        .as_str()
                        .unwrap()
                        .contains("\"tightBounds\":false")
                );
            }
            "remove" => assert_eq!(said["dataChange"], false),
            "commitInfo" => assert_eq!(said["operation"], "OPTIMIZE"),
            _ => {}
        }
        kinds.push(kind.clone());
    }
    kinds.sort();
    assert_eq!(
        kinds,
        ["add", "commitInfo", "remove", "remove", "remove", "txn"]
    );
    // The moved rows are found.
    let after = [update(400, row(20, "moved", "b")), delete(400, 0)];
    silver.apply(&batch(&schema(), &after)).unwrap();
    silver.commit(Lsn(400)).unwrap();
    assert_eq!(read_items(silver.dir()).len(), before.len() - 1);
    silver.check_index().unwrap();
}

#[test]
fn a_file_all_of_whose_rows_went_meanwhile_does_not_come_back() {
    let test = lake();
    let (mut silver, done) = begun(&test);
    let all: Vec<_> = (10..20).map(|id| delete(300, id)).collect();
    silver.apply(&batch(&schema(), &all)).unwrap();
    silver.commit(Lsn(300)).unwrap();
    assert!(silver.adopt_compaction(done).unwrap().is_some());
    let ids: Vec<i64> = read_items(silver.dir()).iter().map(|row| row.id).collect();
    assert_eq!(ids, (0..10).chain(20..30).collect::<Vec<_>>());
    silver.check_index().unwrap();
}

#[test]
fn it_is_given_up_when_the_files_are_others() {
    // Opened again; emptied; with other columns.
    for case in 0..3 {
        let test = lake();
        let (mut silver, done) = begun(&test);
        let files = parquet_files(silver.dir());
        match case {
            0 => {
                silver = {
                    drop(silver);
                    open(&test)
                }
            }
            1 => {
                silver.apply(&batch(&schema(), &[truncate(300)])).unwrap();
                silver.commit(Lsn(300)).unwrap();
            }
            _ => {
                let mut columns = schema().columns.clone();
                let mut added = columns[1].clone();
                added.name = "more".into();
                columns.push(added);
                let old = schema();
                let wider = TableSchema::new(
                    old.id.clone(),
                    old.relation_oid,
                    columns,
                    old.identity.clone(),
                );
                silver.add_columns(&wider, &[]).unwrap();
            }
        }
        let version = silver.version();
        assert_eq!(silver.adopt_compaction(done).unwrap(), None, "case {case}");
        assert_eq!(silver.version(), version);
        assert_eq!(
            parquet_files(silver.dir()),
            files - 1,
            "case {case}: it is removed"
        );
        silver.check_index().unwrap();
    }
}

#[test]
fn it_is_given_up_when_it_is_told_to() {
    let test = lake();
    let (mut silver, done) = begun(&test);
    let files = parquet_files(silver.dir());
    drop(done);
    assert_eq!(parquet_files(silver.dir()), files - 1);
    let job = silver.take_compaction_job(&SETTINGS).unwrap().unwrap();
    assert!(job.run(&|_| false).unwrap().is_none());
    assert_eq!(parquet_files(silver.dir()), files - 1);
}

#[test]
fn commits_wait_where_their_deletion_vectors_would_fill_the_disk() {
    let test = TestLake::with(LakeSettings {
        fsync: false,
        compaction: CompactionSettings {
            // No room at all.
            kept_percent: 0,
            ..SETTINGS
        },
        ..LakeSettings::default()
    });
    let settings = SilverSettings {
        longest_pause: Duration::from_secs(3600),
        ..SilverSettings::default()
    };
    let schema = schema();
    let mut silver = Silver::open(&test.lake, &owner("items"), &schema, settings).unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let mut apply = |lsn: u64, changes: &[Change]| {
        silver.apply(&batch(&schema, changes)).unwrap();
        let version = silver.commit_in_time(Lsn(lsn)).unwrap();
        (version, silver.held_until().is_some())
    };
    let rows: Vec<_> = (0..30).map(|id| insert(200, row(id, "a", "b"))).collect();
    assert_eq!(apply(200, &rows), (Some(3), false));
    // Nothing was deleted by the last one; then something was.
    let later = [update(300, row(7, "c", "d"))];
    assert_eq!(apply(300, &later), (Some(4), false));
    assert_eq!(apply(400, &[delete(400, 8)]), (None, true));
    assert_eq!(apply(500, &[delete(500, 9)]), (None, true));
    assert_eq!(read_items(silver.dir()).len(), 30);
    assert_eq!(silver.position(), Lsn(500));
    assert_eq!(silver.commit_held().unwrap(), Some(5));
    assert_eq!(read_items(silver.dir()).len(), 28);
}
