//! Between Arrow schemas and Delta's.

use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use delta_kernel::engine::arrow_conversion::{TryFromArrow, TryFromKernel};
use delta_kernel::schema::StructType;

/// An Arrow schema as Delta's.
pub(super) fn to_delta(schema: &Schema, dir: &Path) -> Result<StructType> {
    StructType::try_from_arrow(schema).map_err(|e| {
        Error::new(
            &code::SCHEMA_COLUMN,
            format!(
                "the columns of \"{}\" cannot be represented in Delta",
                dir.display()
            ),
        )
        .with_detail(e.to_string())
    })
}

/// A Delta schema as Arrow's.
pub(super) fn to_arrow(schema: &StructType, dir: &Path) -> Result<SchemaRef> {
    Schema::try_from_kernel(schema)
        .map(|schema: Schema| Arc::new(without_metadata(&schema)))
        .map_err(|e| {
            Error::new(
                &code::LAKE_FOREIGN,
                format!(
                    "the schema of \"{}\" has types alluvium does not write",
                    dir.display()
                ),
            )
            .with_detail(e.to_string())
        })
}

/// Fields without Delta's notes on them (ids, physical names), which would make equal types differ.
fn without_metadata(schema: &Schema) -> Schema {
    Schema::new(
        schema
            .fields()
            .iter()
            .map(|field| bare_field(field))
            .collect::<Vec<_>>(),
    )
}

fn bare_field(field: &Field) -> Field {
    Field::new(
        field.name(),
        bare_type(field.data_type()),
        field.is_nullable(),
    )
}

fn bare_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| bare_field(field)).collect())
        }
        DataType::List(item) => DataType::List(Arc::new(bare_field(item))),
        DataType::Map(entries, sorted) => DataType::Map(Arc::new(bare_field(entries)), *sorted),
        other => other.clone(),
    }
}
