//! One cell of an Arrow column as exact text, plain or JSON.
//!
//! Below every output format. Invariant: the text says the value exactly (floats: the shortest
//! digits that read back to the same bits); a decimal or integer never passes through a float.

use std::fmt::Write as _;

use alluvium_change::{Error, Result, code};
use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, RunArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    ArrowDictionaryKeyType, ArrowPrimitiveType, DataType, Date32Type, Date64Type, Decimal32Type,
    Decimal64Type, Decimal128Type, Decimal256Type, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, Float16Type, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, IntervalDayTimeType,
    IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, RunEndIndexType,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use super::time;

type Write<'a> = Box<dyn Fn(usize, &mut String) + Send + 'a>;

/// The first item of a row's list and the one after its last.
type ItemRange<'a> = Box<dyn Fn(usize) -> (usize, usize) + Send + 'a>;

/// How the plain text of a value becomes JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JsonForm {
    /// The text is JSON: integers, decimals, booleans, nested values.
    Bare,
    /// A number when finite, else a string.
    Float,
    /// A string.
    Quoted,
}

/// The cells of one column of one batch.
pub(crate) struct Cells<'a> {
    /// What is null after looking through dictionaries and runs.
    nulls: Option<NullBuffer>,
    form: JsonForm,
    write: Write<'a>,
}

impl<'a> Cells<'a> {
    /// Fails for a type that has no text form here (unions).
    pub(crate) fn new(array: &'a dyn Array) -> Result<Self> {
        let (form, write) = writer(array)?;
        Ok(Self {
            nulls: array.logical_nulls(),
            form,
            write,
        })
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The value as plain text; nothing for a NULL.
    pub(super) fn push_text(&self, row: usize, out: &mut String) {
        if !self.is_null(row) {
            (self.write)(row, out);
        }
    }

    /// The value as JSON.
    pub(crate) fn push_json(&self, row: usize, out: &mut String) {
        if self.is_null(row) {
            out.push_str("null");
            return;
        }
        match self.form {
            JsonForm::Bare => (self.write)(row, out),
            JsonForm::Quoted => {
                let mut text = String::new();
                (self.write)(row, &mut text);
                push_json_string(&text, out);
            }
            JsonForm::Float => {
                let start = out.len();
                (self.write)(row, out);
                let text = out.get(start..).unwrap_or_default();
                if text.contains(['N', 'I']) {
                    out.insert(start, '"');
                    out.push('"');
                } else if !text.contains(['.', 'e']) {
                    // Stays a float for readers that tell 1 from 1.0.
                    out.push_str(".0");
                }
            }
        }
    }
}

/// Whether people expect the column's values at the right edge.
pub(super) fn is_number(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_number(value),
        other => other.is_numeric(),
    }
}

/// `text` as a JSON string.
pub(super) fn push_json_string(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Controls must be escaped; the separators are, because JavaScript once took them for
            // the end of a line.
            '\0'..='\u{1f}' | '\u{7f}' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

fn writer(array: &dyn Array) -> Result<(JsonForm, Write<'_>)> {
    use JsonForm::{Bare, Float, Quoted};
    Ok(match array.data_type() {
        DataType::Null => (Bare, Box::new(|_, _| ())),
        DataType::Boolean => {
            let values = array.as_boolean();
            (
                Bare,
                Box::new(|row, out| out.push_str(if values.value(row) { "true" } else { "false" })),
            )
        }
        DataType::Int8 => (Bare, integer::<Int8Type>(array)),
        DataType::Int16 => (Bare, integer::<Int16Type>(array)),
        DataType::Int32 => (Bare, integer::<Int32Type>(array)),
        DataType::Int64 => (Bare, integer::<Int64Type>(array)),
        DataType::UInt8 => (Bare, integer::<UInt8Type>(array)),
        DataType::UInt16 => (Bare, integer::<UInt16Type>(array)),
        DataType::UInt32 => (Bare, integer::<UInt32Type>(array)),
        DataType::UInt64 => (Bare, integer::<UInt64Type>(array)),
        DataType::Float16 => {
            let values = array.as_primitive::<Float16Type>();
            (
                Float,
                Box::new(|row, out| {
                    push_float(f64::from(values.value(row)), &values.value(row), out)
                }),
            )
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            (
                Float,
                Box::new(|row, out| {
                    push_float(f64::from(values.value(row)), &values.value(row), out)
                }),
            )
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            (
                Float,
                Box::new(|row, out| push_float(values.value(row), &values.value(row), out)),
            )
        }
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => (Bare, decimal(array)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => (Quoted, string(array)),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => (Quoted, binary(array)),
        DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..) => (Quoted, temporal(array)?),
        DataType::Duration(_) | DataType::Interval(_) => (Quoted, span(array)),
        DataType::Dictionary(key, _) => dictionary(array, key)?,
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => runs::<Int16Type>(array)?,
            DataType::Int32 => runs::<Int32Type>(array)?,
            _ => runs::<Int64Type>(array)?,
        },
        DataType::List(_)
        | DataType::LargeList(_)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::FixedSizeList(..) => (Bare, list(array)?),
        DataType::Struct(_) => (Bare, object(array)?),
        DataType::Map(..) => (Bare, map(array)?),
        DataType::Union(..) => return Err(no_text(array.data_type())),
    })
}

fn no_text(data_type: &DataType) -> Error {
    Error::new(
        &code::SQL,
        format!("a column of type \"{data_type}\" cannot be printed"),
    )
    .with_hint("select its parts, or cast it to text")
}

fn integer<T>(array: &dyn Array) -> Write<'_>
where
    T: ArrowPrimitiveType,
    T::Native: std::fmt::Display,
{
    let values = array.as_primitive::<T>();
    Box::new(|row, out| {
        let _ = write!(out, "{}", values.value(row));
    })
}

/// The shortest digits that read back to the same float, and PostgreSQL's names for the others.
fn push_float(value: f64, shortest: &dyn std::fmt::Debug, out: &mut String) {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        let start = out.len();
        let _ = write!(out, "{shortest:?}");
        if out.get(start..).is_some_and(|text| text.ends_with(".0")) {
            out.truncate(out.len() - 2);
        }
    }
}

fn decimal(array: &dyn Array) -> Write<'_> {
    match array.data_type() {
        DataType::Decimal32(..) => {
            let values = array.as_primitive::<Decimal32Type>();
            Box::new(|row, out| out.push_str(&values.value_as_string(row)))
        }
        DataType::Decimal64(..) => {
            let values = array.as_primitive::<Decimal64Type>();
            Box::new(|row, out| out.push_str(&values.value_as_string(row)))
        }
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            Box::new(|row, out| out.push_str(&values.value_as_string(row)))
        }
        _ => {
            let values = array.as_primitive::<Decimal256Type>();
            Box::new(|row, out| out.push_str(&values.value_as_string(row)))
        }
    }
}

fn string(array: &dyn Array) -> Write<'_> {
    match array.data_type() {
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            Box::new(|row, out| out.push_str(values.value(row)))
        }
        DataType::LargeUtf8 => {
            let values = array.as_string::<i64>();
            Box::new(|row, out| out.push_str(values.value(row)))
        }
        _ => {
            let values = array.as_string_view();
            Box::new(|row, out| out.push_str(values.value(row)))
        }
    }
}

fn binary(array: &dyn Array) -> Write<'_> {
    match array.data_type() {
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            Box::new(|row, out| push_hex(values.value(row), out))
        }
        DataType::LargeBinary => {
            let values = array.as_binary::<i64>();
            Box::new(|row, out| push_hex(values.value(row), out))
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            Box::new(|row, out| push_hex(values.value(row), out))
        }
        _ => {
            let values = array.as_binary_view();
            Box::new(|row, out| push_hex(values.value(row), out))
        }
    }
}

/// PostgreSQL's `\x` form.
fn push_hex(bytes: &[u8], out: &mut String) {
    out.push_str("\\x");
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

fn temporal(array: &dyn Array) -> Result<Write<'_>> {
    Ok(match array.data_type() {
        DataType::Date32 => {
            let values = array.as_primitive::<Date32Type>();
            Box::new(|row, out| time::date(i64::from(values.value(row)), out))
        }
        DataType::Date64 => {
            let values = array.as_primitive::<Date64Type>();
            Box::new(|row, out| time::date(values.value(row).div_euclid(86_400_000), out))
        }
        DataType::Time32(unit) => {
            let scale = per_second(*unit);
            match unit {
                TimeUnit::Second => {
                    units::<Time32SecondType>(array, move |v, out| time::time(v, scale, out))
                }
                _ => units::<Time32MillisecondType>(array, move |v, out| time::time(v, scale, out)),
            }
        }
        DataType::Time64(unit) => {
            let scale = per_second(*unit);
            match unit {
                TimeUnit::Microsecond => {
                    units::<Time64MicrosecondType>(array, move |v, out| time::time(v, scale, out))
                }
                _ => units::<Time64NanosecondType>(array, move |v, out| time::time(v, scale, out)),
            }
        }
        DataType::Timestamp(unit, zone) => {
            // Values are UTC whatever zone the column names, so `Z` is always right.
            let (scale, zone) = (per_second(*unit), zone.is_some());
            let push = move |value, out: &mut String| time::timestamp(value, scale, zone, out);
            match unit {
                TimeUnit::Second => units::<TimestampSecondType>(array, push),
                TimeUnit::Millisecond => units::<TimestampMillisecondType>(array, push),
                TimeUnit::Microsecond => units::<TimestampMicrosecondType>(array, push),
                TimeUnit::Nanosecond => units::<TimestampNanosecondType>(array, push),
            }
        }
        other => return Err(no_text(other)),
    })
}

fn span(array: &dyn Array) -> Write<'_> {
    match array.data_type() {
        DataType::Duration(unit) => {
            let scale = per_second(*unit);
            let push = move |value, out: &mut String| time::interval(0, 0, value, scale, out);
            match unit {
                TimeUnit::Second => units::<DurationSecondType>(array, push),
                TimeUnit::Millisecond => units::<DurationMillisecondType>(array, push),
                TimeUnit::Microsecond => units::<DurationMicrosecondType>(array, push),
                TimeUnit::Nanosecond => units::<DurationNanosecondType>(array, push),
            }
        }
        DataType::Interval(IntervalUnit::YearMonth) => {
            units::<IntervalYearMonthType>(array, |months, out| {
                time::interval(months, 0, 0, 1, out)
            })
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let values = array.as_primitive::<IntervalDayTimeType>();
            Box::new(|row, out| {
                let value = values.value(row);
                time::interval(
                    0,
                    i64::from(value.days),
                    i64::from(value.milliseconds),
                    1000,
                    out,
                );
            })
        }
        _ => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>();
            Box::new(|row, out| {
                let value = values.value(row);
                let (months, days) = (i64::from(value.months), i64::from(value.days));
                time::interval(months, days, value.nanoseconds, 1_000_000_000, out);
            })
        }
    }
}

fn units<'a, T>(array: &'a dyn Array, push: impl Fn(i64, &mut String) + Send + 'a) -> Write<'a>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i64>,
{
    let values = array.as_primitive::<T>();
    Box::new(move |row, out| push(values.value(row).into(), out))
}

fn dictionary<'a>(array: &'a dyn Array, key: &DataType) -> Result<(JsonForm, Write<'a>)> {
    match key {
        DataType::Int8 => keyed(array.as_dictionary::<Int8Type>()),
        DataType::Int16 => keyed(array.as_dictionary::<Int16Type>()),
        DataType::Int32 => keyed(array.as_dictionary::<Int32Type>()),
        DataType::Int64 => keyed(array.as_dictionary::<Int64Type>()),
        DataType::UInt8 => keyed(array.as_dictionary::<UInt8Type>()),
        DataType::UInt16 => keyed(array.as_dictionary::<UInt16Type>()),
        DataType::UInt32 => keyed(array.as_dictionary::<UInt32Type>()),
        _ => keyed(array.as_dictionary::<UInt64Type>()),
    }
}

fn keyed<K: ArrowDictionaryKeyType>(array: &DictionaryArray<K>) -> Result<(JsonForm, Write<'_>)> {
    let values = Cells::new(array.values().as_ref())?;
    let form = values.form;
    let write: Write<'_> = Box::new(move |row, out| {
        if let Some(key) = array.key(row) {
            values.push_text(key, out);
        }
    });
    Ok((form, write))
}

fn runs<R: RunEndIndexType>(array: &dyn Array) -> Result<(JsonForm, Write<'_>)> {
    let runs: &RunArray<R> = array
        .as_any()
        .downcast_ref()
        .ok_or_else(|| no_text(array.data_type()))?;
    let values = Cells::new(runs.values().as_ref())?;
    let form = values.form;
    Ok((
        form,
        Box::new(move |row, out| values.push_text(runs.get_physical_index(row), out)),
    ))
}

/// `[1,null,3]`.
fn list(array: &dyn Array) -> Result<Write<'_>> {
    let (values, range): (&ArrayRef, ItemRange<'_>) = match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            (
                list.values(),
                Box::new(|row| between(offsets, row, |v| usize::try_from(v).ok())),
            )
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets();
            (
                list.values(),
                Box::new(|row| between(offsets, row, |v| usize::try_from(v).ok())),
            )
        }
        DataType::ListView(_) => {
            let list = array.as_list_view::<i32>();
            (
                list.values(),
                Box::new(|row| {
                    let start = usize::try_from(list.value_offset(row)).unwrap_or(0);
                    (
                        start,
                        start + usize::try_from(list.value_size(row)).unwrap_or(0),
                    )
                }),
            )
        }
        DataType::LargeListView(_) => {
            let list = array.as_list_view::<i64>();
            (
                list.values(),
                Box::new(|row| {
                    let start = usize::try_from(list.value_offset(row)).unwrap_or(0);
                    (
                        start,
                        start + usize::try_from(list.value_size(row)).unwrap_or(0),
                    )
                }),
            )
        }
        _ => {
            let list = array.as_fixed_size_list();
            let size = usize::try_from(list.value_length()).unwrap_or(0);
            (
                list.values(),
                Box::new(move |row| (row * size, (row + 1) * size)),
            )
        }
    };
    let items = Cells::new(values.as_ref())?;
    Ok(Box::new(move |row, out| {
        let (start, end) = range(row);
        out.push('[');
        for item in start..end {
            if item > start {
                out.push(',');
            }
            items.push_json(item, out);
        }
        out.push(']');
    }))
}

fn between<T: Copy>(offsets: &[T], row: usize, to: impl Fn(T) -> Option<usize>) -> (usize, usize) {
    let at = |place: usize| offsets.get(place).copied().and_then(&to).unwrap_or(0);
    (at(row), at(row + 1))
}

/// `{"a":1,"b":null}`.
fn object(array: &dyn Array) -> Result<Write<'_>> {
    let fields = array.as_struct();
    let mut members = Vec::with_capacity(fields.num_columns());
    for (field, column) in fields.fields().iter().zip(fields.columns()) {
        let mut name = String::new();
        push_json_string(field.name(), &mut name);
        members.push((name, Cells::new(column.as_ref())?));
    }
    Ok(Box::new(move |row, out| {
        out.push('{');
        for (place, (name, cells)) in members.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            out.push_str(name);
            out.push(':');
            cells.push_json(row, out);
        }
        out.push('}');
    }))
}

/// A map as a JSON object; keys that are no strings become their text.
fn map(array: &dyn Array) -> Result<Write<'_>> {
    let map = array.as_map();
    let keys = Cells::new(map.keys().as_ref())?;
    let values = Cells::new(map.values().as_ref())?;
    let offsets = map.value_offsets();
    Ok(Box::new(move |row, out| {
        let (start, end) = between(offsets, row, |value| usize::try_from(value).ok());
        out.push('{');
        for entry in start..end {
            if entry > start {
                out.push(',');
            }
            let mut key = String::new();
            keys.push_text(entry, &mut key);
            push_json_string(&key, out);
            out.push(':');
            values.push_json(entry, out);
        }
        out.push('}');
    }))
}
