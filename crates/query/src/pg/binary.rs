//! Values as PostgreSQL's send functions write them.

use alluvium_change::{Error, Result, code};
use arrow::array::{Array, ArrayRef, AsArray, ListArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int16Type,
    Int32Type, Int64Type, IntervalMonthDayNanoType, Time64MicrosecondType,
    TimestampMicrosecondType,
};
use bytes::{BufMut as _, BytesMut};
use postgres_types::Type;

use super::number::{Interval, put_address, put_numeric, time_of_day};
use super::text::{json, strings};
use super::{Kind, Write, always, no_value};

/// From 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400 * 1_000_000;

pub(super) fn writer<'a>(array: &'a ArrayRef, kind: &Kind) -> Result<Write<'a>> {
    Ok(match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            always(move |row, out| out.put_u8(u8::from(values.value(row))))
        }
        DataType::Int16 => {
            let values = array.as_primitive::<Int16Type>();
            always(move |row, out| out.put_i16(values.value(row)))
        }
        DataType::Int32 => {
            let values = array.as_primitive::<Int32Type>();
            always(move |row, out| out.put_i32(values.value(row)))
        }
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            always(move |row, out| out.put_i64(values.value(row)))
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>();
            always(move |row, out| out.put_f32(values.value(row)))
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>();
            always(move |row, out| out.put_f64(values.value(row)))
        }
        DataType::Decimal128(..) => {
            let values = array.as_primitive::<Decimal128Type>();
            numeric(move |row| values.value_as_string(row))
        }
        DataType::Decimal256(..) => {
            let values = array.as_primitive::<Decimal256Type>();
            numeric(move |row| values.value_as_string(row))
        }
        DataType::Binary => {
            let values = array.as_binary::<i32>();
            always(move |row, out| out.put_slice(values.value(row)))
        }
        DataType::Date32 => {
            let values = array.as_primitive::<Date32Type>();
            Box::new(move |row, out| {
                let days = values.value(row).checked_sub(EPOCH_DAYS);
                out.put_i32(days.ok_or_else(|| too_early("date"))?);
                Ok(())
            })
        }
        DataType::Time64(_) => {
            let values = array.as_primitive::<Time64MicrosecondType>();
            always(move |row, out| out.put_i64(values.value(row)))
        }
        DataType::Timestamp(..) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            Box::new(move |row, out| {
                let micros = values.value(row).checked_sub(EPOCH_MICROS);
                out.put_i64(micros.ok_or_else(|| too_early("timestamp"))?);
                Ok(())
            })
        }
        DataType::Interval(_) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>();
            always(move |row, out| put_interval(Interval::of(values.value(row)), out))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => text(array, kind),
        DataType::List(_) => list(array, kind)?,
        DataType::Null => always(|_, _| ()),
        _ => json(array)?,
    })
}

/// The type's first day is later than Delta's.
fn too_early(kind: &str) -> Error {
    Error::new(
        &code::SQL,
        format!("a {kind} is earlier than PostgreSQL's binary form can say"),
    )
    .with_hint("cast the column to text in the query")
}

fn numeric<'a>(text: impl Fn(usize) -> String + Send + 'a) -> Write<'a> {
    Box::new(move |row, out| {
        let text = text(row);
        put_numeric(&text, out).ok_or_else(|| no_value("numeric", &text))
    })
}

fn put_interval(value: Interval, out: &mut BytesMut) {
    out.put_i64(value.micros);
    out.put_i32(value.days);
    out.put_i32(value.months);
}

fn text<'a>(array: &'a ArrayRef, kind: &Kind) -> Write<'a> {
    let value = strings(array);
    let name = kind.pg.name().to_owned();
    let put: fn(&str, &mut BytesMut) -> Option<()> = match kind.pg {
        Type::NUMERIC => put_numeric,
        Type::TIME => |text, out| time_of_day(text).map(|micros| out.put_i64(micros)),
        Type::INTERVAL => |text, out| Interval::parse(text).map(|value| put_interval(value, out)),
        Type::INET => |text, out| put_address(text, false, out),
        Type::CIDR => |text, out| put_address(text, true, out),
        Type::UUID => |text, out| {
            let uuid = uuid::Uuid::try_parse(text).ok()?;
            out.put_slice(uuid.as_bytes());
            Some(())
        },
        Type::JSONB => |text, out| {
            const VERSION: u8 = 1;
            out.put_u8(VERSION);
            out.put_slice(text.as_bytes());
            Some(())
        },
        _ => |text, out| {
            out.put_slice(text.as_bytes());
            Some(())
        },
    };
    Box::new(move |row, out| {
        let text = value(row);
        put(text, out).ok_or_else(|| no_value(&name, text))
    })
}

/// `array_send`: dimensions, whether there is a NULL, the elements' type, each dimension's length and
/// first index, the elements.
fn list<'a>(array: &'a ArrayRef, kind: &Kind) -> Result<Write<'a>> {
    let mut levels = vec![array.as_list::<i32>()];
    let mut items = levels[0].values();
    while matches!(items.data_type(), DataType::List(_)) {
        levels.push(items.as_list::<i32>());
        items = levels[levels.len() - 1].values();
    }
    let element = kind.element().unwrap_or_else(|| kind.clone());
    let column = super::Column::binary(items, &element)?;
    let oid = element.pg.oid();
    Ok(Box::new(move |row, out| {
        let shape = shape(&levels, row).ok_or_else(|| {
            Error::new(
                &code::SQL,
                "an array's parts differ in length, which PostgreSQL's do not",
            )
            .with_hint("cast the column to text in the query")
        })?;
        let (lengths, places) = (shape.lengths, shape.first..shape.end);
        out.put_i32(i32::try_from(lengths.len()).unwrap_or_default());
        out.put_i32(i32::from(places.clone().any(|item| column.is_null(item))));
        out.put_u32(oid);
        for length in lengths {
            out.put_i32(length);
            const FIRST_INDEX: i32 = 1;
            out.put_i32(FIRST_INDEX);
        }
        places
            .into_iter()
            .try_for_each(|item| column.write(item, out))
    }))
}

/// The elements of an array, and its length in each dimension; none for an empty one.
struct Shape {
    lengths: Vec<i32>,
    first: usize,
    end: usize,
}

/// None when the parts of a dimension differ, or one is NULL.
fn shape(levels: &[&ListArray], row: usize) -> Option<Shape> {
    let (mut first, mut end) = (row, row + 1);
    let mut lengths = Vec::with_capacity(levels.len());
    for level in levels {
        let offsets = level.value_offsets();
        let at = |place: usize| usize::try_from(*offsets.get(place)?).ok();
        let length = at(first + 1)?.checked_sub(at(first)?)?;
        for place in first..end {
            let same = at(place + 1)?.checked_sub(at(place)?)? == length;
            if !same || level.is_null(place) {
                return None;
            }
        }
        (first, end) = (at(first)?, at(end)?);
        if length == 0 {
            return Some(Shape {
                lengths: Vec::new(),
                first,
                end: first,
            });
        }
        lengths.push(i32::try_from(length).ok()?);
    }
    Some(Shape {
        lengths,
        first,
        end,
    })
}
