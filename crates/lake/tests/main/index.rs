//! Saved key indexes: read back where they are right, and never where they are not.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Identity, Lsn, TableSchema};
use alluvium_lake::{CopyState, LakeSettings, Silver, SilverSettings};

use crate::support::{
    TestLake, batch, delete, insert, item_rows, items, owner, read_items, row, truncate, update,
};

const ROWS: i64 = 500;

fn lake(memory_bytes: usize) -> TestLake {
    let settings = LakeSettings {
        fsync: false,
        ..LakeSettings::default()
    };
    TestLake::with_index(settings, memory_bytes)
}

fn schema() -> Arc<TableSchema> {
    items(Identity::Key(vec![0]))
}

fn open(test: &TestLake) -> Silver {
    Silver::open(
        &test.lake,
        &owner("items"),
        &schema(),
        SilverSettings::default(),
    )
    .unwrap()
}

/// Rows 0 to 499, at position 200.
fn filled(test: &TestLake) -> Silver {
    let mut silver = open(test);
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let changes: Vec<_> = (0..ROWS).map(|id| insert(200, row(id, "a", "b"))).collect();
    silver.apply(&batch(&schema(), &changes)).unwrap();
    silver.commit(Lsn(200)).unwrap();
    silver
}

fn change(silver: &mut Silver, lsn: u64) {
    let turn = i64::try_from(lsn).unwrap() * 7 % 100;
    let changes = [
        update(lsn, row(100 + turn, &format!("{lsn}"), "c")),
        delete(lsn, turn),
        insert(lsn, row(10_000 + turn, "new", "d")),
    ];
    silver.apply(&batch(&schema(), &changes)).unwrap();
    silver.commit(Lsn(lsn)).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// The index is what the files say, now and after it was rebuilt.
fn check(test: &TestLake, silver: Silver) {
    silver.check_index().unwrap();
    let rows = silver.num_rows();
    drop(silver);
    let _ = fs::remove_dir_all(test.index_dir("items"));
    let rebuilt = open(test);
    assert!(!rebuilt.index_read_back());
    rebuilt.check_index().unwrap();
    assert_eq!(rebuilt.num_rows(), rows);
    assert_eq!(read_items(rebuilt.dir()).len() as u64, rows);
}

#[test]
fn a_saved_index_is_read_back_and_brought_forward() {
    for memory_bytes in [usize::MAX, 0] {
        let test = lake(memory_bytes);
        let mut silver = filled(&test);
        assert_eq!(silver.index_disk_bytes() > 0, memory_bytes == 0);
        silver.save_index();
        drop(silver);
        let mut silver = open(&test);
        assert!(silver.index_read_back(), "nothing changed");
        silver.check_index().unwrap();
        for lsn in 300..320 {
            change(&mut silver, lsn);
        }
        drop(silver);
        let mut silver = open(&test);
        assert!(silver.index_read_back(), "an older one");
        silver.check_index().unwrap();
        change(&mut silver, 330);
        // What was not committed is in no index.
        silver
            .apply(&batch(
                &schema(),
                &[delete(500, 480), insert(500, row(9_999, "x", "y"))],
            ))
            .unwrap();
        silver.save_index();
        drop(silver);
        let silver = open(&test);
        assert!(silver.index_read_back());
        check(&test, silver);
    }
}

#[test]
fn a_truncated_table_forgets_its_saved_index() {
    for memory_bytes in [usize::MAX, 0] {
        let test = lake(memory_bytes);
        let mut silver = filled(&test);
        silver.save_index();
        let changes = [truncate(300), insert(300, row(7, "after", "it"))];
        silver.apply(&batch(&schema(), &changes)).unwrap();
        silver.commit(Lsn(300)).unwrap();
        drop(silver);
        let silver = open(&test);
        assert_eq!(silver.num_rows(), 1);
        check(&test, silver);
    }
}

#[test]
fn an_index_ahead_of_a_restored_lake_is_not_used() {
    for memory_bytes in [usize::MAX, 0] {
        let test = lake(memory_bytes);
        let mut silver = filled(&test);
        let (dir, backup) = (silver.dir().to_owned(), test.lake.root().join("backup"));
        copy_dir(&dir, &backup);
        change(&mut silver, 300);
        silver.save_index();
        drop(silver);
        fs::remove_dir_all(&dir).unwrap();
        copy_dir(&backup, &dir);
        let kept = test.lake.root().join("kept");
        copy_dir(&test.index_dir("items"), &kept);
        let silver = open(&test);
        assert!(!silver.index_read_back(), "ahead of the table");
        drop(silver);
        // On from there, past the version it was saved at, in another history.
        let _ = fs::remove_dir_all(test.index_dir("items"));
        let mut silver = open(&test);
        for lsn in 301..306 {
            change(&mut silver, lsn);
        }
        drop(silver);
        let _ = fs::remove_dir_all(test.index_dir("items"));
        copy_dir(&kept, &test.index_dir("items"));
        let silver = open(&test);
        assert!(!silver.index_read_back(), "of another history");
        check(&test, silver);
    }
}

#[test]
fn an_index_of_a_table_that_was_made_again_is_not_used() {
    for memory_bytes in [usize::MAX, 0] {
        let test = lake(memory_bytes);
        let mut silver = filled(&test);
        silver.save_index();
        let dir = silver.dir().to_owned();
        drop(silver);
        fs::remove_dir_all(dir).unwrap();
        let mut silver = filled(&test);
        for lsn in 300..310 {
            change(&mut silver, lsn);
        }
        drop(silver);
        // Saved anew meanwhile, or not: never the old one.
        let silver = open(&test);
        check(&test, silver);
    }
}

/// A copy under two snapshots: rows come twice, and changes meet both.
#[test]
fn a_copy_is_resumed_with_an_index_on_disk() {
    let test = lake(0);
    let schema = schema();
    let rows = |from: i64, to: i64, text: &str| {
        let rows: Vec<_> = (from..to).map(|id| row(id, text, "b")).collect();
        item_rows(&schema, &rows)
    };
    let mut silver = open(&test);
    silver.begin_copy(Lsn(100)).unwrap();
    for from in (0..300).step_by(50) {
        silver
            .stage_copied(&rows(from, from + 50, "first"), Lsn(100))
            .unwrap();
        silver
            .commit_copied(Lsn(100), 7, u32::try_from(from).unwrap() + 50)
            .unwrap();
    }
    assert!(silver.index_disk_bytes() > 0);
    silver.save_index();
    drop(silver);
    let mut silver = open(&test);
    assert!(silver.index_read_back());
    assert!(matches!(silver.copy_state(), CopyState::Copying { .. }));
    silver
        .stage_copied(&rows(250, 500, "second"), Lsn(200))
        .unwrap();
    silver.commit_copied(Lsn(200), 7, u32::MAX).unwrap();
    silver.finish_copy().unwrap();
    silver.check_index().unwrap();
    let changes = [
        update(150, row(10, "moved on", "b")),
        update(150, row(260, "held already", "b")),
        truncate(160),
        insert(170, row(20, "after", "b")),
    ];
    silver.apply(&batch(&schema, &changes)).unwrap();
    silver.commit(Lsn(200)).unwrap();
    assert_eq!(
        silver.num_rows(),
        251,
        "the later snapshot's rows survive the truncate"
    );
    check(&test, silver);
}
