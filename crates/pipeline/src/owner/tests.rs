//! Catching up while parts of a cut come: silver gets all of it, in whatever order that happens.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use alluvium_change::{Op, code};
use alluvium_lake::LakeSettings;
use arrow::array::{Int32Array, RecordBatch, StringArray};

use tokio::sync::oneshot;

use super::*;
use crate::status::{ErrorStatus, TableStatus};
use crate::testing::table;

/// The owner of a table, which is being copied under a snapshot at 5.
fn copying(dir: &tempfile::TempDir) -> TableOwner {
    let settings = LakeSettings {
        fsync: false,
        ..LakeSettings::default()
    };
    let context = OwnerContext {
        lake: Lake::open(&dir.path().join("lake"), settings).unwrap(),
        board: StatusBoard::default(),
        events: mpsc::channel(1).0,
        cpu: Arc::new(Semaphore::new(1)),
        care: CareShare::new(crate::project::MaintainSettings::default()),
    };
    let table = table();
    let identity = alluvium_lake::Owner {
        pipeline: "default".to_owned(),
        source: "test".to_owned(),
        system_identifier: "1".to_owned(),
        table: table.schema.id.clone(),
        name: "t".to_owned(),
    };
    let settings = SilverSettings::default();
    let mut owner = TableOwner::open(identity, settings, table, context, false).unwrap();
    let schema = Arc::clone(&owner.table.schema);
    owner.begin_copy(&schema, Lsn(5), true).unwrap();
    owner
}

/// A transaction that inserts `id`, as a part of a cut; with `ends` the last one.
fn cut(owner: &mut TableOwner, id: i32, lsn: u64, ends: bool) {
    let table = Arc::clone(&owner.table.schema);
    let v = StringArray::from(vec!["v"]);
    let columns: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(Int32Array::from(vec![id])), Arc::new(v)];
    let batch = ChangeBatch {
        rows: RecordBatch::try_new(Arc::clone(table.arrow()), columns).unwrap(),
        table,
        ops: vec![Op::Insert],
        commit_lsn: vec![Lsn(lsn)],
        event_serial: vec![0],
        xid: vec![7],
        commit_time_micros: vec![1],
        old: None,
        unchanged: Vec::new(),
    };
    let events = owner.perform(Command::Cut {
        batches: vec![batch.into()],
        end: ends.then_some(CutEnd {
            id: 1,
            position: Lsn(lsn),
        }),
        permit: None,
    });
    assert!(!events.iter().any(|event| matches!(event, Event::Fatal(_))));
}

/// Catches up as far as it goes.
fn catch_up(owner: &mut TableOwner) {
    for _ in 0..100 {
        if !owner.can_catch_up() {
            return;
        }
        owner.catch_up().unwrap();
    }
    panic!("it never ends");
}

fn silver_rows(owner: &TableOwner) -> u64 {
    owner.silver.as_ref().unwrap().num_rows()
}

#[test]
fn a_table_that_has_caught_up_in_the_middle_of_a_cut_gets_its_beginning_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = copying(&dir);
    cut(&mut owner, 1, 50, true);
    owner.finish_copy().unwrap();
    cut(&mut owner, 2, 60, false);
    catch_up(&mut owner);
    assert_eq!((silver_rows(&owner), owner.phase), (1, Phase::CatchingUp));
    cut(&mut owner, 3, 70, true);
    assert_eq!((silver_rows(&owner), owner.phase), (3, Phase::Live));
}

/// After a start, the first part of a cut may come before it was seen that nothing is to be caught up.
#[test]
fn a_table_with_nothing_to_catch_up_is_live_from_the_first_part_of_a_cut_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = copying(&dir);
    owner.finish_copy().unwrap();
    assert_eq!(owner.phase, Phase::CatchingUp);
    cut(&mut owner, 1, 60, false);
    catch_up(&mut owner);
    cut(&mut owner, 2, 70, true);
    assert_eq!((silver_rows(&owner), owner.phase), (2, Phase::Live));
}

/// A table far behind goes on to catch up between cuts; they do not wait for it.
#[test]
fn a_cut_does_not_wait_for_what_was_left_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = copying(&dir);
    cut(&mut owner, 1, 50, true);
    owner.finish_copy().unwrap();
    cut(&mut owner, 2, 60, true);
    assert_eq!((silver_rows(&owner), owner.phase), (0, Phase::CatchingUp));
    catch_up(&mut owner);
    assert_eq!((silver_rows(&owner), owner.phase), (2, Phase::Live));
}

/// Its owner says what a table's phase is: told by another, it would say otherwise at the next cut.
#[test]
fn a_copy_that_cannot_go_on_stays_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut owner = copying(&dir);
    let (reply, mut answer) = oneshot::channel();
    let error = ErrorStatus::from(&Error::new(&code::VALUE, "NaN"));
    owner.perform(Command::HaltCopy { error, reply });
    assert!(answer.try_recv().unwrap().is_ok());
    cut(&mut owner, 1, 50, true);
    let told = |status: &TableStatus| {
        let message = status.error.as_ref().map(|error| error.message.clone());
        (status.phase, message)
    };
    let name = owner.table.schema.id.to_string();
    let stopped = (Phase::Stopped, Some("NaN".to_owned()));
    assert_eq!(owner.context.board.of_table(&name, told), Some(stopped));
}
