//! Every type goes in and comes out, through inserts, updates, unsent values and deletion vectors.

use std::fs::File;
use std::sync::Arc;

use alluvium_change::{ChangeBatch, Identity, Lsn, Op, TableSchema};
use alluvium_lake::{
    Bronze, Compression, LakeSettings, MetadataColumn, Silver, SilverSettings, read,
};
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, ListBuilder, MapBuilder, MapFieldNames, RecordBatch,
    StringArray, StringBuilder, StructArray, TimestampMicrosecondArray,
};
use arrow::compute::{concat_batches, sort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::metadata::PageIndexPolicy;

use crate::support::{TestLake, owner, read_table, schema};
use alluvium_testkit::history::Random;

fn types() -> Vec<(&'static str, DataType)> {
    let inner = Fields::from(vec![
        Field::new("number", DataType::Decimal128(38, 10), true),
        Field::new("text", DataType::Utf8, true),
    ]);
    let entries = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ]);
    vec![
        ("id", DataType::Int64),
        ("boolean", DataType::Boolean),
        ("short", DataType::Int16),
        ("int", DataType::Int32),
        ("float", DataType::Float32),
        ("double", DataType::Float64),
        ("wide", DataType::Decimal128(38, 10)),
        ("narrow", DataType::Decimal128(9, 2)),
        ("text", DataType::Utf8),
        ("bytes", DataType::Binary),
        ("date", DataType::Date32),
        (
            "at",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ),
        ("local", DataType::Timestamp(TimeUnit::Microsecond, None)),
        (
            "list",
            DataType::List(Field::new("element", DataType::Utf8, true).into()),
        ),
        (
            "map",
            DataType::Map(
                Field::new("key_value", DataType::Struct(entries), false).into(),
                false,
            ),
        ),
        ("struct", DataType::Struct(inner)),
    ]
}

fn pick<T: Copy>(random: &mut Random, values: &[T]) -> Option<T> {
    let at = usize::try_from(random.below(values.len() as u64 + 1)).unwrap();
    values.get(at).copied()
}

/// Rows with the values that readers get wrong.
fn rows(table: &TableSchema, ids: &[i64], random: &mut Random) -> RecordBatch {
    let long = "ö".repeat(50);
    let texts = ["", "a\"b\\c\n", "z\u{10FFFF}", long.as_str(), "plain"];
    let micros = [
        0,
        -1,
        1_700_000_000_123_456,
        253_402_300_799_999_999,
        -62_135_596_800_000_000,
    ];
    let wide = [
        10_i128.pow(37),
        -(10_i128.pow(37)),
        1,
        9_007_199_254_740_993,
    ];
    macro_rules! column {
        ($array:ty, $values:expr) => {
            ids.iter()
                .map(|_| pick(random, $values))
                .collect::<$array>()
        };
    }
    let decimal = |array: Decimal128Array, precision, scale| -> ArrayRef {
        Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
    };
    let numbers = decimal(column!(Decimal128Array, &wide), 38, 10);
    let inner_texts: ArrayRef = Arc::new(column!(StringArray, &texts));
    let DataType::Struct(fields) = table.columns[15].data_type.clone() else {
        panic!()
    };
    let nulls: Vec<bool> = ids.iter().map(|_| random.chance(70)).collect();
    let structs = StructArray::new(fields, vec![numbers, inner_texts], Some(nulls.into()));
    let element = Field::new("element", DataType::Utf8, true);
    let mut lists = ListBuilder::new(StringBuilder::new()).with_field(element);
    let names = MapFieldNames {
        entry: "key_value".into(),
        key: "key".into(),
        value: "value".into(),
    };
    let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    for _ in ids {
        for place in 0..random.below(4) {
            lists.values().append_option(pick(random, &texts));
            maps.keys().append_value(format!("k{place}"));
            maps.values().append_option(pick(random, &texts));
        }
        lists.append(random.chance(80));
        maps.append(true).unwrap();
    }
    let bytes: [&[u8]; 3] = [b"", b"\x00\xFF", b"abc"];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.to_vec())),
        Arc::new(column!(BooleanArray, &[true, false])),
        Arc::new(column!(Int16Array, &[i16::MIN, 0, i16::MAX])),
        Arc::new(column!(Int32Array, &[i32::MIN, 0, i32::MAX])),
        Arc::new(column!(Float32Array, &[f32::NAN, 0.1, -0.0, f32::INFINITY])),
        Arc::new(column!(
            Float64Array,
            &[f64::NEG_INFINITY, 0.1, f64::MIN_POSITIVE, f64::MAX]
        )),
        decimal(column!(Decimal128Array, &wide), 38, 10),
        decimal(
            column!(Decimal128Array, &[-999_999_999, 5, 999_999_999]),
            9,
            2,
        ),
        Arc::new(column!(StringArray, &texts)),
        Arc::new(column!(BinaryArray, &bytes)),
        Arc::new(column!(Date32Array, &[0, -719_162, 2_932_896])),
        Arc::new(column!(TimestampMicrosecondArray, &micros).with_timezone("UTC")),
        Arc::new(column!(TimestampMicrosecondArray, &micros)),
        Arc::new(lists.finish()),
        Arc::new(maps.finish()),
        Arc::new(structs),
    ];
    RecordBatch::try_new(Arc::clone(table.arrow()), columns).unwrap()
}

fn changes(table: &Arc<TableSchema>, op: Op, lsn: u64, rows: RecordBatch) -> ChangeBatch {
    let count = rows.num_rows();
    ChangeBatch {
        table: Arc::clone(table),
        ops: vec![op; count],
        commit_lsn: vec![Lsn(lsn); count],
        event_serial: (0..count as u64).collect(),
        xid: vec![1; count],
        commit_time_micros: vec![0; count],
        rows,
        old: None,
        unchanged: Vec::new(),
    }
}

fn by_id(batch: &RecordBatch) -> RecordBatch {
    let order = sort_to_indices(batch.column(0), None, None).unwrap();
    take_record_batch(batch, &order).unwrap()
}

#[test]
fn every_type_is_held_exactly() {
    let test = TestLake::new();
    let table = schema("items", &types(), Identity::Key(vec![0]));
    let open = || {
        Silver::open(
            &test.lake,
            &owner("items"),
            &table,
            SilverSettings::default(),
        )
        .unwrap()
    };
    let mut silver = open();
    let mut random = Random(1);
    silver.begin_copy(Lsn(100)).unwrap();
    let copied = rows(&table, &(0..300).collect::<Vec<_>>(), &mut random);
    silver.stage_copied(&copied, Lsn(100)).unwrap();
    silver.commit_copied(Lsn(100), 7, u32::MAX).unwrap();
    silver.finish_copy().unwrap();

    // Inserts, then in the same commit updates of some: a new file with deleted rows.
    let inserted = rows(&table, &(300..500).collect::<Vec<_>>(), &mut random);
    silver
        .apply(&changes(&table, Op::Insert, 110, inserted.clone()))
        .unwrap();
    let updated = rows(&table, &(290..310).collect::<Vec<_>>(), &mut random);
    silver
        .apply(&changes(&table, Op::Update, 110, updated.clone()))
        .unwrap();
    silver.commit(Lsn(110)).unwrap();
    // Nothing but the boolean is sent of some, which the files have.
    let mut touched = rows(&table, &[5, 305, 400], &mut random);
    let mut partial = changes(&table, Op::Update, 120, touched.clone());
    let everything = concat_batches(table.arrow(), [&copied.slice(0, 300), &inserted]).unwrap();
    for column in 2..16_u32 {
        partial
            .unchanged
            .extend((0..3).map(|row| alluvium_change::Unchanged { row, column }));
    }
    partial.unchanged.sort_unstable();
    silver.apply(&partial).unwrap();
    silver
        .apply(&changes(
            &table,
            Op::Delete,
            120,
            rows(&table, &[0, 299, 499], &mut random),
        ))
        .unwrap();
    silver.commit(Lsn(120)).unwrap();

    let mut expected: Vec<RecordBatch> = Vec::new();
    for id in 1..499_i64 {
        let at = usize::try_from(id).unwrap();
        expected.push(match id {
            299 => continue,
            290..310 => updated.slice(at - 290, 1),
            _ => everything.slice(at, 1),
        });
    }
    let mut expected = concat_batches(table.arrow(), &expected).unwrap();
    // Of the touched rows the boolean is new.
    let booleans: BooleanArray = {
        use arrow::array::AsArray;
        let fresh = touched.column(1).as_boolean().clone();
        let ids = expected
            .column(0)
            .as_primitive::<arrow::datatypes::Int64Type>()
            .clone();
        let before = expected.column(1).as_boolean().clone();
        (0..expected.num_rows())
            .map(
                |row| match [5, 305, 400].iter().position(|id| *id == ids.value(row)) {
                    Some(at) => fresh.iter().nth(at).flatten(),
                    None => before.iter().nth(row).flatten(),
                },
            )
            .collect()
    };
    let mut columns = expected.columns().to_vec();
    columns[1] = Arc::new(booleans);
    expected = RecordBatch::try_new(expected.schema(), columns).unwrap();
    touched = by_id(&expected);

    drop(silver);
    let silver = open();
    let read = concat_batches(table.arrow(), &read_table(silver.dir())).unwrap();
    let read = by_id(&read);
    for (expected, (read, column)) in touched
        .columns()
        .iter()
        .zip(read.columns().iter().zip(&table.columns))
    {
        // Arrow compares bits: a NaN is equal to itself, and -0.0 is not 0.0.
        assert_eq!(expected, read, "{}", column.name);
    }
    let files = read::open_table(silver.dir(), None).unwrap().files;
    assert!(files.iter().any(|file| {
        let name = file.path.file_name().unwrap().to_str().unwrap();
        name.starts_with("part-") && file.deleted.is_some()
    }));
}

/// What a reader sees of a table: rows, and each file's statistics.
fn seen(silver: &Silver) -> (RecordBatch, Vec<String>) {
    let batches = read_table(silver.dir());
    let rows = concat_batches(&batches[0].schema(), &batches).unwrap();
    let files = read::open_table(silver.dir(), None).unwrap().files;
    (
        rows,
        files.iter().map(|file| file.stats.to_string()).collect(),
    )
}

#[test]
fn rows_encoded_once_are_the_rows_encoded_twice_by_every_codec() {
    for (compression, codec) in [
        (
            Compression::Zstd(3),
            ParquetCompression::ZSTD(ZstdLevel::default()),
        ),
        (Compression::Lz4, ParquetCompression::LZ4_RAW),
        (Compression::Snappy, ParquetCompression::SNAPPY),
        (Compression::Uncompressed, ParquetCompression::UNCOMPRESSED),
    ] {
        encode_once_and_twice(compression, codec);
    }
}

fn encode_once_and_twice(compression: Compression, codec: ParquetCompression) {
    let settings = LakeSettings {
        compression,
        fsync: false,
        share_from_rows: 1,
        ..LakeSettings::default()
    };
    let test = TestLake::with(settings);
    let table = schema("items", &types(), Identity::Key(vec![0]));
    let metadata = SilverSettings {
        metadata_columns: vec![MetadataColumn::CommitLsn, MetadataColumn::Op],
        ..SilverSettings::default()
    };
    for (names, settings) in [
        (["shared", "apart"], SilverSettings::default()),
        (["shared_metadata", "apart_metadata"], metadata),
    ] {
        let mut bronze = Bronze::open(&test.lake, &owner(names[0]), &table).unwrap();
        let [mut shared, mut apart] = names
            .map(|name| Silver::open(&test.lake, &owner(name), &table, settings.clone()).unwrap());
        let mut random = Random(7);
        let copied = rows(&table, &(0..3000).collect::<Vec<_>>(), &mut random);
        let encoded = bronze.stage_copied(&copied, Lsn(100), 0).unwrap().unwrap();
        bronze.commit_copied().unwrap();
        shared.begin_copy(Lsn(100)).unwrap();
        apart.begin_copy(Lsn(100)).unwrap();
        shared
            .stage_copied_encoded(&copied, Lsn(100), Some(&encoded))
            .unwrap();
        apart.stage_copied(&copied, Lsn(100)).unwrap();
        for silver in [&mut shared, &mut apart] {
            silver.commit_copied(Lsn(100), 7, u32::MAX).unwrap();
            silver.finish_copy().unwrap();
        }
        let inserted = rows(&table, &(3000..5000).collect::<Vec<_>>(), &mut random);
        let updated = rows(&table, &(10..1500).collect::<Vec<_>>(), &mut random);
        for (op, rows) in [(Op::Insert, inserted), (Op::Update, updated)] {
            let changes = changes(&table, op, 110, rows);
            let encoded = bronze.stage(&changes).unwrap().unwrap();
            shared.apply_encoded(&changes, Some(&encoded)).unwrap();
            apart.apply(&changes).unwrap();
        }
        bronze.commit(Lsn(110)).unwrap();
        for silver in [&mut shared, &mut apart] {
            silver.commit(Lsn(110)).unwrap();
        }
        let (rows, stats) = seen(&shared);
        assert_eq!(rows.num_rows(), 5000);
        assert_eq!((rows, stats), seen(&apart));
        // The pages that readers skip by are described.
        for file in read::open_table(shared.dir(), None).unwrap().files {
            let options =
                ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
            let file = File::open(&file.path).unwrap();
            let reader =
                ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).unwrap();
            assert!(reader.metadata().offset_index().is_some());
            assert!(reader.metadata().column_index().is_some());
            assert_eq!(
                reader.metadata().row_group(0).column(0).compression(),
                codec
            );
        }
    }
}
