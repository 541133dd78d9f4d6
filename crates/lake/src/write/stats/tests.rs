#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
use std::sync::Arc;

use arrow::array::{
    BinaryArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array,
    ListArray, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Fields};
use serde_json::json;

use super::*;

fn stats_of(columns: Vec<(&str, ArrayRef)>) -> Value {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap();
    let mut collector = StatsCollector::new(&batch.schema());
    // In two steps, so that merging is exercised.
    let half = batch.num_rows() / 2;
    collector.update(&batch.slice(0, half));
    collector.update(&batch.slice(half, batch.num_rows() - half));
    serde_json::from_str(&collector.finish()).unwrap()
}

#[test]
fn plain_types_have_tight_bounds() {
    let stats = stats_of(vec![
        (
            "i",
            Arc::new(Int64Array::from(vec![
                Some(i64::MAX),
                None,
                Some(i64::MIN),
                Some(3),
            ])),
        ),
        (
            "s",
            Arc::new(StringArray::from(vec![
                Some("b"),
                Some("a\"\n"),
                None,
                Some("c"),
            ])),
        ),
        (
            "d",
            Arc::new(Date32Array::from(vec![Some(0), Some(-1), None, None])),
        ),
        (
            "n",
            Arc::new(
                Decimal128Array::from(vec![Some(-5), Some(12345), None, Some(0)])
                    .with_precision_and_scale(15, 2)
                    .unwrap(),
            ),
        ),
    ]);
    assert_eq!(stats["numRecords"], 4);
    assert_eq!(stats["minValues"]["i"], json!(i64::MIN));
    assert_eq!(stats["maxValues"]["i"], json!(i64::MAX));
    assert_eq!(stats["minValues"]["s"], "a\"\n");
    assert_eq!(stats["maxValues"]["s"], "c");
    assert_eq!(stats["minValues"]["d"], "1969-12-31");
    assert_eq!(stats["minValues"]["n"], json!(-0.05));
    assert_eq!(stats["maxValues"]["n"], json!(123.45));
    assert_eq!(stats["nullCount"], json!({"i": 1, "s": 1, "d": 2, "n": 1}));
}

#[test]
fn times_are_moved_outwards_to_milliseconds() {
    let column = TimestampMicrosecondArray::from(vec![-1, 1_700_000_000_123_456]);
    let stats = stats_of(vec![
        ("local", Arc::new(column.clone())),
        ("utc", Arc::new(column.with_timezone("UTC"))),
    ]);
    assert_eq!(stats["minValues"]["local"], "1969-12-31T23:59:59.999");
    assert_eq!(stats["maxValues"]["local"], "2023-11-14T22:13:20.124");
    assert_eq!(stats["minValues"]["utc"], "1969-12-31T23:59:59.999Z");
    assert_eq!(stats["maxValues"]["utc"], "2023-11-14T22:13:20.124Z");
}

#[test]
fn what_readers_could_get_wrong_has_no_bounds() {
    let far = 1_000_000; // the year 4707, then one beyond 9999
    let structs = StructArray::new(
        Fields::from(vec![Field::new("a", DataType::Int32, true)]),
        vec![Arc::new(Int32Array::from(vec![Some(1), Some(2)]))],
        Some(vec![true, false].into()),
    );
    let lists = ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>(vec![
        Some(vec![Some(1)]),
        None,
    ]);
    let stats = stats_of(vec![
        ("nan", Arc::new(Float64Array::from(vec![1.0, f64::NAN]))),
        (
            "infinite",
            Arc::new(Float32Array::from(vec![f32::NEG_INFINITY, 1.0])),
        ),
        (
            "wide",
            Arc::new(
                Decimal128Array::from(vec![1, 2])
                    .with_precision_and_scale(16, 0)
                    .unwrap(),
            ),
        ),
        ("far", Arc::new(Date32Array::from(vec![far, 4 * far]))),
        (
            "old",
            Arc::new(TimestampMicrosecondArray::from(vec![
                0,
                -70_000_000_000_000_000,
            ])),
        ),
        (
            "bytes",
            Arc::new(BinaryArray::from(vec![b"a".as_slice(), b"b"])),
        ),
        ("struct", Arc::new(structs)),
        ("list", Arc::new(lists)),
    ]);
    assert_eq!(stats["minValues"], json!({}));
    assert_eq!(stats["maxValues"], json!({}));
    assert_eq!(stats["nullCount"]["struct"], json!({"a": 1}));
    assert_eq!(stats["nullCount"]["list"], 1);
    assert_eq!(stats["nullCount"]["bytes"], 0);
}

#[test]
fn floats_hold_in_single_and_double_precision() {
    let stats = stats_of(vec![
        ("f", Arc::new(Float32Array::from(vec![0.1_f32, -0.1]))),
        ("zero", Arc::new(Float64Array::from(vec![0.0, -0.0]))),
    ]);
    let max = stats["maxValues"]["f"].as_f64().unwrap();
    assert!(max >= f64::from(0.1_f32));
    assert!(
        stats["minValues"]["zero"]
            .as_f64()
            .unwrap()
            .is_sign_negative()
    );
    assert!(
        stats["maxValues"]["zero"]
            .as_f64()
            .unwrap()
            .is_sign_positive()
    );
}

#[test]
fn long_texts_are_cut_outwards() {
    let long = format!("{}ä", "x".repeat(40));
    let top = format!("{}{}", "y".repeat(32), char::MAX);
    let stats = stats_of(vec![
        (
            "long",
            Arc::new(StringArray::from(vec![long.as_str(), long.as_str()])),
        ),
        ("top", Arc::new(StringArray::from(vec!["a", top.as_str()]))),
    ]);
    let (low, high) = (
        stats["minValues"]["long"].as_str().unwrap().to_owned(),
        stats["maxValues"]["long"].as_str().unwrap().to_owned(),
    );
    assert!(low <= long && high >= long, "{low} {high}");
    assert!(
        stats["maxValues"].get("top").is_none(),
        "nothing is above it"
    );
}

#[test]
fn what_is_written_is_read_back() {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let decimal = DataType::Decimal128(10, 2);
    let stats = r#"{"numRecords":2,"minValues":{"t":"2023-11-14T22:13:20.123Z","n":-1.25,"i":7},
        "maxValues":{"t":"2023-11-14T22:13:20.124Z"},"nullCount":{"i":1}}"#;
    let bounds = crate::write::parse_bounds(
        stats,
        &[
            ("t", &utc),
            ("n", &decimal),
            ("i", &DataType::Int16),
            ("absent", &DataType::Utf8),
        ],
    );
    let min_t = bounds[0].min.clone().unwrap();
    assert_eq!(
        min_t.as_primitive::<TimestampMicrosecondType>().value(0),
        1_700_000_000_123_000
    );
    assert_eq!(
        bounds[1]
            .min
            .clone()
            .unwrap()
            .as_primitive::<Decimal128Type>()
            .value(0),
        -125
    );
    assert_eq!(
        bounds[2]
            .min
            .clone()
            .unwrap()
            .as_primitive::<Int16Type>()
            .value(0),
        7
    );
    assert_eq!(bounds[2].null_count, Some(1));
    assert!(bounds[2].max.is_none() && bounds[3].min.is_none());
}
