//! Bronze gives back what it was given, in order, and silver can be rebuilt from it.

use std::sync::Arc;

use alluvium_change::{ChangeBatch, Identity, Lsn, Op};
use alluvium_lake::{Bronze, CompactionSettings, LakeSettings, Silver, SilverSettings};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type};

use crate::support::{
    TestLake, batch, insert, item_rows, items, owner, read_items, read_table, row, schema, txns,
    update,
};
use alluvium_testkit::history::{Random, Source};

/// Everything of a change that bronze keeps.
fn facts(batch: &ChangeBatch) -> Vec<String> {
    (0..batch.num_rows())
        .map(|row| {
            let old = batch.old_row(row).map(|old| {
                format!(
                    "{:?}",
                    batch
                        .old
                        .as_ref()
                        .unwrap()
                        .rows
                        .slice(old as usize, 1)
                        .columns()
                )
            });
            let unchanged: Vec<u32> = batch
                .unchanged_of(row)
                .iter()
                .map(|unchanged| unchanged.column)
                .collect();
            format!(
                "{:?} {} {} {} {} {:?} {old:?} {unchanged:?}",
                batch.ops[row],
                batch.commit_lsn[row],
                batch.event_serial[row],
                batch.xid[row],
                batch.commit_time_micros[row],
                batch.rows.slice(row, 1).columns(),
            )
        })
        .collect()
}

#[test]
fn changes_come_back_as_they_went_in() {
    for (seed, identity) in [(1, Identity::Key(vec![0])), (2, Identity::WholeRow)] {
        let settings = LakeSettings {
            fsync: false,
            target_file_bytes: 20_000,
            delta_checkpoint_every_commits: 2,
            share_from_rows: 12,
            compaction: CompactionSettings {
                small_files: 2,
                ..CompactionSettings::default()
            },
            ..LakeSettings::default()
        };
        let mut compacted = 0;
        let test = TestLake::with(settings);
        let schema = items(identity.clone());
        let owner = owner("items");
        let mut bronze = Bronze::open(&test.lake, &owner, &schema).unwrap();
        let mut source = Source::new(seed, identity, 40);
        let mut random = Random(seed);
        let mut expected: Vec<(u64, String)> = Vec::new();
        for _ in 0..10 {
            for _ in 0..=random.below(3) {
                let changes = source.transaction(15);
                let whole = batch(&schema, &changes);
                expected.extend(facts(&whole).into_iter().map(|fact| (source.lsn, fact)));
                let ready = bronze.encoder().changes(&whole).ok();
                bronze
                    .stage_ready(&whole, ready.filter(|_| random.chance(50)))
                    .unwrap();
            }
            let version = bronze.version();
            assert_eq!(bronze.commit(Lsn(source.lsn)).unwrap(), Some(version + 1));
            assert_eq!(bronze.commit(Lsn(source.lsn)).unwrap(), None);
            if let Some(job) = bronze.take_checkpoint_job(false) {
                bronze.adopt_checkpoint(job.run()).unwrap();
            }
            if let Some(job) = bronze.take_compaction_job(&test.lake.settings().compaction) {
                let done = job.run(&|_| true).unwrap().unwrap();
                compacted += usize::from(bronze.adopt_compaction(done).unwrap().is_some());
            }
        }
        assert!(compacted > 1, "{compacted}");
        let version = bronze.version();
        drop(bronze);
        let bronze = Bronze::open(&test.lake, &owner, &schema).unwrap();
        assert_eq!(bronze.version(), version);
        assert_eq!(bronze.position(), Lsn(source.lsn));
        for after in [0, 150, source.lsn - 1, source.lsn] {
            let read: Vec<String> = bronze
                .changes_after(Lsn(after), 7)
                .unwrap()
                .flat_map(|batch| {
                    let batch = batch.unwrap();
                    assert!(batch.num_rows() <= 7);
                    facts(&batch)
                })
                .collect();
            let wanted: Vec<&String> = expected
                .iter()
                .filter(|(lsn, _)| *lsn > after)
                .map(|(_, fact)| fact)
                .collect();
            assert_eq!(read.iter().collect::<Vec<_>>(), wanted, "after {after}");
        }
    }
}

#[test]
fn rows_encoded_beforehand_are_taken_only_as_a_whole() {
    let settings = LakeSettings {
        fsync: false,
        share_from_rows: 1,
        ..LakeSettings::default()
    };
    let test = TestLake::with(settings);
    let schema = items(Identity::Key(vec![0]));
    let mut bronze = Bronze::open(&test.lake, &owner("items"), &schema).unwrap();
    let first = insert(10, row(1, "a", "b"));
    bronze
        .stage(&batch(&schema, std::slice::from_ref(&first)))
        .unwrap();
    bronze.commit(Lsn(10)).unwrap();
    // Sent again after a restart, with one more.
    let both = batch(&schema, &[first, insert(20, row(2, "c", "d"))]);
    let ready = bronze.encoder().changes(&both).unwrap();
    assert!(bronze.stage_ready(&both, Some(ready)).unwrap().is_none());
    bronze.commit(Lsn(20)).unwrap();
    let read: Vec<_> = bronze
        .changes_after(Lsn(0), 7)
        .unwrap()
        .flat_map(|batch| facts(&batch.unwrap()))
        .collect();
    assert_eq!(read, facts(&both));
}

#[test]
fn silver_is_rebuilt_from_bronze() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let owner = owner("items");
    let mut bronze = Bronze::open(&test.lake, &owner, &schema).unwrap();
    let mut source = Source::new(7, Identity::Key(vec![0]), 30);
    let copied = [row(1000, "a", "b"), row(1001, "c", "d")];
    bronze.record_restart(Lsn(100), 5).unwrap();
    bronze
        .stage_copied(&item_rows(&schema, &copied), Lsn(100), 5)
        .unwrap();
    assert!(bronze.commit_copied().unwrap().is_some());
    for _ in 0..20 {
        bronze
            .stage(&batch(&schema, &source.transaction(20)))
            .unwrap();
        bronze.commit(Lsn(source.lsn)).unwrap();
    }
    let mut silver = Silver::open(&test.lake, &owner, &schema, SilverSettings::default()).unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    // A batch may end between the two steps of an exchange of keys: large ones do not here.
    for changes in bronze.changes_after(silver.position(), 100_000).unwrap() {
        silver.apply(&changes.unwrap()).unwrap();
    }
    silver.commit(bronze.position()).unwrap();
    assert_eq!(read_items(silver.dir()), source.heap.rows());
}

#[test]
fn copied_rows_are_no_part_of_the_stream() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let owner = owner("items");
    let mut bronze = Bronze::open(&test.lake, &owner, &schema).unwrap();
    bronze
        .stage(&batch(&schema, &[insert(200, row(1, "a", "b"))]))
        .unwrap();
    bronze.record_restart(Lsn(150), 5).unwrap();
    bronze
        .stage_copied(&item_rows(&schema, &[row(2, "c", "d")]), Lsn(150), 5)
        .unwrap();
    bronze.commit_copied().unwrap();
    assert_eq!(
        bronze.position(),
        Lsn::ZERO,
        "copied rows do not move the position"
    );
    bronze.commit(Lsn(200)).unwrap();
    let read: Vec<ChangeBatch> = bronze
        .changes_after(Lsn::ZERO, 10)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].ops, vec![Op::Insert]);
    let ops: Vec<String> = read_table(bronze.dir())
        .iter()
        .flat_map(|batch| {
            let ops = batch.column_by_name("_op").unwrap().as_string::<i32>();
            ops.iter()
                .map(|op| op.unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let mut sorted = ops.clone();
    sorted.sort();
    assert_eq!(sorted, ["c", "r", "t"]);
    assert_eq!(
        txns(bronze.dir()).get("alluvium/main/shop/public.items"),
        Some(&200)
    );
}

#[test]
fn overlapping_files_are_merged() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let owner = owner("items");
    let mut bronze = Bronze::open(&test.lake, &owner, &schema).unwrap();
    // One file with the transactions 10 and 30, one with 30's rest and 40.
    bronze
        .stage(&batch(
            &schema,
            &[insert(10, row(1, "a", "b")), insert(30, row(2, "a", "b"))],
        ))
        .unwrap();
    bronze.commit(Lsn(10)).unwrap();
    let mut rest = batch(
        &schema,
        &[insert(30, row(3, "a", "b")), insert(40, row(4, "a", "b"))],
    );
    rest.event_serial = vec![1, 0];
    bronze.stage(&rest).unwrap();
    bronze.commit(Lsn(40)).unwrap();
    let ids: Vec<i64> = bronze
        .changes_after(Lsn::ZERO, 1)
        .unwrap()
        .flat_map(|batch| {
            batch
                .unwrap()
                .rows
                .column(0)
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
        .collect();
    assert_eq!(ids, [1, 2, 3, 4]);
}

#[test]
fn columns_of_the_source_keep_their_names() {
    let test = TestLake::new();
    let schema = schema(
        "items",
        &[
            ("_op", DataType::Int64),
            ("_BEFORE", DataType::Utf8),
            ("__op", DataType::Utf8),
        ],
        Identity::Key(vec![0]),
    );
    let bronze = Bronze::open(&test.lake, &owner("items"), &schema).unwrap();
    let names: Vec<String> = alluvium_lake::read::open_table(bronze.dir(), None)
        .unwrap()
        .schema
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    assert_eq!(
        names,
        [
            "___op",
            "_commit_lsn",
            "_event_serial",
            "_xid",
            "_commit_time",
            "_op",
            "_BEFORE",
            "__op",
            "__before",
            "_unchanged"
        ]
    );
    drop(bronze);
    let bronze = Bronze::open(&test.lake, &owner("items"), &schema).unwrap();
    assert_eq!(bronze.schema(), &schema);
}

#[test]
fn added_columns_are_null_before() {
    let test = TestLake::new();
    let old = items(Identity::Key(vec![0]));
    let owner = owner("items");
    let mut bronze = Bronze::open(&test.lake, &owner, &old).unwrap();
    let with_image = |lsn| crate::support::Change {
        old: Some(row(1, "x", "y")),
        ..update(lsn, row(1, "a", "b"))
    };
    bronze.stage(&batch(&old, &[with_image(10)])).unwrap();
    bronze.commit(Lsn(10)).unwrap();
    let narrow = bronze
        .encoder()
        .changes(&batch(&old, &[with_image(20)]))
        .unwrap();
    let new = schema(
        "items",
        &[
            ("id", DataType::Int64),
            ("small", DataType::Utf8),
            ("big", DataType::Utf8),
            ("extra", DataType::Int64),
        ],
        Identity::Key(vec![0]),
    );
    bronze.add_columns(&new).unwrap();
    assert_eq!(bronze.schema(), &new);
    drop(bronze);
    // Opened with either schema it has the wider one.
    let mut bronze = Bronze::open(&test.lake, &owner, &new).unwrap();
    assert_eq!(bronze.position(), Lsn(10));
    let mut wide = batch(&old, &[with_image(20)]);
    let widen = |rows: &arrow::array::RecordBatch| {
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(arrow::array::Int64Array::from_value(
            9,
            rows.num_rows(),
        )));
        arrow::array::RecordBatch::try_new(Arc::clone(new.arrow()), columns).unwrap()
    };
    wide.table = Arc::clone(&new);
    wide.rows = widen(&wide.rows);
    if let Some(old) = &mut wide.old {
        old.rows = widen(&old.rows);
    }
    // Encoded before the column was there: not as the table is now.
    bronze.stage_ready(&wide, Some(narrow)).unwrap();
    bronze.commit(Lsn(20)).unwrap();
    let read: Vec<ChangeBatch> = bronze
        .changes_after(Lsn::ZERO, 10)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let extra = |rows: &arrow::array::RecordBatch, at: usize| {
        let column = rows
            .column_by_name("extra")
            .unwrap()
            .as_primitive::<Int64Type>()
            .clone();
        column.is_valid(at).then(|| column.value(at))
    };
    let rows: Vec<_> = (0..2).map(|at| extra(&read[0].rows, at)).collect();
    assert_eq!(rows, [None, Some(9)]);
    let olds = &read[0].old.as_ref().unwrap().rows;
    assert_eq!([extra(olds, 0), extra(olds, 1)], [None, Some(9)]);

    bronze.replace_schema(&old).unwrap();
    assert_eq!(bronze.position(), Lsn(20));
    assert_eq!(bronze.changes_after(Lsn::ZERO, 10).unwrap().count(), 0);
}

/// Each commit is a file; changes are of the second that their LSN says.
#[test]
fn old_changes_are_forgotten_file_by_file() {
    let test = TestLake::new();
    let schema = items(Identity::Key(vec![0]));
    let open = || Bronze::open(&test.lake, &owner("items"), &schema).unwrap();
    let mut bronze = open();
    let copied = item_rows(&schema, &[row(1, "a", "b")]);
    bronze.stage_copied(&copied, Lsn(5), 5_000_000).unwrap();
    bronze.commit_copied().unwrap();
    for lsns in [[10, 20], [30, 40], [50, 60]] {
        for lsn in lsns {
            let mut changes = batch(
                &schema,
                &[insert(lsn, row(i64::try_from(lsn).unwrap(), "a", "b"))],
            );
            changes.commit_time_micros = vec![i64::try_from(lsn).unwrap() * 1_000_000];
            bronze.stage(&changes).unwrap();
        }
        bronze.commit(Lsn(lsns[1])).unwrap();
    }
    let left = |bronze: &Bronze| -> Vec<u64> {
        let reader = bronze.changes_after(Lsn::ZERO, 100).unwrap();
        reader
            .flat_map(|batch| batch.unwrap().commit_lsn)
            .map(|lsn| lsn.0)
            .collect()
    };
    assert_eq!(bronze.forget(4_000_000, Lsn(100)).unwrap(), 0);
    // Of the second file one change is young yet.
    assert_eq!(
        bronze.forget(35_000_000, Lsn(100)).unwrap(),
        2,
        "the copy and one more"
    );
    assert_eq!(left(&bronze), [30, 40, 50, 60]);
    // What silver does not have stays.
    assert_eq!(bronze.forget(99_000_000, Lsn(45)).unwrap(), 1);
    assert_eq!(left(&bronze), [50, 60]);
    drop(bronze);
    let mut bronze = open();
    assert_eq!((left(&bronze), bronze.position()), (vec![50, 60], Lsn(60)));
    let next = batch(&schema, &[insert(70, row(70, "a", "b"))]);
    bronze.stage(&next).unwrap();
    bronze.commit(Lsn(70)).unwrap();
    assert_eq!(left(&bronze), [50, 60, 70]);
    assert_eq!(
        read_table(bronze.dir())
            .iter()
            .map(|b| b.num_rows())
            .sum::<usize>(),
        3
    );
}
