//! Parameters of statements, from their text or binary form to arrays of one value.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, TimeUnit};
use pgwire::api::Type;
use pgwire::api::portal::{Format, Portal};
use pgwire::error::{PgWireError, PgWireResult};

use super::error;

/// From 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// What a client is told of a parameter that is compared with such a value.
pub(super) fn type_of(wanted: Option<&DataType>) -> Type {
    match wanted {
        Some(data_type) => {
            let field = arrow::datatypes::Field::new("", data_type.clone(), true);
            alluvium_query::pg::kind_of(&field).pg
        }
        None => Type::TEXT,
    }
}

/// The values of a portal's parameters.
pub(super) fn values<S: Clone>(
    portal: &Portal<S>,
    types: &[Type],
    wanted: &[Option<DataType>],
) -> PgWireResult<Vec<ArrayRef>> {
    if portal.parameters.len() != types.len() {
        let message = format!(
            "bind message supplies {} parameters, but prepared statement requires {}",
            portal.parameters.len(),
            types.len()
        );
        return Err(error::said("08P01", message));
    }
    let is_binary = |nth: usize| match &portal.parameter_format {
        Format::UnifiedText => false,
        Format::UnifiedBinary => true,
        Format::Individual(codes) => codes.get(nth) == Some(&1),
    };
    let parameters = portal.parameters.iter().zip(types).enumerate();
    parameters
        .map(|(nth, (bytes, pg))| {
            let wanted = wanted.get(nth).and_then(Option::as_ref);
            let target = data_type(pg).or(wanted.cloned()).unwrap_or(DataType::Utf8);
            match bytes {
                None => Ok(new_null_array(&target, 1)),
                Some(bytes) if is_binary(nth) => binary(bytes, pg, nth),
                Some(bytes) => text(bytes, pg, &target, nth),
            }
        })
        .collect()
}

/// Of a parameter that the client says the type of. None for types that are text here.
fn data_type(pg: &Type) -> Option<DataType> {
    Some(match *pg {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::BYTEA => DataType::Binary,
        Type::DATE => DataType::Date32,
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ => return None,
    })
}

fn wrong(pg: &Type, nth: usize, why: &dyn std::fmt::Display) -> PgWireError {
    error::said(
        "22P02",
        format!(
            "parameter ${} is no value of type {}: {why}",
            nth + 1,
            pg.name()
        ),
    )
}

fn text(bytes: &[u8], pg: &Type, target: &DataType, nth: usize) -> PgWireResult<ArrayRef> {
    let text = std::str::from_utf8(bytes).map_err(|error| wrong(pg, nth, &error))?;
    if *pg == Type::BYTEA {
        let hex = text
            .strip_prefix("\\x")
            .and_then(|digits| hex::decode(digits).ok());
        let bytes = hex.ok_or_else(|| wrong(pg, nth, &"it has to begin with \\x"))?;
        return Ok(Arc::new(BinaryArray::from(vec![bytes.as_slice()])));
    }
    if *pg == Type::BOOL {
        let value = match text.trim().to_lowercase().as_str() {
            "t" | "true" | "on" | "yes" | "y" | "1" => true,
            "f" | "false" | "off" | "no" | "n" | "0" => false,
            other => return Err(wrong(pg, nth, &format!("\"{other}\""))),
        };
        return Ok(Arc::new(BooleanArray::from(vec![value])));
    }
    let target = match *pg {
        // As many digits as it has.
        Type::NUMERIC => {
            decimal_type(text).ok_or_else(|| wrong(pg, nth, &format!("\"{text}\"")))?
        }
        _ => target.clone(),
    };
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let written: ArrayRef = Arc::new(StringArray::from(vec![text.trim()]));
    let written = match target {
        DataType::Utf8 => Arc::new(StringArray::from(vec![text])),
        _ => written,
    };
    cast_with_options(&written, &target, &options).map_err(|error| wrong(pg, nth, &error))
}

/// The decimal type that holds a number with these digits.
fn decimal_type(text: &str) -> Option<DataType> {
    let number = text.trim().trim_start_matches(['-', '+']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = i8::try_from(fraction.len()).ok()?;
    let precision = u8::try_from((whole.len() + fraction.len()).max(1)).ok()?;
    match precision {
        ..=38 => Some(DataType::Decimal128(precision, scale)),
        39..=76 => Some(DataType::Decimal256(precision, scale)),
        _ => None,
    }
}

fn binary(bytes: &[u8], pg: &Type, nth: usize) -> PgWireResult<ArrayRef> {
    fn fixed<const N: usize>(bytes: &[u8], pg: &Type, nth: usize) -> PgWireResult<[u8; N]> {
        bytes
            .try_into()
            .map_err(|_| wrong(pg, nth, &format!("{} bytes", bytes.len())))
    }
    Ok(match *pg {
        Type::BOOL => Arc::new(BooleanArray::from(vec![fixed::<1>(bytes, pg, nth)? != [0]])),
        Type::INT2 => Arc::new(Int16Array::from(vec![i16::from_be_bytes(fixed(
            bytes, pg, nth,
        )?)])),
        Type::INT4 => Arc::new(Int32Array::from(vec![i32::from_be_bytes(fixed(
            bytes, pg, nth,
        )?)])),
        Type::INT8 => Arc::new(Int64Array::from(vec![i64::from_be_bytes(fixed(
            bytes, pg, nth,
        )?)])),
        Type::OID => Arc::new(Int64Array::from(vec![i64::from(u32::from_be_bytes(
            fixed(bytes, pg, nth)?,
        ))])),
        Type::FLOAT4 => Arc::new(Float32Array::from(vec![f32::from_be_bytes(fixed(
            bytes, pg, nth,
        )?)])),
        Type::FLOAT8 => Arc::new(Float64Array::from(vec![f64::from_be_bytes(fixed(
            bytes, pg, nth,
        )?)])),
        Type::BYTEA => Arc::new(BinaryArray::from(vec![bytes])),
        Type::DATE => {
            let days = i32::from_be_bytes(fixed(bytes, pg, nth)?).checked_add(EPOCH_DAYS);
            Arc::new(Date32Array::from(vec![
                days.ok_or_else(|| wrong(pg, nth, &"too late"))?,
            ]))
        }
        Type::TIME => Arc::new(Time64MicrosecondArray::from(vec![i64::from_be_bytes(
            fixed(bytes, pg, nth)?,
        )])),
        Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            let micros = i64::from_be_bytes(fixed(bytes, pg, nth)?).checked_add(EPOCH_MICROS);
            let micros = micros.ok_or_else(|| wrong(pg, nth, &"too late"))?;
            let array = TimestampMicrosecondArray::from(vec![micros]);
            match *pg {
                Type::TIMESTAMPTZ => Arc::new(array.with_timezone("UTC")),
                _ => Arc::new(array),
            }
        }
        Type::UUID => {
            let uuid = uuid::Uuid::from_bytes(fixed(bytes, pg, nth)?);
            Arc::new(StringArray::from(vec![uuid.to_string()]))
        }
        Type::JSONB => {
            let rest = bytes.split_first().map_or(&[][..], |(_, rest)| rest);
            text(rest, &Type::TEXT, &DataType::Utf8, nth)?
        }
        Type::TEXT
        | Type::VARCHAR
        | Type::BPCHAR
        | Type::NAME
        | Type::UNKNOWN
        | Type::JSON
        | Type::XML => text(bytes, &Type::TEXT, &DataType::Utf8, nth)?,
        _ => {
            let message = format!(
                "parameter ${} of type {} cannot be read in binary: send it as text",
                nth + 1,
                pg.name()
            );
            return Err(error::said("0A000", message));
        }
    })
}
