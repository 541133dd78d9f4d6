//! Columns that come, and tables that get others.

use std::sync::Arc;

use alluvium_change::{ChangeBatch, Identity, Lsn, TableSchema, code};
use alluvium_lake::{CopyState, LakeSettings, MetadataColumn, Silver, SilverSettings, read};
use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};

use crate::support::{
    Change, TestLake, batch, delete, insert, items, owner, read_items, read_table, row, schema,
    update,
};

fn wide(identity: Identity) -> Arc<TableSchema> {
    schema(
        "items",
        &[
            ("id", DataType::Int64),
            ("small", DataType::Utf8),
            ("big", DataType::Utf8),
            ("extra", DataType::Int64),
            ("local", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ],
        identity,
    )
}

fn widened(changes: &[Change], identity: Identity) -> ChangeBatch {
    let narrow = items(identity.clone());
    let wide = wide(identity);
    let mut batch = batch(&narrow, changes);
    let widen = |rows: &RecordBatch| {
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(Int64Array::from_value(5, rows.num_rows())) as ArrayRef);
        columns.push(new_null_array(
            wide.arrow().field(4).data_type(),
            rows.num_rows(),
        ));
        RecordBatch::try_new(Arc::clone(wide.arrow()), columns).unwrap()
    };
    batch.rows = widen(&batch.rows);
    if let Some(old) = &mut batch.old {
        old.rows = widen(&old.rows);
    }
    batch.table = Arc::clone(&wide);
    batch
}

/// `id` and `extra`, sorted.
fn extras(silver: &Silver) -> Vec<(i64, Option<i64>)> {
    let mut extras = Vec::new();
    for batch in read_table(silver.dir()) {
        let ids = batch
            .column_by_name("id")
            .unwrap()
            .as_primitive::<Int64Type>();
        let extra = batch
            .column_by_name("extra")
            .map(|c| c.as_primitive::<Int64Type>());
        for at in 0..batch.num_rows() {
            let extra = extra
                .filter(|extra| extra.is_valid(at))
                .map(|extra| extra.value(at));
            extras.push((ids.value(at), extra));
        }
    }
    extras.sort_unstable();
    extras
}

fn run(identity: Identity, fill: bool) {
    let test = TestLake::with(LakeSettings {
        fsync: false,
        target_file_bytes: 1,
        ..LakeSettings::default()
    });
    let narrow = items(identity.clone());
    let settings = SilverSettings {
        metadata_columns: vec![MetadataColumn::Op],
        ..SilverSettings::default()
    };
    let open = |schema: &Arc<TableSchema>| {
        Silver::open(&test.lake, &owner("items"), schema, settings.clone()).unwrap()
    };
    let mut silver = open(&narrow);
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    let whole = identity == Identity::WholeRow;
    let old = |id: i64| whole.then(|| row(id, "a", "b"));
    let deletion = |lsn, id| {
        if whole {
            Change {
                new: row(id, "a", "b"),
                ..delete(lsn, id)
            }
        } else {
            delete(lsn, id)
        }
    };
    for id in 1..6 {
        silver
            .apply(&batch(&narrow, &[insert(110, row(id, "a", "b"))]))
            .unwrap();
    }
    silver
        .apply(&batch(
            &narrow,
            &[insert(110, row(6, "a", "b")), insert(110, row(7, "a", "b"))],
        ))
        .unwrap();
    silver.commit(Lsn(110)).unwrap();
    silver
        .apply(&batch(&narrow, &[deletion(120, 2), deletion(120, 6)]))
        .unwrap();
    silver.commit(Lsn(120)).unwrap();

    let wide = wide(identity.clone());
    let local: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![None::<i64>]));
    let value: ArrayRef = Arc::new(Int64Array::from(vec![42]));
    let fills = if fill {
        vec![("extra".to_owned(), value), ("local".to_owned(), local)]
    } else {
        Vec::new()
    };
    let version = silver.version();
    silver.add_columns(&wide, &fills).unwrap();
    assert_eq!(silver.version(), version + 1);
    silver.add_columns(&wide, &fills).unwrap();
    assert_eq!(silver.version(), version + 1, "nothing to add");
    let filled = fill.then_some(42);
    assert_eq!(extras(&silver), [1, 3, 4, 5, 7].map(|id| (id, filled)));
    let table = read::open_table(silver.dir(), None).unwrap();
    assert_eq!(table.schema.field(3).name(), "_op");
    assert_eq!(table.schema.field(4).name(), "extra");

    // The index still finds every row: with the handle at hand, and opened again.
    let gone = |lsn, id| {
        let mut batch = widened(&[deletion(lsn, id)], identity.clone());
        if whole {
            let mut columns = batch.rows.columns().to_vec();
            columns[3] = Arc::new(Int64Array::from(vec![filled]));
            batch.rows = RecordBatch::try_new(batch.rows.schema(), columns).unwrap();
        }
        batch
    };
    silver.apply(&gone(130, 3)).unwrap();
    silver.commit(Lsn(130)).unwrap();
    drop(silver);
    let mut silver = open(&wide);
    assert_eq!(silver.index_len(), 4);
    silver.apply(&gone(140, 7)).unwrap();
    let mut change = widened(
        &[Change {
            old: old(1),
            ..update(140, row(1, "new", "b"))
        }],
        identity.clone(),
    );
    if let Some(old) = &mut change.old {
        let mut columns = old.rows.columns().to_vec();
        columns[3] = Arc::new(Int64Array::from(vec![filled]));
        old.rows = RecordBatch::try_new(old.rows.schema(), columns).unwrap();
    }
    silver.apply(&change).unwrap();
    silver.commit(Lsn(140)).unwrap();
    assert_eq!(extras(&silver), [(1, Some(5)), (4, filled), (5, filled)]);
    let now = [row(1, "new", "b"), row(4, "a", "b"), row(5, "a", "b")];
    assert_eq!(read_items(silver.dir()), now);
}

#[test]
fn columns_are_added_and_filled() {
    run(Identity::Key(vec![0]), true);
    run(Identity::Key(vec![0]), false);
    run(Identity::WholeRow, true);
    run(Identity::WholeRow, false);
}

#[test]
fn other_changes_need_a_new_schema() {
    let test = TestLake::new();
    let narrow = items(Identity::Key(vec![0]));
    let open = |schema: &Arc<TableSchema>| {
        Silver::open(
            &test.lake,
            &owner("items"),
            schema,
            SilverSettings::default(),
        )
        .unwrap()
    };
    let mut silver = open(&narrow);
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    silver
        .apply(&batch(&narrow, &[insert(110, row(1, "a", "b"))]))
        .unwrap();
    silver.commit(Lsn(110)).unwrap();
    let changed = schema(
        "items",
        &[
            ("id", DataType::Utf8),
            ("small", DataType::Utf8),
            ("when", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ],
        Identity::Key(vec![0]),
    );
    assert!(
        silver
            .add_columns(&changed, &[])
            .unwrap_err()
            .is(&code::SCHEMA_CHANGED)
    );
    drop(silver);
    // Opened with the source's new schema, the handle has the lake's, and takes no changes.
    let mut silver = open(&changed);
    assert_eq!(silver.schema().columns[0].data_type, DataType::Int64);
    let refused = silver
        .apply(&batch(&narrow, &[delete(120, 1)]))
        .unwrap_err();
    assert!(refused.is(&code::SCHEMA_CHANGED), "{refused}");
    silver.replace_schema(&changed).unwrap();
    assert_eq!(silver.copy_state(), CopyState::None);
    assert_eq!(silver.num_rows(), 0);
    silver.begin_copy(Lsn(200)).unwrap();
    drop(silver);
    let silver = open(&changed);
    assert_eq!(silver.schema(), &changed);
    assert!(matches!(silver.copy_state(), CopyState::Copying { .. }));
    assert_eq!(
        read::open_table(silver.dir(), None)
            .unwrap()
            .schema
            .field(2)
            .name(),
        "when"
    );
    // A version before it still reads.
    let before = read::open_table(silver.dir(), Some(2)).unwrap();
    assert_eq!(before.schema.field(2).name(), "big");
}

#[test]
fn a_wider_source_leaves_the_narrow_table_usable() {
    let test = TestLake::new();
    let narrow = items(Identity::Key(vec![0]));
    let mut silver = Silver::open(
        &test.lake,
        &owner("items"),
        &narrow,
        SilverSettings::default(),
    )
    .unwrap();
    silver.begin_copy(Lsn(100)).unwrap();
    silver.finish_copy().unwrap();
    drop(silver);
    let wide = wide(Identity::Key(vec![0]));
    let mut silver = Silver::open(
        &test.lake,
        &owner("items"),
        &wide,
        SilverSettings::default(),
    )
    .unwrap();
    assert_eq!(silver.schema().columns.len(), 3);
    silver
        .apply(&batch(&narrow, &[insert(110, row(1, "a", "b"))]))
        .unwrap();
    silver.commit(Lsn(110)).unwrap();
    silver.add_columns(&wide, &[]).unwrap();
    silver
        .apply(&widened(
            &[insert(120, row(2, "a", "b"))],
            Identity::Key(vec![0]),
        ))
        .unwrap();
    silver.commit(Lsn(120)).unwrap();
    assert_eq!(extras(&silver), [(1, None), (2, Some(5))]);
}
