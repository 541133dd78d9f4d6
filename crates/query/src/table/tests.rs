//! Scans against a brute-force model: random files, deletion vectors and predicates.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod predicate;

use std::collections::BTreeMap;
use std::fs::File;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use tempfile::TempDir;

use self::predicate::{Predicate, predicate};
use super::*;
use crate::session::{QuerySettings, Session};

/// Enough randomness for test data, repeatable by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn signed(&mut self, bound: i64) -> i64 {
        self.below(bound.unsigned_abs() * 2 + 1).cast_signed() - bound
    }
}

#[derive(Debug, Clone)]
struct Row {
    id: i64,
    a: Option<i32>,
    f: Option<f64>,
    s: Option<String>,
    d: Option<i128>,
    wide: Option<i128>,
    t: Option<i64>,
    b: Option<bool>,
    /// Not in the files written before the column was added.
    added: Option<String>,
}

impl Row {
    fn random(id: i64, random: &mut Random, has_added: bool) -> Self {
        let null = |value: u64| (!value.is_multiple_of(7)).then_some(value);
        let [a, f, s, d, wide, t, b, added] = std::array::from_fn(|_| null(random.next()));
        Self {
            id,
            a: a.map(|_| i32::try_from(random.signed(20)).unwrap()),
            f: f.map(|value| match value % 11 {
                0 => f64::NAN,
                1 => f64::INFINITY,
                2 => f64::NEG_INFINITY,
                _ => f64::from(i32::try_from(random.signed(30)).unwrap()) / 4.0,
            }),
            s: s.map(|value| {
                format!(
                    "{}{}",
                    ["", "a", "ab", "ä", "~"][value as usize % 5],
                    value % 9
                )
            }),
            d: d.map(|_| i128::from(random.signed(500))),
            wide: wide.map(|_| {
                i128::from(random.signed(3)) * 10_i128.pow(37) + i128::from(random.signed(2))
            }),
            t: t.map(|_| random.signed(5_000)),
            b: b.map(|value| value.is_multiple_of(2)),
            added: added
                .filter(|_| has_added)
                .map(|value| format!("x{}", value % 4)),
        }
    }
}

fn schema(has_added: bool) -> SchemaRef {
    let zone = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("id", DataType::Int64, true),
        Field::new("a", DataType::Int32, true),
        Field::new("f", DataType::Float64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("d", DataType::Decimal128(12, 2), true),
        Field::new("wide", DataType::Decimal128(38, 4), true),
        Field::new("t", zone, true),
        Field::new("b", DataType::Boolean, true),
    ];
    if has_added {
        // Not at the end: columns are found by name.
        fields.insert(2, Field::new("added", DataType::Utf8, true));
    }
    Arc::new(Schema::new(fields))
}

fn to_batch(rows: &[Row], schema: &SchemaRef) -> RecordBatch {
    let column = |field: &Field| -> ArrayRef {
        match field.name().as_str() {
            "id" => Arc::new(rows.iter().map(|row| Some(row.id)).collect::<Int64Array>()),
            "a" => Arc::new(rows.iter().map(|row| row.a).collect::<Int32Array>()),
            "added" => Arc::new(
                rows.iter()
                    .map(|row| row.added.clone())
                    .collect::<StringArray>(),
            ),
            "f" => Arc::new(rows.iter().map(|row| row.f).collect::<Float64Array>()),
            "s" => Arc::new(
                rows.iter()
                    .map(|row| row.s.clone())
                    .collect::<StringArray>(),
            ),
            "d" | "wide" => {
                let values: Decimal128Array = rows
                    .iter()
                    .map(|row| if field.name() == "d" { row.d } else { row.wide })
                    .collect();
                Arc::new(values.with_data_type(field.data_type().clone()))
            }
            "t" => Arc::new(
                rows.iter()
                    .map(|row| row.t)
                    .collect::<TimestampMicrosecondArray>()
                    .with_timezone("UTC"),
            ),
            _ => Arc::new(rows.iter().map(|row| row.b).collect::<BooleanArray>()),
        }
    };
    let columns = schema.fields().iter().map(|field| column(field)).collect();
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}

/// Statistics as a foreign writer may give them: no NaN in float bounds, timestamps cut to
/// milliseconds, wide decimals through a float, nothing for booleans.
fn stats(rows: &[Row], has_added: bool) -> String {
    fn ends<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<(T, T)> {
        values.fold(None, |ends, value| match ends {
            None => Some((value, value)),
            Some((low, high)) => Some((
                if value < low { value } else { low },
                if value > high { value } else { high },
            )),
        })
    }
    let mut min = serde_json::Map::new();
    let mut max = serde_json::Map::new();
    let mut put = |name: &str, low: serde_json::Value, high: serde_json::Value| {
        min.insert(name.to_owned(), low);
        max.insert(name.to_owned(), high);
    };
    if let Some((low, high)) = ends(rows.iter().map(|row| row.id)) {
        put("id", low.into(), high.into());
    }
    if let Some((low, high)) = ends(rows.iter().filter_map(|row| row.a)) {
        put("a", low.into(), high.into());
    }
    if let Some((low, high)) = ends(
        rows.iter()
            .filter_map(|row| row.f)
            .filter(|f| f.is_finite()),
    ) && rows
        .iter()
        .filter_map(|row| row.f)
        .all(|f| !f.is_infinite())
    {
        put("f", low.into(), high.into());
    }
    let texts = |of: fn(&Row) -> Option<&str>| {
        rows.iter()
            .filter_map(of)
            .min()
            .zip(rows.iter().filter_map(of).max())
    };
    if let Some((low, high)) = texts(|row| row.s.as_deref()) {
        put("s", low.into(), high.into());
    }
    if let Some((low, high)) = texts(|row| row.added.as_deref()) {
        put("added", low.into(), high.into());
    }
    if let Some((low, high)) = ends(rows.iter().filter_map(|row| row.d)) {
        put(
            "d",
            (low as f64 / 100.0).into(),
            (high as f64 / 100.0).into(),
        );
    }
    if let Some((low, high)) = ends(rows.iter().filter_map(|row| row.wide)) {
        put(
            "wide",
            (low as f64 / 10_000.0).into(),
            (high as f64 / 10_000.0).into(),
        );
    }
    if let Some((low, high)) = ends(rows.iter().filter_map(|row| row.t)) {
        let text = |micros: i64| {
            let ms = micros.div_euclid(1000);
            let (day, ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
            let day = if day < 0 { "1969-12-31" } else { "1970-01-01" };
            let (s, ms) = (ms / 1000, ms % 1000);
            format!(
                "{day}T{:02}:{:02}:{:02}.{ms:03}Z",
                s / 3600,
                s / 60 % 60,
                s % 60
            )
        };
        put("t", text(low).into(), text(high).into());
    }
    let nulls = |of: fn(&Row) -> bool| rows.iter().filter(|row| of(row)).count();
    let mut null_count = serde_json::json!({
        "id": 0, "a": nulls(|row| row.a.is_none()), "f": nulls(|row| row.f.is_none()),
        "s": nulls(|row| row.s.is_none()), "d": nulls(|row| row.d.is_none()),
        "wide": nulls(|row| row.wide.is_none()), "t": nulls(|row| row.t.is_none()),
        "b": nulls(|row| row.b.is_none()),
    });
    if has_added {
        null_count["added"] = nulls(|row| row.added.is_none()).into();
    }
    serde_json::json!({
        "numRecords": rows.len(), "minValues": min, "maxValues": max, "nullCount": null_count,
        "tightBounds": false,
    })
    .to_string()
}

/// Deleted rows in the shapes a table meets.
fn deletions(rows: u64, random: &mut Random) -> Option<RoaringTreemap> {
    let mut deleted = RoaringTreemap::new();
    match random.below(6) {
        0 => return None,
        1 => {}
        2 => deleted.extend((0..rows).filter(|_| random.below(10) == 0)),
        3 => {
            let start = random.below(rows);
            deleted.insert_range(start..start + random.below(rows - start) + 1);
        }
        4 => {
            deleted.insert_range(0..rows);
        }
        _ => {
            deleted.insert_range(0..rows);
            deleted.remove(random.below(rows));
        }
    }
    Some(deleted)
}

struct World {
    session: Session,
    live: Vec<Row>,
    _dir: TempDir,
}

impl World {
    /// A table of several files of several row groups and pages, and the rows it should show.
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        // A path that has to be escaped on its way.
        let dir = tempfile::Builder::new()
            .prefix("lake %41 ü#1")
            .tempdir()
            .unwrap();
        let mut live = Vec::new();
        let mut files = Vec::new();
        let mut id = 0;
        for number in 0..1 + random.below(7) {
            let has_added = number > 2;
            let count = 1 + random.below(300);
            let rows: Vec<Row> = (0..count)
                .map(|_| {
                    id += 1;
                    Row::random(id, &mut random, has_added)
                })
                .collect();
            let path = dir.path().join(format!("part {number}.parquet"));
            let properties = WriterProperties::builder()
                .set_max_row_group_row_count(Some(1 + random.below(100) as usize))
                .set_data_page_row_count_limit(7)
                .set_write_batch_size(3)
                .build();
            let schema = schema(has_added);
            let mut writer = ArrowWriter::try_new(
                File::create(&path).unwrap(),
                Arc::clone(&schema),
                Some(properties),
            )
            .unwrap();
            writer.write(&to_batch(&rows, &schema)).unwrap();
            writer.close().unwrap();
            let deleted = deletions(count, &mut random);
            let gone = |place: usize| {
                deleted
                    .as_ref()
                    .is_some_and(|deleted| deleted.contains(place as u64))
            };
            live.extend(
                rows.iter()
                    .enumerate()
                    .filter(|(place, _)| !gone(*place))
                    .map(|(_, row)| row.clone()),
            );
            files.push(DataFile {
                size_bytes: std::fs::metadata(&path).unwrap().len(),
                path,
                num_rows: count,
                deleted: deleted.map(Arc::new),
                stats: stats(&rows, has_added).into(),
            });
        }
        let version = TableVersion {
            version: 1,
            schema: schema(true),
            files,
            txns: BTreeMap::new(),
            properties: BTreeMap::new(),
            commit_time_ms: 0,
            checkpoint: None,
        };
        let session = Session::open(
            dir.path(),
            &QuerySettings {
                memory_bytes: 64 << 20,
                threads: 3,
            },
        )
        .unwrap();
        session.register_for_test("t", Arc::new(LakeTable::new(version, dir.path()).unwrap()));
        Self {
            session,
            live,
            _dir: dir,
        }
    }

    async fn query(&self, text: &str) -> Vec<RecordBatch> {
        let result = self
            .session
            .sql(text)
            .await
            .unwrap_or_else(|e| panic!("{text}: {e} {:?}", e.detail()));
        result
            .collect()
            .await
            .unwrap_or_else(|e| panic!("{text}: {e} {:?}", e.detail()))
    }

    /// All columns of the rows, as text in the order of `id`.
    async fn rows(&self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for batch in self.query(text).await {
            let mut out = Vec::new();
            let options = crate::output::Options::new(crate::output::Format::Ndjson);
            let mut printer = crate::output::Printer::new(&batch.schema(), &options, &mut out);
            printer.write(&batch).unwrap();
            printer.finish().unwrap();
            lines.extend(String::from_utf8(out).unwrap().lines().map(str::to_owned));
        }
        lines
    }

    fn expected(&self, predicate: &Predicate) -> Vec<String> {
        let rows: Vec<Row> = self
            .live
            .iter()
            .filter(|row| predicate.holds(row) == Some(true))
            .cloned()
            .collect();
        let batch = to_batch(&rows, &schema(true));
        let mut out = Vec::new();
        let options = crate::output::Options::new(crate::output::Format::Ndjson);
        let mut printer = crate::output::Printer::new(&batch.schema(), &options, &mut out);
        printer.write(&batch).unwrap();
        printer.finish().unwrap();
        String::from_utf8(out)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_query_equals_the_model(
        seed in any::<u64>(),
        predicates in prop::collection::vec(predicate(), 6),
    ) {
        let world = World::new(seed);
        runtime().block_on(async {
            for predicate in &predicates {
                let condition = predicate.sql();
                let expected = world.expected(predicate);
                let query = format!("select * from test.public.t where {condition} order by id");
                prop_assert_eq!(&world.rows(&query).await, &expected, "{}", query);

                let query = format!("select count(*) as n from test.public.t where {condition}");
                prop_assert_eq!(world.rows(&query).await, vec![format!("{{\"n\":{}}}", expected.len())]);

                let query = format!("select id from test.public.t where {condition} limit 5");
                prop_assert_eq!(world.rows(&query).await.len(), expected.len().min(5), "{}", query);
            }
            Ok(())
        })?;
    }

    #[test]
    fn whole_table_questions_equal_the_model(seed in any::<u64>()) {
        let world = World::new(seed);
        runtime().block_on(async {
            let all = Predicate::Id(">", 0);
            prop_assert_eq!(
                world.rows("select * from test.public.t order by id").await,
                world.expected(&all)
            );
            let ids: Vec<i64> = world.live.iter().map(|row| row.id).collect();
            let batches = world
                .query("select count(*), count(a), min(id), max(id), min(a), max(a) from test.public.t")
                .await;
            let integer = |place: usize| {
                let column = batches[0].column(place).as_primitive::<Int64Type>();
                column.is_valid(0).then(|| column.value(0))
            };
            let small = |place: usize| {
                let column = batches[0].column(place).as_primitive::<Int32Type>();
                column.is_valid(0).then(|| column.value(0))
            };
            let a = || world.live.iter().filter_map(|row| row.a);
            prop_assert_eq!(integer(0), Some(ids.len() as i64));
            prop_assert_eq!(integer(1), Some(a().count() as i64));
            prop_assert_eq!(integer(2), ids.iter().min().copied());
            prop_assert_eq!(integer(3), ids.iter().max().copied());
            prop_assert_eq!(small(4), a().min());
            prop_assert_eq!(small(5), a().max());
            prop_assert_eq!(world.rows("select count(*) as n from test.public.t").await,
                vec![format!("{{\"n\":{}}}", ids.len())]);
            prop_assert_eq!(
                world.rows("select s from test.public.t limit 7").await.len(), ids.len().min(7)
            );
            // Top-k reads with a bound that tightens while it runs.
            let top: Vec<String> =
                ids.iter().rev().take(9).map(|id| format!("{{\"id\":{id}}}")).collect();
            prop_assert_eq!(
                world.rows("select id from test.public.t order by id desc limit 9").await, top
            );
            let joined = world
                .rows("select count(*) as n from test.public.t x join test.public.t y on x.id = y.id where y.id < 100")
                .await;
            let few = ids.iter().filter(|id| **id < 100).count();
            prop_assert_eq!(joined, vec![format!("{{\"n\":{few}}}")]);
            Ok(())
        })?;
    }
}

/// What the optimiser makes of a query, as text.
fn plan_of(world: &World, query: &str) -> String {
    let lines = runtime().block_on(world.rows(&format!("explain {query}")));
    lines.join("\n")
}

#[test]
fn counting_reads_no_file_and_bounds_skip_files() {
    let world = (0..)
        .map(World::new)
        .find(|world| world.live.len() > 500)
        .unwrap();
    let plan = plan_of(&world, "select count(*) from test.public.t");
    assert!(!plan.contains("DataSourceExec"), "{plan}");
    let plan = plan_of(&world, "select a from test.public.t where id = -5");
    assert!(!plan.contains(".parquet"), "{plan}");
    let one = plan_of(&world, "select a from test.public.t where id = 1");
    assert!(one.matches(".parquet").count() <= 1, "{one}");
    let all = plan_of(&world, "select a from test.public.t");
    assert!(all.matches(".parquet").count() > 1, "{all}");
}

#[test]
fn lists_without_a_common_value_leave_null_unknown() {
    let world = World::new(1_805_702_235_365_527);
    let list = |value| Box::new(Predicate::AIn(vec![value]));
    let both = Predicate::And(list(21), list(13));
    let either = Predicate::Or(
        Box::new(Predicate::Not(list(5))),
        Box::new(Predicate::Not(list(7))),
    );
    for predicate in [Predicate::Not(Box::new(both)), either] {
        let condition = predicate.sql();
        let query = format!("select * from test.public.t where {condition} order by id");
        let found = runtime().block_on(world.rows(&query));
        assert_eq!(found, world.expected(&predicate), "{query}");
        assert!(found.len() < world.live.len());
    }
}

#[test]
fn nan_is_found_though_no_bound_knows_it() {
    // Bounds of the one file and row group say that f is at most 2.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("one.parquet");
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("f", DataType::Float64, true)]));
    let values: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN, 2.0]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![values]).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(&path).unwrap(), Arc::clone(&schema), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let file = DataFile {
        size_bytes: std::fs::metadata(&path).unwrap().len(),
        path,
        num_rows: 3,
        deleted: None,
        stats:
            r#"{"numRecords":3,"minValues":{"f":1.0},"maxValues":{"f":2.0},"nullCount":{"f":0}}"#
                .into(),
    };
    let version = TableVersion {
        version: 0,
        schema,
        files: vec![file],
        txns: BTreeMap::new(),
        properties: BTreeMap::new(),
        commit_time_ms: 0,
        checkpoint: None,
    };
    let settings = QuerySettings {
        memory_bytes: 64 << 20,
        threads: 1,
    };
    let session = Session::open(dir.path(), &settings).unwrap();
    session.register_for_test("t", Arc::new(LakeTable::new(version, dir.path()).unwrap()));
    let world = World {
        session,
        live: vec![],
        _dir: dir,
    };
    let found = runtime().block_on(world.rows("select f from test.public.t where f > 5"));
    assert_eq!(found, ["{\"f\":\"NaN\"}"]);
}

#[test]
fn a_deletion_vector_beyond_the_file_is_refused() {
    for rows in [0_u64, 3] {
        let data = DataFile {
            path: "/nowhere/x.parquet".into(),
            size_bytes: 1,
            num_rows: rows,
            deleted: Some(Arc::new([3_u64].into_iter().collect())),
            stats: "".into(),
        };
        let version = TableVersion {
            version: 0,
            schema: schema(true),
            files: vec![data],
            txns: BTreeMap::new(),
            properties: BTreeMap::new(),
            commit_time_ms: 0,
            checkpoint: None,
        };
        assert!(
            LakeTable::new(version, Path::new("/nowhere"))
                .unwrap_err()
                .is(&code::LAKE_CORRUPT)
        );
    }
}
