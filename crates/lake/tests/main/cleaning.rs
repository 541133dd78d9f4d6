//! What no version needs is removed, and nothing else: every version that is to be readable is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Identity, Lsn, TableSchema};
use alluvium_lake::{
    Bronze, CompactionSettings, LakeSettings, RetentionSettings, Silver, SilverSettings, read,
};

use crate::support::{
    Row, TestLake, batch, delete, insert, items, owner, read_items, read_version, row, update,
};

const EAGER: CompactionSettings = CompactionSettings {
    small_files: 3,
    deleted_percent: 10,
    least_deleted_rows: 1,
    kept_percent: u32::MAX,
    sort_small: false,
};
const HOUR: Duration = Duration::from_secs(3600);

fn schema() -> Arc<TableSchema> {
    items(Identity::Key(vec![0]))
}

/// With versions of the last `hours` kept, and one for each six hours before.
fn lake(hours: u32) -> TestLake {
    TestLake::with(LakeSettings {
        fsync: false,
        delta_checkpoint_every_commits: 4,
        retention: RetentionSettings {
            all_versions: hours * HOUR,
            removed_files: hours * HOUR,
            old_versions: 48 * HOUR,
            old_versions_every: 6 * HOUR,
        },
        ..LakeSettings::default()
    })
}

fn open(test: &TestLake) -> Silver {
    let settings = SilverSettings::default();
    Silver::open(&test.lake, &owner("items"), &schema(), settings).unwrap()
}

/// Commits changes, with Delta checkpoints and compactions when they are due.
fn change(silver: &mut Silver, lsn: u64) {
    let id = i64::try_from(lsn).unwrap();
    let mut changes = vec![insert(lsn, row(id, "new", "b"))];
    for back in [1, 2, 5] {
        if id - back > 200 && (id + back) % 3 == 0 {
            changes.push(update(lsn, row(id - back, &format!("{lsn}"), "c")));
        }
    }
    if id > 220 && id % 4 == 0 {
        changes.push(delete(lsn, id - 12));
    }
    // Of a row that is gone there is nothing to update.
    changes.retain(|change| change.new.id == id || silver_has(silver, change.new.id));
    silver.apply(&batch(&schema(), &changes)).unwrap();
    silver.commit(Lsn(lsn)).unwrap();
    if let Some(job) = silver.take_checkpoint_job(false) {
        silver.adopt_checkpoint(job.run()).unwrap();
    }
    if let Some(job) = silver.take_compaction_job(&EAGER).unwrap() {
        let done = job.run(&|_| true).unwrap().unwrap();
        silver.adopt_compaction(done).unwrap();
    }
}

fn silver_has(silver: &Silver, id: i64) -> bool {
    read_items(silver.dir()).iter().any(|row| row.id == id)
}

/// Makes files of a directory, and of its log, older.
fn age(dir: &Path, by: Duration) {
    for dir in [dir.to_owned(), dir.join("_delta_log")] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let file = File::options().write(true).open(&path).unwrap();
                let modified = file.metadata().unwrap().modified().unwrap();
                file.set_modified(modified - by).unwrap();
            }
        }
    }
}

fn count(dir: &Path, end: &str) -> usize {
    let names = fs::read_dir(dir).unwrap();
    names
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().ends_with(end)
        })
        .count()
}

fn rows_of_versions(dir: &Path, versions: impl Iterator<Item = u64>) -> BTreeMap<u64, Vec<Row>> {
    versions
        .map(|version| (version, read_version(dir, version)))
        .collect()
}

#[test]
fn of_a_young_table_nothing_is_removed() {
    let test = lake(1);
    let mut silver = open(&test);
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    for lsn in 201..230 {
        change(&mut silver, lsn);
    }
    let versions = rows_of_versions(silver.dir(), 1..=silver.version());
    let cleaned = silver.cleaning_job(None).run().unwrap();
    assert!(cleaned.data_files.is_empty() && cleaned.log_files.is_empty());
    let again = rows_of_versions(silver.dir(), 1..=silver.version());
    assert_eq!(versions, again);
}

/// Files grow older by hand; when they were removed, the log says, so that nothing may be kept for that.
#[test]
fn what_no_version_needs_goes_and_every_version_that_is_left_can_be_read() {
    let test = lake(0);
    let mut silver = open(&test);
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let mut all: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
    let mut cleaned = None;
    for lsn in 201..300 {
        change(&mut silver, lsn);
        all.insert(silver.version(), read_items(silver.dir()));
        if lsn % 5 == 0 {
            age(silver.dir(), 2 * HOUR);
            cleaned = Some(silver.cleaning_job(cleaned).run().unwrap());
            assert_eq!(read_items(silver.dir()), all[&silver.version()]);
        }
        if lsn % 31 == 0 {
            drop(silver);
            silver = open(&test);
        }
    }
    let cleaned = cleaned.unwrap();
    assert!(
        (3..=9).contains(&cleaned.old_versions.len()),
        "{:?}",
        cleaned.old_versions
    );
    for version in &cleaned.old_versions {
        if let Some(rows) = all.get(version) {
            assert_eq!(
                &read_version(silver.dir(), *version),
                rows,
                "version {version}"
            );
        }
    }
    let log = silver.dir().join("_delta_log");
    assert!(count(&log, ".json") < 60, "{}", count(&log, ".json"));
    let gone = (1..50).filter(|version| !cleaned.old_versions.contains(version));
    for version in gone {
        let opened = read::open_table(silver.dir(), Some(version));
        assert!(opened.is_err(), "version {version} should not be there");
    }
    // Of files that were live at some time, most are gone.
    assert!(count(silver.dir(), ".parquet") < 100);
    silver.check_index().unwrap();
}

#[test]
fn garbage_goes_and_what_is_being_written_stays() {
    let test = lake(1);
    let mut silver = open(&test);
    let mut bronze = Bronze::open(&test.lake, &owner("items"), &schema()).unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    change(&mut silver, 201);
    let staged = batch(&schema(), &[insert(300, row(300, "a", "b"))]);
    let encoded = bronze.stage(&staged).unwrap();
    silver.apply_encoded(&staged, encoded.as_ref()).unwrap();
    for dir in [silver.dir(), bronze.dir()] {
        fs::write(dir.join("part-of-a-crash.parquet"), b"x").unwrap();
        fs::write(dir.join("deletion_vector_of_a_crash.bin"), b"x").unwrap();
        fs::write(dir.join("notes.txt"), b"not ours").unwrap();
        age(dir, 2 * HOUR);
        fs::write(dir.join("part-of-a-foreign-commit.parquet"), b"x").unwrap();
    }
    for cleaned in [
        silver.cleaning_job(None).run().unwrap(),
        bronze.cleaning_job(None).run().unwrap(),
    ] {
        assert_eq!((cleaned.data_files.len(), cleaned.data_bytes), (2, 2));
        let name = |path: &Path| path.to_string_lossy().replace('-', "_");
        let of_crash = |path: &std::path::PathBuf| name(path).contains("of_a_crash");
        assert!(cleaned.data_files.iter().all(of_crash));
    }
    bronze.commit(Lsn(300)).unwrap();
    silver.commit(Lsn(300)).unwrap();
    assert_eq!(read_items(silver.dir()).len(), 2);
    assert!(silver.dir().join("notes.txt").exists());
    assert!(
        silver
            .dir()
            .join("part-of-a-foreign-commit.parquet")
            .exists()
    );
}
