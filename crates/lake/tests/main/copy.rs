//! The initial copy: resumable, and reconciled with the stream.

use std::collections::BTreeMap;

use alluvium_change::{Identity, Lsn, code};
use alluvium_lake::{CopyState, OnConflict, Silver, SilverSettings};

use crate::support::{
    Change, TestLake, batch, delete, insert, item_rows, items, owner, read_items, row, truncate,
    update,
};

fn open(test: &TestLake) -> Silver {
    open_with(test, OnConflict::Stop)
}

fn open_with(test: &TestLake, on_conflict: OnConflict) -> Silver {
    let settings = SilverSettings {
        on_conflict,
        ..SilverSettings::default()
    };
    Silver::open(
        &test.lake,
        &owner("items"),
        &items(Identity::Key(vec![0])),
        settings,
    )
    .unwrap()
}

#[test]
fn a_copy_is_resumed_where_it_was() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let mut silver = open(&test);
    assert_eq!(silver.copy_state(), CopyState::None);
    silver.begin_copy(Lsn(100)).unwrap();
    silver
        .stage_copied(&item_rows(&schema, &[row(1, "a", "b")]), Lsn(100))
        .unwrap();
    silver.commit_copied(Lsn(100), 7, 50).unwrap();
    silver
        .stage_copied(&item_rows(&schema, &[row(2, "a", "b")]), Lsn(100))
        .unwrap();
    // A crash: the second range was not committed.
    drop(silver);
    let mut silver = open(&test);
    let copying = |progress: &[(u32, u32)], last: u64| CopyState::Copying {
        progress: progress.iter().copied().collect::<BTreeMap<_, _>>(),
        first_snapshot: Lsn(100),
        last_snapshot: Lsn(last),
    };
    assert_eq!(silver.copy_state(), copying(&[(7, 50)], 100));
    assert_eq!(silver.num_rows(), 1);
    assert_eq!(silver.position(), Lsn::ZERO);
    silver
        .stage_copied(&item_rows(&schema, &[row(2, "c", "d")]), Lsn(200))
        .unwrap();
    silver.commit_copied(Lsn(200), 7, u32::MAX).unwrap();
    silver.commit_copied(Lsn(200), 8, 0).unwrap();
    assert_eq!(silver.copy_state(), copying(&[(7, u32::MAX), (8, 0)], 200));
    silver.finish_copy().unwrap();
    drop(silver);
    let mut silver = open(&test);
    assert_eq!(silver.copy_state(), CopyState::Complete);
    assert_eq!(silver.position(), Lsn(99));
    assert_eq!(
        read_items(silver.dir()),
        [row(1, "a", "b"), row(2, "c", "d")]
    );

    silver.stop(Lsn(300), "for the test").unwrap();
    assert_eq!(open(&test).stopped_at(), Some(Lsn(300)));
    silver.begin_copy(Lsn(400)).unwrap();
    drop(silver);
    let silver = open(&test);
    assert_eq!(silver.stopped_at(), None);
    let empty = BTreeMap::new();
    assert_eq!(
        silver.copy_state(),
        CopyState::Copying {
            progress: empty,
            first_snapshot: Lsn(400),
            last_snapshot: Lsn(400)
        }
    );
    assert_eq!(silver.num_rows(), 0);
}

/// Copies ids below 10 under snapshot 100 and others under 200.
fn copied_twice(test: &TestLake) -> Silver {
    let schema = items(Identity::Key(vec![0]));
    let mut silver = open(test);
    silver.begin_copy(Lsn(100)).unwrap();
    let early = [
        row(1, "one", "big1"),
        row(2, "two", "big2"),
        row(13, "early", "big13"),
    ];
    silver
        .stage_copied(&item_rows(&schema, &early), Lsn(100))
        .unwrap();
    silver.commit_copied(Lsn(100), 7, 50).unwrap();
    drop(silver);
    let mut silver = open(test);
    let late = [
        row(11, "late", "big11"),
        row(12, "late", "big12"),
        row(13, "late", "big13"),
    ];
    silver
        .stage_copied(&item_rows(&schema, &late), Lsn(200))
        .unwrap();
    silver.commit_copied(Lsn(200), 7, u32::MAX).unwrap();
    silver.finish_copy().unwrap();
    silver
}

fn applied(silver: &mut Silver, changes: &[Change]) {
    let schema = items(Identity::Key(vec![0]));
    silver.apply(&batch(&schema, changes)).unwrap();
    silver.commit(Lsn(changes.last().unwrap().lsn)).unwrap();
}

#[test]
fn changes_between_two_snapshots_are_taken_once() {
    let test = TestLake::new();
    let mut silver = copied_twice(&test);
    assert_eq!(silver.num_rows(), 5, "the later copy of 13 won");
    let unsent = Change {
        unchanged: true,
        ..update(160, row(1, "new", ""))
    };
    applied(
        &mut silver,
        &[
            insert(110, row(11, "older", "x")),
            update(120, row(12, "older", "x")),
            delete(130, 13),
            insert(135, row(13, "older", "x")),
            update(140, row(5, "moved here", "x")),
            delete(150, 2),
            delete(155, 77),
            unsent,
        ],
    );
    drop(silver);
    let mut silver = open(&test);
    let now = vec![
        row(1, "new", "big1"),
        row(5, "moved here", "x"),
        row(11, "late", "big11"),
        row(12, "late", "big12"),
        row(13, "late", "big13"),
    ];
    assert_eq!(read_items(silver.dir()), now);
    // From the last snapshot on, everything has to fit again.
    let schema = items(Identity::Key(vec![0]));
    let error = silver
        .apply(&batch(&schema, &[delete(200, 77)]))
        .unwrap_err();
    assert!(error.is(&code::CONFLICT), "{error}");
    assert!(error.message().contains("(id=77)"), "{error}");
}

#[test]
fn a_truncate_between_two_snapshots_spares_the_later() {
    let test = TestLake::new();
    let mut silver = copied_twice(&test);
    applied(
        &mut silver,
        &[
            insert(110, row(3, "x", "y")),
            truncate(150),
            insert(160, row(4, "x", "y")),
        ],
    );
    let now = vec![
        row(4, "x", "y"),
        row(11, "late", "big11"),
        row(12, "late", "big12"),
        row(13, "late", "big13"),
    ];
    assert_eq!(read_items(silver.dir()), now);
    assert_eq!(silver.index_len(), 4);
    applied(&mut silver, &[truncate(250)]);
    assert_eq!(read_items(silver.dir()), []);
    assert_eq!(silver.num_rows(), 0);
}

#[test]
fn a_value_nobody_has_asks_for_a_fresh_copy() {
    let test = TestLake::new();
    let mut silver = copied_twice(&test);
    let schema = items(Identity::Key(vec![0]));
    let unsent = Change {
        unchanged: true,
        ..update(150, row(99, "x", ""))
    };
    let error = silver.apply(&batch(&schema, &[unsent])).unwrap_err();
    assert!(error.is(&code::COPY_AGAIN), "{error}");
    // The handle is of no use any more; opened again, the copy can be begun anew.
    assert!(silver.begin_copy(Lsn(300)).unwrap_err().is(&code::BUG));
    drop(silver);
    open(&test).begin_copy(Lsn(300)).unwrap();
}

#[test]
fn a_key_that_is_none_is_found_while_copying() {
    let schema = items(Identity::Key(vec![0]));
    let doubled = item_rows(&schema, &[row(1, "a", "b"), row(1, "c", "d")]);
    let test = TestLake::new();
    let mut silver = open(&test);
    silver.begin_copy(Lsn(100)).unwrap();
    assert!(
        silver
            .stage_copied(&doubled, Lsn(100))
            .unwrap_err()
            .is(&code::CONFLICT)
    );
    drop(silver);
    let mut silver = open_with(&test, OnConflict::Repair);
    silver.stage_copied(&doubled, Lsn(100)).unwrap();
    silver
        .stage_copied(&item_rows(&schema, &[row(1, "e", "f")]), Lsn(100))
        .unwrap();
    assert_eq!(silver.conflicts(), 2);
    silver.commit_copied(Lsn(100), 7, u32::MAX).unwrap();
    silver.finish_copy().unwrap();
    assert_eq!(read_items(silver.dir()), [row(1, "e", "f")]);
}

#[test]
fn without_a_key_there_is_one_snapshot() {
    let test = TestLake::new();
    let schema = items(Identity::WholeRow);
    let mut silver = Silver::open(
        &test.lake,
        &owner("items"),
        &schema,
        SilverSettings::default(),
    )
    .unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    let rows = item_rows(&schema, &[row(1, "a", "b"), row(1, "a", "b")]);
    silver.stage_copied(&rows, Lsn(100)).unwrap();
    silver.commit_copied(Lsn(100), 7, u32::MAX).unwrap();
    assert!(
        silver
            .stage_copied(&rows, Lsn(200))
            .unwrap_err()
            .is(&code::COPY_AGAIN)
    );
    silver.finish_copy().unwrap();
    let gone = Change {
        new: row(1, "a", "b"),
        ..delete(110, 1)
    };
    silver.apply(&batch(&schema, &[gone])).unwrap();
    silver.commit(Lsn(110)).unwrap();
    assert_eq!(read_items(silver.dir()), [row(1, "a", "b")]);
}

/// A row that the first snapshot had on a page that was read under the second one, and was gone by then.
#[test]
fn pages_without_rows_were_read_under_their_snapshot_too() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let mut silver = open(&test);
    silver.begin_copy(Lsn(100)).unwrap();
    silver
        .stage_copied(&item_rows(&schema, &[row(1, "a", "b")]), Lsn(100))
        .unwrap();
    silver.commit_copied(Lsn(100), 7, 50).unwrap();
    drop(silver);
    let mut silver = open(&test);
    silver.commit_copied(Lsn(200), 7, u32::MAX).unwrap();
    silver.finish_copy().unwrap();
    applied(&mut silver, &[delete(150, 9)]);
    assert_eq!(read_items(silver.dir()), [row(1, "a", "b")]);
}
