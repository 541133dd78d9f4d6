//! One column of any type: scalars here, what holds other columns in [`super::nested`].
//!
//! Invariant: an append that fails leaves the node as long as it was; only
//! [`super::ColumnBuilder`] puts a NULL in its place.

use std::sync::Arc;

use arrow::array::{ArrayRef, ArrowPrimitiveType, PrimitiveArray};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};
use arrow::error::ArrowError;

use super::column::{Bits, Bytes, Fixed};
use super::decoder::{decimal_type, timestamp_type};
use super::literal::{extend_from_hex, hex_digits, push_hex};
use super::nested::{ArrayColumn, CompositeColumn, MapColumn, PointColumn, VectorColumn};
use super::range::{MultirangeColumn, RangeColumn};
use super::{
    BinaryForm, Decimal, Decoder, Kind, LongForm, OnInvalid, Reject, TextForm, number, settle, time,
};

const MALFORMED_BOOL: Kind = "malformed boolean";
const MALFORMED_INTEGER: Kind = "malformed integer";
const MALFORMED_FLOAT: Kind = "malformed floating-point number";
const MALFORMED_BYTES: Kind = "malformed bytes";
const MALFORMED_TEXT: Kind = "malformed binary form of a text";
const UNSIGNED_BEYOND: Kind = "unsigned number beyond a signed 64-bit integer";
const NOT_UTF8: Kind = "text that is not UTF-8";
/// With its hyphens.
const UUID_LENGTH: usize = 36;
const NO_BINARY_FORM: Kind = "binary form of a type that is read as text";

/// A column being filled.
#[derive(Debug)]
pub(crate) enum Node {
    Bool(Bits),
    Int16(Fixed<i16>),
    Int32(Fixed<i32>),
    Int64(Fixed<i64>, LongForm),
    Float32(Fixed<f32>),
    Float64(Fixed<f64>),
    Numeric(Fixed<i128>, Decimal),
    Money {
        column: Fixed<i128>,
        decimal: Decimal,
        fraction_digits: u8,
    },
    Text(Bytes, TextForm),
    Binary(Bytes, BinaryForm),
    Date(Fixed<i32>),
    Timestamp(Fixed<i64>, bool),
    Point(Box<PointColumn>),
    Vector(Box<VectorColumn>),
    Array(Box<ArrayColumn>),
    Composite(Box<CompositeColumn>),
    Range(Box<RangeColumn>),
    Multirange(Box<MultirangeColumn>),
    Hstore(Box<MapColumn>),
}

/// Calls the same method on whatever column a node is.
macro_rules! each_column {
    ($node:expr, $column:ident => $call:expr) => {
        match $node {
            Node::Bool($column) => $call,
            Node::Int16($column) => $call,
            Node::Int32($column) | Node::Date($column) => $call,
            Node::Int64($column, _) | Node::Timestamp($column, _) => $call,
            Node::Float32($column) => $call,
            Node::Float64($column) => $call,
            Node::Numeric($column, _)
            | Node::Money {
                column: $column, ..
            } => $call,
            Node::Text($column, _) | Node::Binary($column, _) => $call,
            Node::Point($column) => $call,
            Node::Vector($column) => $call,
            Node::Array($column) => $call,
            Node::Composite($column) => $call,
            Node::Range($column) => $call,
            Node::Multirange($column) => $call,
            Node::Hstore($column) => $call,
        }
    };
}

impl Node {
    pub(crate) fn new(decoder: &Decoder) -> Self {
        match decoder {
            Decoder::Bool => Self::Bool(Bits::new()),
            Decoder::Int16 => Self::Int16(Fixed::new()),
            Decoder::Int32 => Self::Int32(Fixed::new()),
            Decoder::Int64(form) => Self::Int64(Fixed::new(), *form),
            Decoder::Float32 => Self::Float32(Fixed::new()),
            Decoder::Float64 => Self::Float64(Fixed::new()),
            Decoder::Numeric(decimal) => Self::Numeric(Fixed::new(), *decimal),
            &Decoder::Money {
                decimal,
                fraction_digits,
            } => Self::Money {
                column: Fixed::new(),
                decimal,
                fraction_digits,
            },
            Decoder::Text(form) => Self::Text(Bytes::new(), *form),
            Decoder::Binary(form) => Self::Binary(Bytes::new(), *form),
            Decoder::Date => Self::Date(Fixed::new()),
            Decoder::Timestamp { utc } => Self::Timestamp(Fixed::new(), *utc),
            Decoder::Point => Self::Point(Box::new(PointColumn::new())),
            Decoder::Vector => Self::Vector(Box::new(VectorColumn::new())),
            Decoder::Array {
                dimensions,
                delimiter,
                element,
            } => Self::Array(Box::new(ArrayColumn::new(*dimensions, *delimiter, element))),
            Decoder::Composite(fields) => Self::Composite(Box::new(CompositeColumn::new(fields))),
            Decoder::Range(bound) => Self::Range(Box::new(RangeColumn::new(bound))),
            Decoder::Multirange(bound) => Self::Multirange(Box::new(MultirangeColumn::new(bound))),
            Decoder::Hstore => Self::Hstore(Box::new(MapColumn::new())),
        }
    }

    pub(crate) fn len(&self) -> usize {
        each_column!(self, column => column.len())
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        each_column!(self, column => column.memory_bytes())
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        each_column!(self, column => column.truncate(len));
    }

    pub(crate) fn append_null(&mut self) {
        each_column!(self, column => column.push_null());
    }

    pub(crate) fn reserve(&mut self, rows: usize) {
        match self {
            Self::Int16(column) => column.values.reserve(rows),
            Self::Int32(column) | Self::Date(column) => column.values.reserve(rows),
            Self::Int64(column, _) | Self::Timestamp(column, _) => column.values.reserve(rows),
            Self::Float32(column) => column.values.reserve(rows),
            Self::Float64(column) => column.values.reserve(rows),
            Self::Numeric(column, _) | Self::Money { column, .. } => column.values.reserve(rows),
            Self::Text(column, _) | Self::Binary(column, _) => column.reserve(rows),
            // Bits are small; of nested columns the size of what they hold is not known.
            _ => {}
        }
    }

    pub(crate) fn append_text(&mut self, text: &[u8], on_invalid: OnInvalid) -> Result<(), Kind> {
        match self {
            Self::Bool(column) => match text {
                b"t" => column.push(true),
                b"f" => column.push(false),
                _ => return Err(MALFORMED_BOOL),
            },
            Self::Int16(column) => column.push(narrow(number::integer(text))?),
            Self::Int32(column) => column.push(narrow(number::integer(text))?),
            Self::Int64(column, form) => {
                column.push_option(settle(long_from_text(*form, text), on_invalid)?);
            }
            Self::Float32(column) => column.push(number::float(text).ok_or(MALFORMED_FLOAT)?),
            Self::Float64(column) => column.push(number::float(text).ok_or(MALFORMED_FLOAT)?),
            Self::Numeric(column, decimal) => {
                column.push_option(settle(decimal.parse(text), on_invalid)?);
            }
            Self::Money {
                column,
                decimal,
                fraction_digits,
            } => {
                let parsed = decimal.of_money(number::money(text)?, *fraction_digits);
                column.push_option(settle(parsed, on_invalid)?);
            }
            Self::Text(column, _) => return append_utf8(column, text, on_invalid),
            Self::Binary(column, form) => {
                let digits = match form {
                    BinaryForm::Bytea => text.strip_prefix(b"\\x").ok_or(MALFORMED_BYTES)?,
                    BinaryForm::HexEwkb => text,
                };
                extend_from_hex(&mut column.data, digits).ok_or(MALFORMED_BYTES)?;
                return column.end_value();
            }
            Self::Date(column) => column.push_option(settle(time::date(text), on_invalid)?),
            Self::Timestamp(column, utc) => {
                column.push_option(settle(time::timestamp(text, *utc), on_invalid)?);
            }
            Self::Point(column) => return column.append_text(text),
            Self::Vector(column) => return column.append_text(text),
            Self::Array(column) => return column.append_text(text, on_invalid),
            Self::Composite(column) => return column.append_text(text, on_invalid),
            Self::Range(column) => return column.append_text(text, on_invalid),
            Self::Multirange(column) => return column.append_text(text, on_invalid),
            Self::Hstore(column) => return column.append_text(text, on_invalid),
        }
        Ok(())
    }

    pub(crate) fn append_binary(
        &mut self,
        bytes: &[u8],
        on_invalid: OnInvalid,
    ) -> Result<(), Kind> {
        match self {
            Self::Bool(column) => match bytes {
                [0] => column.push(false),
                [1] => column.push(true),
                _ => return Err(MALFORMED_BOOL),
            },
            Self::Int16(column) => column.push(i16::from_be_bytes(exactly(bytes)?)),
            Self::Int32(column) => column.push(i32::from_be_bytes(exactly(bytes)?)),
            Self::Int64(column, form) => column.push(match form {
                LongForm::Int8 => i64::from_be_bytes(exactly(bytes)?),
                LongForm::Int4 => i32::from_be_bytes(exactly(bytes)?).into(),
                LongForm::Int2 => i16::from_be_bytes(exactly(bytes)?).into(),
                LongForm::Oid => u32::from_be_bytes(exactly(bytes)?).into(),
                LongForm::Unsigned | LongForm::TimeMicros => return Err(NO_BINARY_FORM),
            }),
            // As in text, a NaN has neither a sign nor a payload.
            Self::Float32(column) => {
                let value = f32::from_be_bytes(exactly(bytes)?);
                column.push(if value.is_nan() { f32::NAN } else { value });
            }
            Self::Float64(column) => {
                let value = f64::from_be_bytes(exactly(bytes)?);
                column.push(if value.is_nan() { f64::NAN } else { value });
            }
            Self::Numeric(column, decimal) => {
                column.push_option(settle(decimal.decode(bytes), on_invalid)?);
            }
            Self::Money {
                column,
                decimal,
                fraction_digits,
            } => {
                let raw = i64::from_be_bytes(exactly(bytes)?);
                let parsed = decimal.of_money(raw, *fraction_digits);
                column.push_option(settle(parsed, on_invalid)?);
            }
            Self::Text(column, form) => {
                return append_binary_text(column, *form, bytes, on_invalid);
            }
            Self::Binary(column, BinaryForm::Bytea) => return column.push(bytes),
            Self::Date(column) => {
                column.push_option(settle(time::date_binary(bytes), on_invalid)?);
            }
            Self::Timestamp(column, _) => {
                column.push_option(settle(time::timestamp_binary(bytes), on_invalid)?);
            }
            Self::Binary(_, BinaryForm::HexEwkb)
            | Self::Point(_)
            | Self::Vector(_)
            | Self::Array(_)
            | Self::Composite(_)
            | Self::Range(_)
            | Self::Multirange(_)
            | Self::Hstore(_) => return Err(NO_BINARY_FORM),
        }
        Ok(())
    }

    /// A refused binary value as people know it, else in hexadecimal.
    #[cold]
    pub(crate) fn describe_binary(&self, bytes: &[u8]) -> Vec<u8> {
        let known = match self {
            Self::Numeric(..) => number::numeric_text(bytes).map(String::into_bytes),
            Self::Date(_) => time::describe_date(bytes),
            Self::Timestamp(..) => time::describe_timestamp(bytes),
            Self::Money { .. } => <[u8; 8]>::try_from(bytes)
                .ok()
                .map(|raw| i64::from_be_bytes(raw).to_string().into_bytes()),
            Self::Text(_, TextForm::Plain) => Some(bytes.to_vec()),
            _ => None,
        };
        known.unwrap_or_else(|| {
            let mut text = b"\\x".to_vec();
            let (head, _) = bytes.split_at_checked(64).unwrap_or((bytes, &[]));
            push_hex(&mut text, head);
            text
        })
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        match self {
            Self::Bool(column) => Ok(column.finish()),
            Self::Int16(column) => finish_fixed::<Int16Type>(column),
            Self::Int32(column) => finish_fixed::<Int32Type>(column),
            Self::Int64(column, _) => finish_fixed::<Int64Type>(column),
            Self::Float32(column) => finish_fixed::<Float32Type>(column),
            Self::Float64(column) => finish_fixed::<Float64Type>(column),
            Self::Numeric(column, decimal)
            | Self::Money {
                column, decimal, ..
            } => {
                let array = take_array::<Decimal128Type>(column)?;
                Ok(Arc::new(array.with_data_type(decimal_type(*decimal))))
            }
            Self::Text(column, _) => column.finish_text(),
            Self::Binary(column, _) => column.finish_binary(),
            Self::Date(column) => finish_fixed::<Date32Type>(column),
            Self::Timestamp(column, utc) => {
                let array = take_array::<TimestampMicrosecondType>(column)?;
                Ok(Arc::new(array.with_data_type(timestamp_type(*utc))))
            }
            Self::Point(column) => column.finish(),
            Self::Vector(column) => column.finish(),
            Self::Array(column) => column.finish(),
            Self::Composite(column) => column.finish(),
            Self::Range(column) => column.finish(),
            Self::Multirange(column) => column.finish(),
            Self::Hstore(column) => column.finish(),
        }
    }
}

fn take_array<T: ArrowPrimitiveType>(
    column: &mut Fixed<T::Native>,
) -> Result<PrimitiveArray<T>, ArrowError> {
    let (values, validity) = column.take();
    PrimitiveArray::try_new(values.into(), validity)
}

pub(crate) fn finish_fixed<T: ArrowPrimitiveType>(
    column: &mut Fixed<T::Native>,
) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(take_array::<T>(column)?))
}

fn narrow<T: TryFrom<i64>>(value: Option<i64>) -> Result<T, Kind> {
    value
        .and_then(|value| T::try_from(value).ok())
        .ok_or(MALFORMED_INTEGER)
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Kind> {
    bytes
        .try_into()
        .map_err(|_| "binary value of another length than its type has")
}

fn long_from_text(form: LongForm, text: &[u8]) -> Result<i64, Reject<i64>> {
    let parsed = match form {
        LongForm::Int8 | LongForm::Int4 | LongForm::Int2 => number::integer(text),
        LongForm::TimeMicros => time::time_of_day(text),
        LongForm::Oid | LongForm::Unsigned => match number::unsigned(text).map(i64::try_from) {
            Some(Err(_)) => return Err(Reject::beyond(UNSIGNED_BEYOND, i64::MAX)),
            parsed => parsed.and_then(Result::ok),
        },
    };
    parsed.ok_or(Reject::Malformed(MALFORMED_INTEGER))
}

/// Appends text; what is not UTF-8 (a `SQL_ASCII` database can hold it) follows the policy.
#[inline]
pub(crate) fn append_utf8(
    column: &mut Bytes,
    text: &[u8],
    on_invalid: OnInvalid,
) -> Result<(), Kind> {
    if std::str::from_utf8(text).is_ok() {
        return column.push(text);
    }
    match on_invalid {
        OnInvalid::Null => {
            column.push_null();
            Ok(())
        }
        OnInvalid::Clamp => column.push(String::from_utf8_lossy(text).as_bytes()),
        OnInvalid::Error | OnInvalid::String => Err(NOT_UTF8),
    }
}

fn append_binary_text(
    column: &mut Bytes,
    form: TextForm,
    bytes: &[u8],
    on_invalid: OnInvalid,
) -> Result<(), Kind> {
    match form {
        TextForm::Plain => append_utf8(column, bytes, on_invalid),
        TextForm::Jsonb => match bytes {
            [1, text @ ..] => append_utf8(column, text, on_invalid),
            _ => Err(MALFORMED_TEXT),
        },
        TextForm::Char => match *bytes {
            [0] => column.push(&[]),
            [ascii @ ..=0x7F] => column.push(&[ascii]),
            [high] => column.push(&[
                b'\\',
                b'0' + (high >> 6),
                b'0' + (high >> 3 & 7),
                b'0' + (high & 7),
            ]),
            _ => Err(MALFORMED_TEXT),
        },
        TextForm::Uuid => {
            let digits = hex_digits(u128::from_be_bytes(exactly(bytes)?));
            let mut rest = digits.as_slice();
            column.data.reserve(UUID_LENGTH);
            for (group, length) in [8, 4, 4, 4, 12].into_iter().enumerate() {
                let (head, tail) = rest.split_at_checked(length).ok_or(MALFORMED_TEXT)?;
                if group > 0 {
                    column.data.push(b'-');
                }
                column.data.extend_from_slice(head);
                rest = tail;
            }
            column.end_value()
        }
        TextForm::TextOnly => Err(NO_BINARY_FORM),
    }
}
