//! Between Arrow schemas and Delta's.

use std::path::Path;
use std::sync::Arc;

use alluvium_change::{Error, Result, code};
use arrow::datatypes::{Schema, SchemaRef};
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
    Schema::try_from_kernel(schema).map(Arc::new).map_err(|e| {
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
