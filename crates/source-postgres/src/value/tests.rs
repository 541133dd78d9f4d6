#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]
//! Decoded values against a plain model of them.

mod invalid;
mod literals;
mod properties;
mod scalars;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, TimestampMicrosecondType,
};

use crate::type_map::{ColumnOptions, ColumnPlan, OnInvalid, PgKind, PgType, plan_column};

/// A value as an Arrow array holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Model {
    Null,
    Bool(bool),
    /// Integers, days, microseconds, unscaled decimals.
    Number(i128),
    /// The bits; one NaN for all.
    Float(u64),
    Float32(u32),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Model>),
    Struct(Vec<Model>),
    Map(Vec<(String, Option<String>)>),
}

pub(crate) fn text(value: &str) -> Model {
    Model::Text(value.to_owned())
}

pub(crate) fn model_at(array: &dyn Array, row: usize) -> Model {
    if array.is_null(row) {
        return Model::Null;
    }
    let all = |values: &dyn Array| (0..values.len()).map(|i| model_at(values, i)).collect();
    match array.data_type() {
        DataType::Boolean => Model::Bool(array.as_boolean().value(row)),
        DataType::Int16 => Model::Number(array.as_primitive::<Int16Type>().value(row).into()),
        DataType::Int32 => Model::Number(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::Int64 => Model::Number(array.as_primitive::<Int64Type>().value(row).into()),
        DataType::Date32 => Model::Number(array.as_primitive::<Date32Type>().value(row).into()),
        DataType::Timestamp(..) => Model::Number(
            array
                .as_primitive::<TimestampMicrosecondType>()
                .value(row)
                .into(),
        ),
        DataType::Decimal128(..) => {
            Model::Number(array.as_primitive::<Decimal128Type>().value(row))
        }
        DataType::Float32 => float32(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => text(array.as_string::<i32>().value(row)),
        DataType::Binary => Model::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        DataType::List(_) => Model::List(all(&array.as_list::<i32>().value(row))),
        DataType::Struct(_) => {
            let columns = array.as_struct().columns();
            Model::Struct(columns.iter().map(|column| model_at(column, row)).collect())
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0).as_string::<i32>(), entries.column(1));
            let values = values.as_string::<i32>();
            let entry = |i| {
                let value = values.is_valid(i).then(|| values.value(i).to_owned());
                (keys.value(i).to_owned(), value)
            };
            Model::Map((0..keys.len()).map(entry).collect())
        }
        other => panic!("no column becomes {other}"),
    }
}

pub(crate) fn float(value: f64) -> Model {
    Model::Float(if value.is_nan() {
        f64::NAN.to_bits()
    } else {
        value.to_bits()
    })
}

pub(crate) fn float32(value: f32) -> Model {
    Model::Float32(if value.is_nan() {
        f32::NAN.to_bits()
    } else {
        value.to_bits()
    })
}

pub(crate) fn models(array: &ArrayRef) -> Vec<Model> {
    (0..array.len()).map(|row| model_at(array, row)).collect()
}

pub(crate) fn pg_type(name: &str, typmod: i32, kind: PgKind) -> PgType {
    PgType {
        oid: 0,
        name: name.to_owned(),
        schema: "pg_catalog".to_owned(),
        label: name.to_owned(),
        typmod,
        delimiter: if name == "box" { b';' } else { b',' },
        kind,
    }
}

pub(crate) fn scalar(name: &str) -> PgType {
    pg_type(name, -1, PgKind::Scalar)
}

pub(crate) fn numeric(precision: i32, scale: i32) -> PgType {
    pg_type(
        "numeric",
        ((precision << 16) | (scale & 0x7FF)) + 4,
        PgKind::Scalar,
    )
}

pub(crate) fn array_of(element: PgType) -> PgType {
    pg_type(
        &format!("_{}", element.name),
        element.typmod,
        PgKind::Array(Box::new(element)),
    )
}

pub(crate) fn range_of(bound: PgType) -> PgType {
    pg_type("range", -1, PgKind::Range(Box::new(bound)))
}

pub(crate) fn multirange_of(bound: PgType) -> PgType {
    pg_type(
        "multirange",
        -1,
        PgKind::Multirange(Box::new(range_of(bound))),
    )
}

pub(crate) fn composite(fields: Vec<(&str, PgType)>) -> PgType {
    let fields = fields
        .into_iter()
        .map(|(name, ty)| (name.to_owned(), ty))
        .collect();
    pg_type("composite", -1, PgKind::Composite(fields))
}

pub(crate) fn options(on_invalid: OnInvalid) -> ColumnOptions {
    ColumnOptions {
        on_invalid,
        ..ColumnOptions::default()
    }
}

pub(crate) fn plan(ty: &PgType) -> ColumnPlan {
    plan_column(ty, &ColumnOptions::default()).unwrap()
}

/// The texts as a column of `ty`.
pub(crate) fn decoded(plan: &ColumnPlan, texts: &[&str]) -> Vec<Model> {
    let mut builder = plan.builder();
    for text in texts {
        builder
            .append_text(text.as_bytes())
            .unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    assert_eq!(builder.len(), texts.len());
    let array = builder.finish().unwrap();
    assert_eq!(array.data_type(), &plan.data_type);
    assert_eq!(builder.len(), 0);
    models(&array)
}

pub(crate) fn decoded_one(ty: &PgType, text: &str) -> Model {
    decoded(&plan(ty), &[text]).remove(0)
}

pub(crate) fn number(value: i128) -> Model {
    Model::Number(value)
}

pub(crate) fn list(items: Vec<Model>) -> Model {
    Model::List(items)
}

/// A range as its struct.
pub(crate) fn range(lower: Model, upper: Model, inc: (bool, bool)) -> Model {
    let (lower_inc, upper_inc) = (Model::Bool(inc.0), Model::Bool(inc.1));
    Model::Struct(vec![lower, upper, lower_inc, upper_inc, Model::Bool(false)])
}

pub(crate) fn empty_range() -> Model {
    let no = Model::Bool(false);
    Model::Struct(vec![
        Model::Null,
        Model::Null,
        no.clone(),
        no,
        Model::Bool(true),
    ])
}
