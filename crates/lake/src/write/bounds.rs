//! What a file's statistics say, read back from Delta's JSON.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use serde_json::Value;

/// What is known of one column of one file. Bounds are arrays of one value.
#[derive(Debug, Clone, Default)]
pub struct ColumnBounds {
    /// NULLs, deleted rows included.
    pub null_count: Option<u64>,
    /// At or below every value.
    pub min: Option<ArrayRef>,
    /// At or above every value.
    pub max: Option<ArrayRef>,
}

/// The bounds of top-level columns of a file.
pub(crate) fn parse_bounds(stats: &str, columns: &[(&str, &DataType)]) -> Vec<ColumnBounds> {
    let stats: Value = serde_json::from_str(stats).unwrap_or_default();
    let of = |kind: &str, name: &str| stats.get(kind).and_then(|values| values.get(name));
    columns
        .iter()
        .map(|(name, data_type)| ColumnBounds {
            null_count: of("nullCount", name).and_then(Value::as_u64),
            min: of("minValues", name).and_then(|value| parse(value, data_type)),
            max: of("maxValues", name).and_then(|value| parse(value, data_type)),
        })
        .collect()
}

fn parse(value: &Value, data_type: &DataType) -> Option<ArrayRef> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let text: ArrayRef = Arc::new(StringArray::from(vec![text]));
    let value = cast(&text, data_type).ok()?;
    value.is_valid(0).then_some(value)
}
