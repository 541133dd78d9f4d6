//! Values as PostgreSQL's output functions write them, with `DateStyle` ISO and `IntervalStyle` postgres.

use std::fmt::Write as _;

use alluvium_change::Result;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int16Type,
    Int32Type, Int64Type, IntervalMonthDayNanoType, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use bytes::{BufMut as _, BytesMut};
use chrono::{DateTime, Offset as _, TimeZone as _, Utc};
use postgres_types::Type;

use super::number::Interval;
use super::{Kind, Write, Zone, always, no_value};
use crate::output::{Cells, time};

const MICROS: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// Writing to memory cannot fail.
fn push(out: &mut BytesMut, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

pub(super) fn writer<'a>(
    array: &'a ArrayRef,
    kind: &Kind,
    zone: Option<Zone>,
) -> Result<Write<'a>> {
    Ok(match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            always(move |row, out| out.put_u8(if values.value(row) { b't' } else { b'f' }))
        }
        DataType::Int16 => {
            let values = array.as_primitive::<Int16Type>();
            always(move |row, out| push(out, format_args!("{}", values.value(row))))
        }
        DataType::Int32 => {
            let values = array.as_primitive::<Int32Type>();
            always(move |row, out| push(out, format_args!("{}", values.value(row))))
        }
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            always(move |row, out| push(out, format_args!("{}", values.value(row))))
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            always(move |row, out| {
                let value = values.value(row);
                float(&value, f64::from(value), 6, out);
            })
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            always(move |row, out| float(&values.value(row), values.value(row), 15, out))
        }
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            always(move |row, out| out.put_slice(values.value_as_string(row).as_bytes()))
        }
        DataType::Decimal256(..) => {
            let values = array.as_primitive::<Decimal256Type>();
            always(move |row, out| out.put_slice(values.value_as_string(row).as_bytes()))
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            always(move |row, out| {
                out.put_slice(b"\\x");
                values
                    .value(row)
                    .iter()
                    .for_each(|byte| push(out, format_args!("{byte:02x}")));
            })
        }
        DataType::Date32 => {
            let values = array.as_primitive::<Date32Type>();
            always(move |row, out| {
                let era = date(i64::from(values.value(row)), out);
                out.put_slice(era.as_bytes());
            })
        }
        DataType::Time64(_) => {
            let values = array.as_primitive::<Time64MicrosecondType>();
            always(move |row, out| {
                let value = values.value(row);
                time::clock(value / MICROS, value % MICROS, MICROS, out);
            })
        }
        DataType::Timestamp(_, zoned) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            let zoned = zoned.is_some();
            always(move |row, out| timestamp(values.value(row), zoned, zone, out))
        }
        DataType::Interval(_) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>();
            always(move |row, out| interval(Interval::of(values.value(row)), out))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => text(array, kind),
        DataType::List(_) => list(array, kind, zone)?,
        DataType::Null => always(|_, _| ()),
        _ => json(array)?,
    })
}

/// Values of a type that PostgreSQL does not have.
pub(super) fn json(array: &ArrayRef) -> Result<Write<'_>> {
    let cells = Cells::new(array.as_ref())?;
    Ok(always(move |row, out| {
        let mut text = String::new();
        cells.push_json(row, &mut text);
        out.put_slice(text.as_bytes());
    }))
}

/// The texts of a column, by row.
pub(super) fn strings<'a>(array: &'a ArrayRef) -> Box<dyn Fn(usize) -> &'a str + Send + 'a> {
    match array.data_type() {
        DataType::Utf8 => {
            let values = array.as_string::<i32>();
            Box::new(|row| values.value(row))
        }
        DataType::LargeUtf8 => {
            let values = array.as_string::<i64>();
            Box::new(|row| values.value(row))
        }
        _ => {
            let values = array.as_string_view();
            Box::new(|row| values.value(row))
        }
    }
}

fn text<'a>(array: &'a ArrayRef, kind: &Kind) -> Write<'a> {
    let value = strings(array);
    if kind.pg == Type::INTERVAL {
        return Box::new(move |row, out| {
            let text = value(row);
            let parsed = Interval::parse(text).ok_or_else(|| no_value("interval", text))?;
            interval(parsed, out);
            Ok(())
        });
    }
    always(move |row, out| out.put_slice(value(row).as_bytes()))
}

/// As `double_to_shortest_decimal`: without an exponent where that is from -4 to below `most`.
fn float(
    shortest: &(impl std::fmt::Display + std::fmt::LowerExp),
    value: f64,
    most: i32,
    out: &mut BytesMut,
) {
    if value.is_nan() {
        return out.put_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.put_slice(if value > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        });
    }
    let text = format!("{shortest:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..most).contains(&exponent) {
        push(out, format_args!("{shortest}"));
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        push(
            out,
            format_args!("{digits}e{sign}{:02}", exponent.unsigned_abs()),
        );
    }
}

/// Answers what comes at the end: years before 1 are counted back.
fn date(days: i64, out: &mut BytesMut) -> &'static str {
    let (year, month, day) = time::civil(days);
    let (year, era) = if year > 0 {
        (year, "")
    } else {
        (1 - year, " BC")
    };
    push(out, format_args!("{year:04}-{month:02}-{day:02}"));
    era
}

fn timestamp(micros: i64, zoned: bool, zone: Option<Zone>, out: &mut BytesMut) {
    let seconds = micros.div_euclid(MICROS);
    let offset = zone
        .filter(|_| zoned)
        .map_or(0, |zone| offset_seconds(seconds, zone));
    let local = seconds + i64::from(offset);
    let era = date(local.div_euclid(SECONDS_PER_DAY), out);
    out.put_u8(b' ');
    time::clock(
        local.rem_euclid(SECONDS_PER_DAY),
        micros.rem_euclid(MICROS),
        MICROS,
        out,
    );
    if zoned {
        let sign = if offset < 0 { '-' } else { '+' };
        let seconds = offset.unsigned_abs();
        push(out, format_args!("{sign}{:02}", seconds / 3600));
        if !seconds.is_multiple_of(3600) {
            push(out, format_args!(":{:02}", seconds / 60 % 60));
        }
        if !seconds.is_multiple_of(60) {
            push(out, format_args!(":{:02}", seconds % 60));
        }
    }
    out.put_slice(era.as_bytes());
}

/// East of Greenwich.
fn offset_seconds(seconds: i64, zone: Zone) -> i32 {
    // Beyond the years that the zone's rules are made for there are none.
    let time = DateTime::<Utc>::from_timestamp(seconds, 0).unwrap_or_default();
    zone.offset_from_utc_datetime(&time.naive_utc())
        .fix()
        .local_minus_utc()
}

/// As `EncodeInterval`: a part after a negative one says that it is not.
fn interval(value: Interval, out: &mut BytesMut) {
    let (mut is_first, mut after_negative) = (true, false);
    for (amount, unit) in [
        (value.months / 12, "year"),
        (value.months % 12, "mon"),
        (value.days, "day"),
    ] {
        if amount != 0 {
            let space = if is_first { "" } else { " " };
            let plus = if after_negative && amount > 0 {
                "+"
            } else {
                ""
            };
            let plural = if amount == 1 { "" } else { "s" };
            push(out, format_args!("{space}{plus}{amount} {unit}{plural}"));
            (is_first, after_negative) = (false, amount < 0);
        }
    }
    if value.micros != 0 || is_first {
        let space = if is_first { "" } else { " " };
        let sign = match (value.micros < 0, after_negative) {
            (true, _) => "-",
            (false, true) => "+",
            _ => "",
        };
        push(out, format_args!("{space}{sign}"));
        let micros = i64::try_from(value.micros.unsigned_abs()).unwrap_or(i64::MAX);
        time::clock(micros / MICROS, micros % MICROS, MICROS, out);
    }
}

/// `{1,NULL,"a b"}`.
fn list<'a>(array: &'a ArrayRef, kind: &Kind, zone: Option<Zone>) -> Result<Write<'a>> {
    let lists = array.as_list::<i32>();
    let items = lists.values();
    let is_nested = matches!(items.data_type(), DataType::List(_));
    let element = match is_nested {
        true => kind.clone(),
        false => kind.element().unwrap_or_else(|| kind.clone()),
    };
    let write = writer(items, &element, zone)?;
    let nulls = items.logical_nulls();
    Ok(Box::new(move |row, out| {
        let offsets = lists.value_offsets();
        let at = |place: usize| {
            offsets
                .get(place)
                .map_or(0, |offset| usize::try_from(*offset).unwrap_or(0))
        };
        out.put_u8(b'{');
        for item in at(row)..at(row + 1) {
            if item > at(row) {
                out.put_u8(b',');
            }
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(item)) {
                out.put_slice(b"NULL");
                continue;
            }
            let mut text = BytesMut::new();
            write(item, &mut text)?;
            if is_nested || !needs_quotes(&text) {
                out.put_slice(&text);
            } else {
                out.put_u8(b'"');
                for byte in text {
                    if matches!(byte, b'"' | b'\\') {
                        out.put_u8(b'\\');
                    }
                    out.put_u8(byte);
                }
                out.put_u8(b'"');
            }
        }
        out.put_u8(b'}');
        Ok(())
    }))
}

/// As `array_out`.
fn needs_quotes(text: &[u8]) -> bool {
    text.is_empty()
        || text.eq_ignore_ascii_case(b"NULL")
        || text
            .iter()
            .any(|byte| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | 0x09..=0x0d))
}
