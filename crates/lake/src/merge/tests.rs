//! Plans against a naive model: a map that takes the changes one by one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use alluvium_change::{
    ChangeBatch, Column, Identity, OldImages, Op, TableId, TableSchema, Unchanged,
};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use proptest::prelude::*;

use super::*;

/// `key, plain, big` (`big` plays the value that is not always sent).
type Row = (i64, i64, i64);

#[derive(Debug, Clone)]
struct Sent {
    op: Op,
    lsn: u64,
    row: Row,
    old: Option<(i64, Option<i64>)>,
    unchanged: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Insert {
        key: i64,
        value: i64,
    },
    Update {
        key: i64,
        value: i64,
        unchanged: bool,
        full_image: bool,
    },
    Move {
        key: i64,
        to: i64,
        value: i64,
        unchanged: bool,
    },
    Swap {
        a: i64,
        b: i64,
        direct: bool,
        unchanged: bool,
    },
    Delete {
        key: i64,
    },
    EndBatch,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0_i64..8;
    let value = || 0_i64..1000;
    prop_oneof![
        3 => (key(), value()).prop_map(|(key, value)| Step::Insert { key, value }),
        4 => (key(), value(), any::<bool>(), any::<bool>()).prop_map(
            |(key, value, unchanged, full_image)| Step::Update { key, value, unchanged, full_image }
        ),
        2 => (key(), key(), value(), any::<bool>())
            .prop_map(|(key, to, value, unchanged)| Step::Move { key, to, value, unchanged }),
        2 => (key(), key(), any::<bool>(), any::<bool>())
            .prop_map(|(a, b, direct, unchanged)| Step::Swap { a, b, direct, unchanged }),
        2 => key().prop_map(|key| Step::Delete { key }),
        1 => Just(Step::EndBatch),
    ]
}

fn sent(op: Op, row: Row) -> Sent {
    Sent {
        op,
        lsn: 10,
        row,
        old: None,
        unchanged: false,
    }
}

/// What the source sends for the steps that are possible, and what they do to its rows.
fn play(steps: &[Step], rows: &mut BTreeMap<i64, Row>) -> Vec<Vec<Sent>> {
    let mut batches = vec![Vec::new()];
    for step in steps {
        let mut made = Vec::new();
        match step {
            Step::Insert { key, value } if !rows.contains_key(key) => {
                rows.insert(*key, (*key, *value, *value + 1));
                made.push(sent(Op::Insert, (*key, *value, *value + 1)));
            }
            Step::Update {
                key,
                value,
                unchanged,
                full_image,
            } if rows.contains_key(key) => {
                let before = *rows.get(key).unwrap();
                let after = (*key, *value, if *unchanged { before.2 } else { *value });
                rows.insert(*key, after);
                let old = full_image.then_some((*key, Some(before.2)));
                made.push(Sent {
                    old,
                    unchanged: *unchanged,
                    ..sent(Op::Update, after)
                });
            }
            Step::Move {
                key,
                to,
                value,
                unchanged,
            } if rows.contains_key(key) && !rows.contains_key(to) => {
                let before = rows.remove(key).unwrap();
                let after = (*to, *value, if *unchanged { before.2 } else { *value });
                rows.insert(*to, after);
                let old = Some((*key, None));
                made.push(Sent {
                    old,
                    unchanged: *unchanged,
                    ..sent(Op::Update, after)
                });
            }
            Step::Swap {
                a,
                b,
                direct,
                unchanged,
            } if a != b && rows.contains_key(a) && rows.contains_key(b) => {
                let (row_a, row_b) = (*rows.get(a).unwrap(), *rows.get(b).unwrap());
                let to = |row: Row, from: i64, key: i64| Sent {
                    old: Some((from, None)),
                    unchanged: *unchanged,
                    ..sent(Op::Update, (key, row.1, row.2))
                };
                if *direct {
                    made.extend([to(row_a, *a, *b), to(row_b, *b, *a)]);
                } else {
                    made.extend([to(row_a, *a, -1), to(row_b, *b, *a), to(row_a, -1, *b)]);
                }
                rows.insert(*b, (*b, row_a.1, row_a.2));
                rows.insert(*a, (*a, row_b.1, row_b.2));
            }
            Step::Delete { key } if rows.contains_key(key) => {
                rows.remove(key);
                made.push(sent(Op::Delete, (*key, 0, 0)));
            }
            Step::EndBatch => batches.push(Vec::new()),
            _ => {}
        }
        batches.last_mut().unwrap().extend(made);
    }
    batches
}

fn table() -> Arc<TableSchema> {
    let column = |name: &str| Column {
        name: name.into(),
        data_type: DataType::Int64,
        source_type: "bigint".into(),
    };
    let columns = vec![column("key"), column("plain"), column("big")];
    TableSchema::new(
        TableId::new("public", "t"),
        1,
        columns,
        Identity::Key(vec![0]),
    )
}

fn columns(rows: Vec<(i64, Option<i64>, Option<i64>)>) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.0)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()),
    ];
    RecordBatch::try_new(Arc::clone(table().arrow()), columns).unwrap()
}

fn batch_of(changes: &[Sent]) -> (ChangeBatch, Vec<Event>) {
    let rows = changes
        .iter()
        .map(|c| {
            (
                c.row.0,
                Some(c.row.1),
                Some(c.row.2).filter(|_| !c.unchanged),
            )
        })
        .collect();
    let mut olds = Vec::new();
    let mut row_of = Vec::new();
    let mut events = Vec::new();
    let key = |key: i64| Key::from(u64::from_le_bytes(key.to_le_bytes()));
    for (row, change) in changes.iter().enumerate() {
        row_of.push(change.old.map(|(key, big)| {
            olds.push((key, None, big));
            u32::try_from(olds.len() - 1).unwrap()
        }));
        events.push(Event {
            action: match change.op {
                Op::Insert => Action::Insert,
                Op::Update => Action::Update,
                _ => Action::Delete,
            },
            row: u32::try_from(row).unwrap(),
            commit_lsn: Lsn(change.lsn),
            key: key(change.row.0),
            old_key: change.old.map(|(old, _)| key(old)),
        });
    }
    let unchanged = changes.iter().enumerate().filter(|(_, c)| c.unchanged);
    let batch = ChangeBatch {
        table: table(),
        ops: changes.iter().map(|c| c.op).collect(),
        commit_lsn: changes.iter().map(|c| Lsn(c.lsn)).collect(),
        event_serial: (0..changes.len() as u64).collect(),
        xid: vec![1; changes.len()],
        commit_time_micros: vec![0; changes.len()],
        rows: columns(rows),
        old: (!olds.is_empty()).then(|| OldImages {
            row_of,
            rows: columns(olds),
        }),
        unchanged: unchanged
            .map(|(row, _)| Unchanged {
                row: u32::try_from(row).unwrap(),
                column: 2,
            })
            .collect(),
    };
    (batch, events)
}

/// Stored rows by place, as files would hold them.
#[derive(Default)]
struct Store {
    rows: Vec<Option<Row>>,
    /// The snapshot each was copied under.
    snapshots: Vec<Option<Lsn>>,
    index: BTreeMap<Key, Location>,
}

impl Before for Store {
    fn find(&self, key: Key) -> Option<Location> {
        self.index.get(&key).copied()
    }

    fn snapshot_of(&self, location: Location) -> Option<Lsn> {
        self.snapshots.get(location.row as usize).copied().flatten()
    }
}

impl Store {
    fn put(&mut self, row: Row, snapshot: Option<Lsn>) -> Location {
        let place = u32::try_from(self.rows.len()).unwrap();
        self.rows.push(Some(row));
        self.snapshots.push(snapshot);
        Location {
            segment: 0,
            row: place,
        }
    }

    fn copied(&mut self, row: Row, snapshot: u64) {
        let key = Key::from(u64::from_le_bytes(row.0.to_le_bytes()));
        let at = self.put(row, Some(Lsn(snapshot)));
        assert!(self.index.insert(key, at).is_none());
    }

    fn carry_out(&mut self, batch: &ChangeBatch, plan: &Plan) {
        let value = |images: &RecordBatch, column: usize, row: u32| {
            let values = images.column(column).as_primitive::<Int64Type>();
            assert!(
                values.is_valid(row as usize),
                "a NULL was taken for a value"
            );
            values.value(row as usize)
        };
        let mut written = Vec::new();
        for planned in &plan.rows {
            let filled = planned
                .fills
                .iter()
                .find(|fill| fill.column == 2)
                .map(|fill| fill.from);
            let big = match filled {
                None => value(&batch.rows, 2, planned.row),
                Some(FillFrom::Batch(row)) => value(&batch.rows, 2, row),
                Some(FillFrom::OldImage(row)) => value(&batch.old.as_ref().unwrap().rows, 2, row),
                Some(FillFrom::Stored(at)) => self.rows[at.row as usize].unwrap().2,
            };
            let row = (
                value(&batch.rows, 0, planned.row),
                value(&batch.rows, 1, planned.row),
                big,
            );
            written.push(row);
        }
        for dead in &plan.dead {
            assert!(
                self.rows[dead.row as usize].take().is_some(),
                "a row died twice"
            );
        }
        let places: Vec<Location> = written.into_iter().map(|row| self.put(row, None)).collect();
        for (key, place) in &plan.index {
            match place {
                Some(place) => self.index.insert(*key, places[*place as usize]),
                None => self.index.remove(key),
            };
        }
    }

    fn live(&self) -> BTreeMap<i64, Row> {
        let mut live = BTreeMap::new();
        for row in self.rows.iter().flatten() {
            assert!(
                live.insert(row.0, *row).is_none(),
                "key {} is live twice",
                row.0
            );
        }
        assert_eq!(live.len(), self.index.len());
        live
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_does_what_its_changes_do(steps in proptest::collection::vec(step(), 0..80)) {
        let mut rows = BTreeMap::new();
        let batches = play(&steps, &mut rows);
        let mut store = Store::default();
        for changes in batches {
            let (batch, events) = batch_of(&changes);
            let plan = plan_keyed(&batch, &events, &store, Lsn::ZERO, Misfit::Refuse).unwrap();
            prop_assert_eq!(plan.conflicts, 0);
            store.carry_out(&batch, &plan);
        }
        prop_assert_eq!(store.live(), rows);
    }

    /// Each row is copied either before the history (snapshot 5) or after it (snapshot 20); the
    /// stream replays all of it over the mix.
    #[test]
    fn a_mixed_copy_is_reconciled(
        first in proptest::collection::vec(step(), 0..30),
        steps in proptest::collection::vec(step(), 0..60),
        late in any::<u8>(),
    ) {
        let mut rows = BTreeMap::new();
        play(&first, &mut rows);
        let before = rows.clone();
        // Direct exchanges cannot be told apart here: see the head of `keyed`.
        let steps: Vec<Step> =
            steps.into_iter().filter(|step| !matches!(step, Step::Swap { direct: true, .. })).collect();
        let batches = play(&steps, &mut rows);
        // A range of the heap is copied late; rows move between ranges when they change, so where
        // a key lies early and late need not agree: the copy may have it twice (the later wins),
        // or not at all.
        let is_late = |key: i64, value: i64| (late >> ((key + value).rem_euclid(8))) & 1 == 1;
        let mut store = Store::default();
        for row in rows.values().filter(|row| is_late(row.0, row.1)) {
            store.copied(*row, 20);
        }
        for row in before.values().filter(|row| !is_late(row.0, row.1)) {
            let copied_late = rows.get(&row.0).is_some_and(|now| is_late(now.0, now.1));
            if !copied_late {
                store.copied(*row, 5);
            }
        }
        for changes in batches {
            let (batch, events) = batch_of(&changes);
            match plan_keyed(&batch, &events, &store, Lsn(20), Misfit::Refuse) {
                Ok(plan) => store.carry_out(&batch, &plan),
                // A value that only a fresh copy has.
                Err(refusal) => {
                    prop_assert_eq!(refusal.reason, Reason::Recopy);
                    return Ok(());
                }
            }
        }
        prop_assert_eq!(store.live(), rows);
    }
}

fn one(changes: &[Sent], store: &Store, misfit: Misfit) -> Result<Plan, Refusal> {
    let (batch, events) = batch_of(changes);
    plan_keyed(&batch, &events, store, Lsn::ZERO, misfit)
}

#[test]
fn misfits_are_refused_or_repaired() {
    let mut store = Store::default();
    store.copied((1, 1, 1), 5);
    let cases = [
        (sent(Op::Insert, (1, 9, 9)), Reason::Present),
        (sent(Op::Update, (2, 9, 9)), Reason::Absent),
        (sent(Op::Delete, (2, 0, 0)), Reason::Absent),
        (
            Sent {
                old: Some((3, None)),
                ..sent(Op::Update, (4, 9, 9))
            },
            Reason::Absent,
        ),
    ];
    for (change, reason) in cases {
        let refusal = one(std::slice::from_ref(&change), &store, Misfit::Refuse).unwrap_err();
        assert_eq!(refusal, Refusal { row: 0, reason });
        let plan = one(std::slice::from_ref(&change), &store, Misfit::Repair).unwrap();
        assert_eq!(plan.conflicts, 1, "{change:?}");
        assert_eq!(plan.rows.len(), usize::from(change.op != Op::Delete));
    }
}

#[test]
fn two_rows_of_one_key_in_the_end_are_a_conflict() {
    let mut store = Store::default();
    store.copied((1, 1, 1), 5);
    store.copied((2, 2, 2), 5);
    let onto = Sent {
        old: Some((1, None)),
        ..sent(Op::Update, (2, 9, 9))
    };
    let refusal = one(std::slice::from_ref(&onto), &store, Misfit::Refuse).unwrap_err();
    assert_eq!(refusal.reason, Reason::Present);
    let (batch, _) = batch_of(std::slice::from_ref(&onto));
    let plan = one(&[onto], &store, Misfit::Repair).unwrap();
    store.carry_out(&batch, &plan);
    assert_eq!(store.live(), BTreeMap::from([(2, (2, 9, 9))]));
}

#[test]
fn an_unchanged_value_without_a_source_is_always_refused() {
    let store = Store::default();
    let change = Sent {
        unchanged: true,
        ..sent(Op::Update, (1, 9, 0))
    };
    let refusal = one(&[change], &store, Misfit::Repair).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoValue);
}
