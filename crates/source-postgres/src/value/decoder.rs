//! What a column's values become: the tree that `type_map` plans and [`super::node`] carries out.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};

use super::Decimal;

/// How text is read and what its binary form is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextForm {
    /// The same bytes in both forms.
    Plain,
    /// `"char"`: one byte; in text, empty for zero and octal beyond ASCII.
    Char,
    /// `jsonb`: a version byte before the text.
    Jsonb,
    /// `uuid`: 16 bytes.
    Uuid,
    /// No binary form is read: the copy asks for the text.
    TextOnly,
}

/// How a 64-bit integer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LongForm {
    /// `int8`.
    Int8,
    /// `int2`, stored wider than it is.
    Int2,
    /// `int4`, stored wider than it is.
    Int4,
    /// `oid`.
    Oid,
    /// `xid`, `cid`, `xid8`: unsigned, text only.
    Unsigned,
    /// `time` as microseconds since midnight, text only.
    TimeMicros,
}

/// How bytes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryForm {
    /// `bytea`: `\x` and hexadecimal digits.
    Bytea,
    /// PostGIS: hexadecimal digits of EWKB, text only.
    HexEwkb,
}

/// How the values of a column are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoder {
    Bool,
    Int16,
    Int32,
    Int64(LongForm),
    Float32,
    Float64,
    Numeric(Decimal),
    Money {
        decimal: Decimal,
        fraction_digits: u8,
    },
    Text(TextForm),
    Binary(BinaryForm),
    Date,
    Timestamp {
        utc: bool,
    },
    Point,
    Vector,
    Array {
        dimensions: usize,
        delimiter: u8,
        element: Box<Decoder>,
    },
    Composite(Vec<(String, Decoder)>),
    Range(Box<Decoder>),
    Multirange(Box<Decoder>),
    Hstore,
}

impl Decoder {
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Numeric(decimal) | Self::Money { decimal, .. } => decimal_type(*decimal),
            Self::Text(_) => DataType::Utf8,
            Self::Binary(_) => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Timestamp { utc } => timestamp_type(*utc),
            Self::Point => DataType::Struct(point_fields()),
            Self::Vector => DataType::List(element_field(DataType::Float32)),
            Self::Array {
                dimensions,
                element,
                ..
            } => (0..*dimensions).fold(element.data_type(), |inner, _| {
                DataType::List(element_field(inner))
            }),
            Self::Composite(fields) => DataType::Struct(composite_fields(fields)),
            Self::Range(bound) => DataType::Struct(range_fields(bound)),
            Self::Multirange(bound) => {
                DataType::List(element_field(DataType::Struct(range_fields(bound))))
            }
            Self::Hstore => DataType::Map(map_entries_field(), false),
        }
    }

    /// Whether `append_binary` reads this type's binary form.
    pub(crate) fn reads_binary(&self) -> bool {
        match self {
            Self::Bool
            | Self::Int16
            | Self::Int32
            | Self::Float32
            | Self::Float64
            | Self::Numeric(_)
            | Self::Money { .. }
            | Self::Date
            | Self::Timestamp { .. } => true,
            Self::Int64(form) => !matches!(form, LongForm::Unsigned | LongForm::TimeMicros),
            Self::Text(form) => *form != TextForm::TextOnly,
            Self::Binary(form) => *form == BinaryForm::Bytea,
            Self::Point
            | Self::Vector
            | Self::Array { .. }
            | Self::Composite(_)
            | Self::Range(_)
            | Self::Multirange(_)
            | Self::Hstore => false,
        }
    }

    /// Whether the source may have values that the planned type cannot hold, but text can.
    pub(crate) fn may_refuse(&self) -> bool {
        match self {
            Self::Bool
            | Self::Int16
            | Self::Int32
            | Self::Float32
            | Self::Float64
            | Self::Text(_)
            | Self::Binary(_)
            | Self::Point
            | Self::Vector
            | Self::Hstore => false,
            Self::Int64(form) => *form == LongForm::Unsigned,
            Self::Numeric(_)
            | Self::Money { .. }
            | Self::Date
            | Self::Timestamp { .. }
            | Self::Array { .. } => true,
            Self::Composite(fields) => fields.iter().any(|(_, field)| field.may_refuse()),
            Self::Range(bound) | Self::Multirange(bound) => bound.may_refuse(),
        }
    }
}

pub(crate) fn decimal_type(decimal: Decimal) -> DataType {
    // A scale is at most 38.
    DataType::Decimal128(
        decimal.precision,
        i8::try_from(decimal.scale).unwrap_or(i8::MAX),
    )
}

pub(crate) fn timestamp_type(utc: bool) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, utc.then(|| Arc::from("UTC")))
}

/// The item of a list, named as the Delta kernel names it.
pub(crate) fn element_field(data_type: DataType) -> FieldRef {
    Arc::new(Field::new("element", data_type, true))
}

pub(crate) fn point_fields() -> Fields {
    ["x", "y"]
        .into_iter()
        .map(|name| Field::new(name, DataType::Float64, true))
        .collect()
}

pub(crate) fn composite_fields(fields: &[(String, Decoder)]) -> Fields {
    fields
        .iter()
        .map(|(name, field)| Field::new(name, field.data_type(), true))
        .collect()
}

pub(crate) fn range_fields(bound: &Decoder) -> Fields {
    let bound = bound.data_type();
    [
        Field::new("lower", bound.clone(), true),
        Field::new("upper", bound, true),
        Field::new("lower_inc", DataType::Boolean, true),
        Field::new("upper_inc", DataType::Boolean, true),
        Field::new("empty", DataType::Boolean, true),
    ]
    .into_iter()
    .collect()
}

pub(crate) fn map_fields() -> Fields {
    [
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ]
    .into_iter()
    .collect()
}

/// The entries of a map, named as the Delta kernel names them.
pub(crate) fn map_entries_field() -> FieldRef {
    Arc::new(Field::new(
        "key_value",
        DataType::Struct(map_fields()),
        false,
    ))
}
