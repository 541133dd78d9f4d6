//! Which files may hold a match, from the bounds in the table's log.
//!
//! Used while [`crate::table`] plans a scan. Invariant: a bound given here holds for every row of
//! the file; where that is not sure, none is given.

use std::collections::{HashMap, HashSet};

use alluvium_lake::read::{ColumnBounds, DataFile};
use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::expressions;

/// Delta keeps timestamps in milliseconds; a writer may have cut what is beyond.
const BELOW_A_MILLISECOND_MICROS: i64 = 999;

/// Digits of a decimal that survive the float a JSON number may pass through.
const FLOAT_DIGITS: u8 = 15;

/// Bounds of some columns, one array element per file.
pub(crate) struct FileBounds {
    num_files: usize,
    num_rows: UInt64Array,
    columns: HashMap<String, Bounds>,
}

#[derive(Default)]
struct Bounds {
    min: Option<ArrayRef>,
    max: Option<ArrayRef>,
    null_count: Option<UInt64Array>,
}

impl FileBounds {
    /// What is known of `columns` in `files`.
    pub(crate) fn new(
        files: &[&DataFile],
        schema: &SchemaRef,
        columns: &[expressions::Column],
    ) -> Self {
        let wanted: Vec<(&str, &DataType)> = columns
            .iter()
            .filter_map(|column| schema.column_with_name(column.name()))
            .map(|(_, field)| (field.name().as_str(), field.data_type()))
            .collect();
        let of_files: Vec<Vec<ColumnBounds>> =
            files.iter().map(|file| file.bounds(&wanted)).collect();
        let mut known = HashMap::with_capacity(wanted.len());
        for (place, (name, data_type)) in wanted.iter().enumerate() {
            let of_column: Vec<Option<&ColumnBounds>> =
                of_files.iter().map(|bounds| bounds.get(place)).collect();
            known.insert((*name).to_owned(), bounds_of(&of_column, data_type));
        }
        Self {
            num_files: files.len(),
            num_rows: files.iter().map(|file| file.num_rows).collect(),
            columns: known,
        }
    }
}

fn bounds_of(files: &[Option<&ColumnBounds>], data_type: &DataType) -> Bounds {
    let null_count = files
        .iter()
        .map(|bounds| bounds.and_then(|bounds| bounds.null_count))
        .collect();
    let unknown = match ScalarValue::try_from(data_type) {
        Ok(null) if !matches!(data_type, DataType::Decimal128(digits, _) if *digits > FLOAT_DIGITS) => {
            null
        }
        _ => {
            return Bounds {
                null_count: Some(null_count),
                ..Bounds::default()
            };
        }
    };
    let side = |of: fn(&ColumnBounds) -> Option<&ArrayRef>,
                sound: fn(ScalarValue) -> Option<ScalarValue>| {
        let values = files.iter().map(|bounds| {
            let value = bounds
                .and_then(of)
                .and_then(|value| ScalarValue::try_from_array(value, 0).ok());
            value.and_then(sound).unwrap_or_else(|| unknown.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    };
    Bounds {
        min: side(|bounds| bounds.min.as_ref(), sound_min),
        max: side(|bounds| bounds.max.as_ref(), sound_max),
        null_count: Some(null_count),
    }
}

/// Zero may stand for -0.0, which Arrow orders below it.
fn sound_min(value: ScalarValue) -> Option<ScalarValue> {
    match value {
        ScalarValue::Float32(Some(0.0)) => Some(ScalarValue::Float32(Some(-0.0))),
        ScalarValue::Float64(Some(0.0)) => Some(ScalarValue::Float64(Some(-0.0))),
        ScalarValue::Float16(_) => None,
        other => Some(other),
    }
}

/// NaN is above every number but in no bound; timestamps may have been cut.
fn sound_max(value: ScalarValue) -> Option<ScalarValue> {
    match value {
        ScalarValue::Float16(_) | ScalarValue::Float32(_) | ScalarValue::Float64(_) => None,
        ScalarValue::TimestampMicrosecond(Some(max), zone) => max
            .checked_add(BELOW_A_MILLISECOND_MICROS)
            .map(|max| ScalarValue::TimestampMicrosecond(Some(max), zone)),
        other if is_finer_timestamp(&other) => None,
        other => Some(other),
    }
}

/// Delta has none; a bound of one would have to be rounded by its own rule.
fn is_finer_timestamp(value: &ScalarValue) -> bool {
    matches!(
        value.data_type(),
        DataType::Timestamp(TimeUnit::Nanosecond, _)
    )
}

impl PruningStatistics for FileBounds {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.columns.get(&column.name)?.min.clone()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.columns.get(&column.name)?.max.clone()
    }

    fn num_containers(&self) -> usize {
        self.num_files
    }

    /// Of the file with its deleted rows, as the row counts are: none and all stay none and all.
    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let counts = self.columns.get(&column.name)?.null_count.clone()?;
        Some(std::sync::Arc::new(counts))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(std::sync::Arc::new(self.num_rows.clone()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
