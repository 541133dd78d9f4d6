//! Nasty values through every format, read back with independent readers where there is one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array,
    DictionaryArray, FixedSizeListArray, Float32Array, Float64Array, Int32Array, Int64Array,
    LargeStringArray, ListArray, MapArray, NullArray, RunArray, StringArray, StringViewArray,
    StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type, Int32Type, i256};
use proptest::prelude::*;

use super::*;

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

fn text(batches: &[RecordBatch], options: &Options) -> String {
    let mut out = Vec::new();
    let mut printer = Printer::new(&batches[0].schema(), options, &mut out);
    for batch in batches {
        printer.write(batch).unwrap();
    }
    printer.finish().unwrap();
    String::from_utf8(out).unwrap()
}

fn json_lines(batch: &RecordBatch) -> Vec<String> {
    let text = text(std::slice::from_ref(batch), &Options::new(Format::Ndjson));
    text.lines().map(str::to_owned).collect()
}

/// The text of `array`'s rows in NDJSON.
fn json_of(array: ArrayRef) -> Vec<String> {
    json_lines(&batch(vec![("v", array)]))
        .iter()
        .map(|line| {
            line.strip_prefix("{\"v\":")
                .unwrap()
                .strip_suffix('}')
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn numbers_are_exact_in_json() {
    let big = Decimal128Array::from(vec![
        Some(99_999_999_999_999_999_999_999_999_999_999_999_999),
        Some(-1),
        None,
        Some(0),
    ])
    .with_precision_and_scale(38, 10)
    .unwrap();
    assert_eq!(
        json_of(Arc::new(big)),
        [
            "9999999999999999999999999999.9999999999",
            "-0.0000000001",
            "null",
            "0.0000000000"
        ]
    );
    let nines = "9".repeat(76);
    let wide = Decimal256Array::from(vec![i256::from_string(&nines).unwrap()])
        .with_precision_and_scale(76, 0)
        .unwrap();
    assert_eq!(json_of(Arc::new(wide)), [nines]);
    assert_eq!(
        json_of(Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX]))),
        ["-9223372036854775808", "9223372036854775807"]
    );
    assert_eq!(
        json_of(Arc::new(UInt64Array::from(vec![u64::MAX]))),
        ["18446744073709551615"]
    );
}

#[test]
fn floats_read_back_to_the_same_bits() {
    let values = [
        0.0,
        -0.0,
        1.0,
        0.1,
        1e300,
        -1e-300,
        f64::MIN_POSITIVE,
        5e-324,
        f64::MAX,
        123_456_789.0,
    ];
    for (value, json) in values
        .iter()
        .zip(json_of(Arc::new(Float64Array::from(values.to_vec()))))
    {
        let back: f64 = json.parse().unwrap();
        assert_eq!(back.to_bits(), value.to_bits(), "{json}");
        assert!(json.contains(['.', 'e']), "{json} is no float any more");
    }
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    assert_eq!(
        json_of(Arc::new(Float64Array::from(special.to_vec()))),
        ["\"NaN\"", "\"Infinity\"", "\"-Infinity\""]
    );
    assert_eq!(
        json_of(Arc::new(Float32Array::from(vec![0.1_f32]))),
        ["0.1"]
    );
    let csv = text(
        &[batch(vec![(
            "f",
            Arc::new(Float64Array::from(vec![1.0, -0.0, f64::NAN])) as ArrayRef,
        )])],
        &Options::new(Format::Csv),
    );
    assert_eq!(csv, "f\n1\n-0\nNaN\n");
}

#[test]
fn times_binary_and_booleans() {
    let with_zone = TimestampMicrosecondArray::from(vec![1_500_000]).with_timezone("UTC");
    assert_eq!(json_of(Arc::new(with_zone)), ["\"1970-01-01T00:00:01.5Z\""]);
    let elsewhere = TimestampMicrosecondArray::from(vec![0]).with_timezone("+02:00");
    assert_eq!(json_of(Arc::new(elsewhere)), ["\"1970-01-01T00:00:00Z\""]);
    let without = TimestampMicrosecondArray::from(vec![1]);
    assert_eq!(
        json_of(Arc::new(without)),
        ["\"1970-01-01T00:00:00.000001\""]
    );
    assert_eq!(
        json_of(Arc::new(Date32Array::from(vec![-1]))),
        ["\"1969-12-31\""]
    );
    let bytes = BinaryArray::from(vec![Some(&b"\x00\xff"[..]), Some(b""), None]);
    assert_eq!(
        json_of(Arc::new(bytes)),
        ["\"\\\\x00ff\"", "\"\\\\x\"", "null"]
    );
    assert_eq!(
        json_of(Arc::new(BooleanArray::from(vec![
            Some(true),
            Some(false),
            None
        ]))),
        ["true", "false", "null"]
    );
    assert_eq!(json_of(Arc::new(NullArray::new(1))), ["null"]);
}

#[test]
fn nested_values_are_json_also_when_sliced() {
    let items = Int32Array::from(vec![Some(1), None, Some(3), Some(4)]);
    let field = Arc::new(Field::new("element", DataType::Int32, true));
    let offsets = OffsetBuffer::from_lengths([2, 0, 2]);
    let list: ArrayRef = Arc::new(ListArray::new(field, offsets, Arc::new(items), None));
    assert_eq!(json_of(Arc::clone(&list)), ["[1,null]", "[]", "[3,4]"]);
    assert_eq!(json_of(list.slice(2, 1)), ["[3,4]"]);

    let pairs: ArrayRef = Arc::new(FixedSizeListArray::new(
        Arc::new(Field::new("element", DataType::Int32, true)),
        2,
        Arc::new(Int32Array::from(vec![1, 2, 3, 4, 5, 6])),
        None,
    ));
    assert_eq!(json_of(pairs.slice(1, 2)), ["[3,4]", "[5,6]"]);

    let structs: ArrayRef = Arc::new(StructArray::from(vec![
        (
            Arc::new(Field::new("a\"b", DataType::Utf8, true)),
            Arc::new(StringArray::from(vec![Some("x\n"), None])) as ArrayRef,
        ),
        (
            Arc::new(Field::new("l", list.data_type().clone(), true)),
            list.slice(0, 2),
        ),
    ]));
    assert_eq!(
        json_of(Arc::clone(&structs)),
        [
            "{\"a\\\"b\":\"x\\n\",\"l\":[1,null]}",
            "{\"a\\\"b\":null,\"l\":[]}"
        ]
    );
    assert_eq!(json_of(structs.slice(1, 1)), ["{\"a\\\"b\":null,\"l\":[]}"]);

    let map = MapArray::new_from_strings(
        ["k\"1", "k2"].into_iter(),
        &Int64Array::from(vec![Some(7), None]),
        &[0, 2],
    )
    .unwrap();
    assert_eq!(json_of(Arc::new(map)), ["{\"k\\\"1\":7,\"k2\":null}"]);
    // Nested values are JSON text in CSV as well.
    let csv = text(&[batch(vec![("l", list)])], &Options::new(Format::Csv));
    assert_eq!(csv, "l\n\"[1,null]\"\n[]\n\"[3,4]\"\n");
}

#[test]
fn encoded_columns_show_their_values() {
    let values: DictionaryArray<Int8Type> = vec![Some("a"), None, Some("b"), Some("a")]
        .into_iter()
        .collect();
    assert_eq!(
        json_of(Arc::new(values)),
        ["\"a\"", "null", "\"b\"", "\"a\""]
    );
    let null_value = DictionaryArray::<Int8Type>::new(
        vec![0_i8, 1].into(),
        Arc::new(StringArray::from(vec![None, Some("x")])),
    );
    assert_eq!(json_of(Arc::new(null_value)), ["null", "\"x\""]);
    let runs = RunArray::<Int32Type>::try_new(
        &Int32Array::from(vec![2, 3]),
        &StringArray::from(vec![Some("r"), None]),
    )
    .unwrap();
    assert_eq!(json_of(Arc::new(runs.slice(1, 2))), ["\"r\"", "null"]);
    assert_eq!(
        json_of(Arc::new(StringViewArray::from(vec![
            "view, longer than twelve bytes"
        ]))),
        ["\"view, longer than twelve bytes\""]
    );
    assert_eq!(
        json_of(Arc::new(LargeStringArray::from(vec![""]))),
        ["\"\""]
    );
}

#[test]
fn equal_column_names_stay_apart_in_json() {
    let one: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let two: ArrayRef = Arc::new(Int32Array::from(vec![2]));
    let three: ArrayRef = Arc::new(Int32Array::from(vec![3]));
    let batch = batch(vec![("id", one), ("id", two), ("id_2", three)]);
    let line = json_lines(&batch).remove(0);
    assert_eq!(line, "{\"id\":1,\"id_3\":2,\"id_2\":3}");
}

#[test]
fn an_empty_result_is_well_formed_in_every_format() {
    let empty = batch(vec![(
        "a",
        Arc::new(Int32Array::from(Vec::<i32>::new())) as ArrayRef,
    )]);
    let at = |format| text(std::slice::from_ref(&empty), &Options::new(format));
    assert_eq!(at(Format::Json), "[]\n");
    assert_eq!(at(Format::Ndjson), "");
    assert_eq!(at(Format::Csv), "a\n");
    assert_eq!(at(Format::Table), "┌───┐\n│ a │\n├───┤\n└───┘\n0 rows\n");
}

#[test]
fn a_box_aligns_escapes_and_cuts() {
    let ids: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), Some(-20), None, Some(4)]));
    let names: ArrayRef = Arc::new(StringArray::from(vec![
        Some("größe"),
        Some("NULL"),
        None,
        Some("a\n\u{1b}[31m\u{202e}x 漢字漢字漢字漢字"),
    ]));
    let options = Options {
        max_cell_width: 30,
        ..Options::default()
    };
    let shown = text(&[batch(vec![("id", ids), ("name", names)])], &options);
    let expected = "\
┌──────┬────────────────────────────────┐
│   id │ name                           │
├──────┼────────────────────────────────┤
│    1 │ größe                          │
│  -20 │ \"NULL\"                         │
│ NULL │ NULL                           │
│    4 │ a\\n\\u{1b}[31m\\u{202e}x 漢字漢… │
└──────┴────────────────────────────────┘
4 rows
";
    assert_eq!(shown, expected);
}

#[test]
fn a_box_widens_after_the_sample_and_cuts_nothing_short() {
    let many: Vec<String> = (0..table::SAMPLE_ROWS + 1)
        .map(|row| row.to_string())
        .collect();
    let mut values: Vec<&str> = many.iter().map(String::as_str).collect();
    values.push("a value longer than all in the sample");
    let rows = values.len();
    let shown = text(
        &[batch(vec![(
            "v",
            Arc::new(StringArray::from(values)) as ArrayRef,
        )])],
        &Options::default(),
    );
    assert!(shown.contains("│ a value longer than all in the sample │\n"));
    assert!(shown.ends_with(&format!("{rows} rows\n")));
    assert_eq!(shown.lines().count(), rows + 5);
}

#[test]
fn a_closed_pipe_ends_quietly_and_a_full_disk_does_not() {
    struct Broken(io::ErrorKind);
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let rows = batch(vec![("a", Arc::new(Int32Array::from(vec![1])) as ArrayRef)]);
    let run = |kind| {
        let batches = futures::stream::iter(vec![Ok(rows.clone())]);
        let options = Options::new(Format::Ndjson);
        let mut out = Broken(kind);
        futures::executor::block_on(print(&rows.schema(), batches, &options, &mut out))
    };
    assert!(run(io::ErrorKind::BrokenPipe).unwrap().reader_gone);
    assert!(
        run(io::ErrorKind::StorageFull)
            .unwrap_err()
            .is(&code::OUTPUT)
    );
}

fn parse_csv(text: &str) -> Vec<Vec<Option<String>>> {
    let mut rows = vec![vec![]];
    let mut characters = text.chars().peekable();
    loop {
        let mut field = String::new();
        let quoted = characters.next_if_eq(&'"').is_some();
        if quoted {
            while let Some(character) = characters.next() {
                if character != '"' {
                    field.push(character);
                } else if characters.next_if_eq(&'"').is_some() {
                    field.push('"');
                } else {
                    break;
                }
            }
        }
        while let Some(character) = characters.next_if(|c| !quoted && *c != ',' && *c != '\n') {
            field.push(character);
        }
        let value = (quoted || !field.is_empty()).then_some(field);
        rows.last_mut().unwrap().push(value);
        match characters.next() {
            Some(',') => {}
            Some('\n') if characters.peek().is_some() => rows.push(vec![]),
            Some('\n') | None => return rows,
            Some(other) => panic!("{other:?} after a field"),
        }
    }
}

proptest! {
    #[test]
    fn any_text_survives_json_and_csv(
        rows in proptest::collection::vec((any::<Option<String>>(), any::<Option<i64>>()), 1..20)
    ) {
        let texts: Vec<Option<String>> = rows.iter().map(|row| row.0.clone()).collect();
        let numbers: Vec<Option<i64>> = rows.iter().map(|row| row.1).collect();
        let batch = batch(vec![
            ("t", Arc::new(StringArray::from(texts)) as ArrayRef),
            ("n", Arc::new(Int64Array::from(numbers)) as ArrayRef),
        ]);
        let batches = std::slice::from_ref(&batch);

        let array: Vec<serde_json::Value> =
            serde_json::from_str(&text(batches, &Options::new(Format::Json))).unwrap();
        let lines: Vec<serde_json::Value> = text(batches, &Options::new(Format::Ndjson))
            .split_terminator('\n')
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        prop_assert_eq!(&array, &lines);
        for (value, row) in array.iter().zip(&rows) {
            prop_assert_eq!(value, &serde_json::json!({"t": row.0, "n": row.1}));
        }

        let csv = parse_csv(&text(batches, &Options::new(Format::Csv)));
        prop_assert_eq!(&csv[0], &vec![Some("t".to_owned()), Some("n".to_owned())]);
        for (fields, row) in csv[1..].iter().zip(&rows) {
            prop_assert_eq!(fields, &vec![row.0.clone(), row.1.map(|n| n.to_string())]);
        }
        prop_assert_eq!(csv.len(), rows.len() + 1);

        // A box never breaks a line or lets a control character through.
        let shown = text(batches, &Options::default());
        prop_assert_eq!(shown.lines().count(), rows.len() + 5);
        prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
