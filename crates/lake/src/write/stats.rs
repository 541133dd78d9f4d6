//! Statistics of a data file, as Delta's JSON.
//!
//! Readers skip files by them, so a wrong bound loses rows. Invariant: every bound written holds
//! every value, however a reader parses it; where that cannot be had there is no bound. Hence none
//! for decimals of more than 15 digits (readers parse them as doubles), for floats once a NaN or an
//! infinity is seen, for dates and times outside the years 1 to 9999, for binary and nested values.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{max, max_string, min, min_string};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Schema, TimeUnit, TimestampMicrosecondType,
};
use chrono::{DateTime, Datelike, NaiveDate};
use serde_json::Value;

use super::encoded::EncodedRows;

/// Leaf columns with statistics, as Delta's default `delta.dataSkippingNumIndexedCols`.
const INDEXED_LEAVES: usize = 32;
const STRING_PREFIX_CHARS: usize = 32;
/// Doubles hold every decimal of so many digits.
const EXACT_DOUBLE_DIGITS: u8 = 15;
const MICROS_PER_MS: i64 = 1000;

/// Collects the statistics of one file.
#[derive(Debug)]
pub(super) struct StatsCollector {
    num_records: u64,
    columns: Vec<ColumnStats>,
}

#[derive(Debug, Clone)]
pub(super) struct ColumnStats {
    name: String,
    data_type: DataType,
    nulls: NullCount,
    bounds: Bounds,
}

#[derive(Debug, Clone)]
enum NullCount {
    Leaf(u64),
    Struct(Vec<(String, NullCount)>),
}

/// Bounds seen so far.
#[derive(Debug, Clone, PartialEq)]
enum Bounds {
    /// Nothing but NULLs yet.
    Empty,
    Integer(i128, i128),
    Float(f64, f64),
    Text(String, String),
    /// Bounds cannot be given for this column.
    Unbounded,
}

impl StatsCollector {
    pub(super) fn new(schema: &Schema) -> Self {
        let mut leaves = 0;
        let mut columns = Vec::new();
        for field in schema.fields() {
            leaves += count_leaves(field.data_type());
            if leaves > INDEXED_LEAVES {
                break;
            }
            columns.push(ColumnStats::new(field));
        }
        Self {
            num_records: 0,
            columns,
        }
    }

    /// The statistics of each column of `batch`, for [`Self::update_encoded`].
    pub(super) fn columns_of(batch: &RecordBatch) -> Vec<ColumnStats> {
        let schema = batch.schema();
        let mut columns: Vec<_> = schema
            .fields()
            .iter()
            .map(|f| ColumnStats::new(f))
            .collect();
        for (stats, column) in columns.iter_mut().zip(batch.columns()) {
            stats.update(column);
        }
        columns
    }

    /// `batch` has the schema given at the start.
    pub(super) fn update(&mut self, batch: &RecordBatch) {
        self.num_records += batch.num_rows() as u64;
        for (stats, column) in self.columns.iter_mut().zip(batch.columns()) {
            stats.update(column);
        }
    }

    /// As [`Self::update`], with statistics made when the rows were encoded.
    pub(super) fn update_encoded(&mut self, sources: &[&EncodedRows], rows: usize) {
        self.num_records += rows as u64;
        for stats in &mut self.columns {
            match sources
                .iter()
                .find_map(|source| source.stats_of(&stats.name))
            {
                Some(seen) => stats.merge(seen),
                None => stats.bounds = Bounds::Unbounded,
            }
        }
    }

    /// The JSON text of `add.stats`.
    pub(super) fn finish(self) -> String {
        let mut minima = Vec::new();
        let mut maxima = Vec::new();
        let mut nulls = Vec::new();
        for column in &self.columns {
            nulls.push((column.name.as_str(), column.nulls.to_json()));
            if let Some((min, max)) = column.bounds.to_json(&column.data_type) {
                minima.push((column.name.as_str(), min));
                if let Some(max) = max {
                    maxima.push((column.name.as_str(), max));
                }
            }
        }
        format!(
            "{{\"numRecords\":{},\"minValues\":{},\"maxValues\":{},\"nullCount\":{},\"tightBounds\":true}}",
            self.num_records,
            object(&minima),
            object(&maxima),
            object(&nulls),
        )
    }
}

/// A JSON object of values that are JSON text already: numbers keep all their digits.
fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}:{value}", Value::from(*name)))
        .collect();
    format!("{{{}}}", fields.join(","))
}

fn count_leaves(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|f| count_leaves(f.data_type())).sum(),
        _ => 1,
    }
}

fn has_bounds(data_type: &DataType) -> bool {
    match data_type {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => true,
        DataType::Float32 | DataType::Float64 | DataType::Utf8 | DataType::Date32 => true,
        DataType::Decimal128(precision, _) => *precision <= EXACT_DOUBLE_DIGITS,
        DataType::Timestamp(unit, _) => *unit == TimeUnit::Microsecond,
        _ => false,
    }
}

impl ColumnStats {
    fn new(field: &Field) -> Self {
        Self {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            nulls: NullCount::new(field.data_type()),
            bounds: if has_bounds(field.data_type()) {
                Bounds::Empty
            } else {
                Bounds::Unbounded
            },
        }
    }

    fn update(&mut self, column: &ArrayRef) {
        self.nulls.update(column);
        self.bounds.merge(bounds_of(column));
    }

    fn merge(&mut self, other: &Self) {
        self.nulls.merge(&other.nulls);
        self.bounds.merge(other.bounds.clone());
    }
}

impl NullCount {
    fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Struct(fields) => Self::Struct(
                fields
                    .iter()
                    .map(|f| (f.name().clone(), Self::new(f.data_type())))
                    .collect(),
            ),
            _ => Self::Leaf(0),
        }
    }

    fn update(&mut self, array: &ArrayRef) {
        match self {
            Self::Leaf(count) => *count += array.logical_null_count() as u64,
            Self::Struct(fields) => {
                let Some(array) = array.as_struct_opt() else {
                    return;
                };
                for ((_, count), column) in fields.iter_mut().zip(array.columns()) {
                    count.update(&under(column, array.nulls()));
                }
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Leaf(count), Self::Leaf(more)) => *count += more,
            (Self::Struct(fields), Self::Struct(more)) => {
                for ((_, count), (_, more)) in fields.iter_mut().zip(more) {
                    count.merge(more);
                }
            }
            // Columns of one name have one type.
            _ => {}
        }
    }

    fn to_json(&self) -> String {
        match self {
            Self::Leaf(count) => count.to_string(),
            Self::Struct(fields) => {
                let fields: Vec<(&str, String)> = fields
                    .iter()
                    .map(|(name, count)| (name.as_str(), count.to_json()))
                    .collect();
                object(&fields)
            }
        }
    }
}

/// A struct's field, NULL where the struct is.
fn under(column: &ArrayRef, nulls: Option<&arrow::buffer::NullBuffer>) -> ArrayRef {
    let Some(nulls) = nulls else {
        return column.clone();
    };
    let all = arrow::buffer::NullBuffer::union(Some(nulls), column.nulls());
    let data = column.to_data().into_builder().nulls(all).build();
    data.map_or_else(|_| column.clone(), arrow::array::make_array)
}

fn bounds_of(array: &ArrayRef) -> Bounds {
    macro_rules! integer {
        ($type:ty) => {{
            let array = array.as_primitive::<$type>();
            match (min(array), max(array)) {
                (Some(low), Some(high)) => Bounds::Integer(i128::from(low), i128::from(high)),
                _ => Bounds::Empty,
            }
        }};
    }
    match array.data_type() {
        DataType::Int8 => integer!(Int8Type),
        DataType::Int16 => integer!(Int16Type),
        DataType::Int32 => integer!(Int32Type),
        DataType::Int64 => integer!(Int64Type),
        DataType::Date32 => integer!(Date32Type),
        DataType::Timestamp(TimeUnit::Microsecond, _) => integer!(TimestampMicrosecondType),
        DataType::Decimal128(precision, _) if *precision <= EXACT_DOUBLE_DIGITS => {
            integer!(Decimal128Type)
        }
        DataType::Float32 => float_bounds(
            array
                .as_primitive::<Float32Type>()
                .iter()
                .flatten()
                .map(f64::from),
        ),
        DataType::Float64 => float_bounds(array.as_primitive::<Float64Type>().iter().flatten()),
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            match (min_string(array), max_string(array)) {
                (Some(low), Some(high)) => Bounds::Text(low.to_owned(), high.to_owned()),
                _ => Bounds::Empty,
            }
        }
        _ => Bounds::Unbounded,
    }
}

fn float_bounds(values: impl Iterator<Item = f64>) -> Bounds {
    let mut bounds = Bounds::Empty;
    for value in values {
        if !value.is_finite() {
            return Bounds::Unbounded;
        }
        bounds.merge(Bounds::Float(value, value));
    }
    bounds
}

impl Bounds {
    fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (_, Self::Empty) | (Self::Unbounded, _) => {}
            (Self::Empty, other) => *self = other,
            (Self::Integer(low, high), Self::Integer(other_low, other_high)) => {
                *low = (*low).min(other_low);
                *high = (*high).max(other_high);
            }
            (Self::Float(low, high), Self::Float(other_low, other_high)) => {
                *low = low.min(other_low);
                *high = high.max(other_high);
            }
            (Self::Text(low, high), Self::Text(other_low, other_high)) => {
                if other_low < *low {
                    *low = other_low;
                }
                if other_high > *high {
                    *high = other_high;
                }
            }
            _ => *self = Self::Unbounded,
        }
    }

    /// The lower bound and, if there is one, the upper bound, as JSON text.
    fn to_json(&self, data_type: &DataType) -> Option<(String, Option<String>)> {
        match (self, data_type) {
            (Self::Integer(low, high), DataType::Date32) => {
                let (low, high) = (date(*low)?, date(*high)?);
                Some((
                    Value::from(low).to_string(),
                    Some(Value::from(high).to_string()),
                ))
            }
            (Self::Integer(low, high), DataType::Timestamp(_, zone)) => {
                let (low, high) = (
                    timestamp(*low, zone.is_some(), false)?,
                    timestamp(*high, zone.is_some(), true)?,
                );
                Some((
                    Value::from(low).to_string(),
                    Some(Value::from(high).to_string()),
                ))
            }
            (Self::Integer(low, high), DataType::Decimal128(_, scale)) => {
                Some((decimal(*low, *scale), Some(decimal(*high, *scale))))
            }
            (Self::Integer(low, high), _) => Some((low.to_string(), Some(high.to_string()))),
            (Self::Float(low, high), _) => {
                // Some readers order -0.0 below 0.0.
                let low = if *low == 0.0 { -0.0 } else { *low };
                let high = if *high == 0.0 { 0.0 } else { *high };
                Some((
                    Value::from(low).to_string(),
                    Some(Value::from(high).to_string()),
                ))
            }
            (Self::Text(low, high), _) => {
                let low: String = low.chars().take(STRING_PREFIX_CHARS).collect();
                let high = upper_text(high).map(|high| Value::from(high).to_string());
                Some((Value::from(low).to_string(), high))
            }
            (Self::Empty | Self::Unbounded, _) => None,
        }
    }
}

/// A short text at or above every text that starts like `text`.
fn upper_text(text: &str) -> Option<String> {
    let mut rest = text.chars();
    let mut prefix: String = rest.by_ref().take(STRING_PREFIX_CHARS).collect();
    match rest.next() {
        None => Some(prefix),
        // Nothing is above it.
        Some(char::MAX) => None,
        Some(_) => {
            prefix.push(char::MAX);
            Some(prefix)
        }
    }
}

fn in_range(year: i32) -> bool {
    (1..=9999).contains(&year)
}

fn date(days: i128) -> Option<String> {
    let days = i32::try_from(days).ok()?;
    let epoch = NaiveDate::from_ymd_opt(1970, 1, 1)?;
    let date = epoch.checked_add_signed(chrono::TimeDelta::try_days(i64::from(days))?)?;
    in_range(date.year()).then(|| date.format("%Y-%m-%d").to_string())
}

/// Delta keeps milliseconds: bounds are moved outwards.
fn timestamp(micros: i128, utc: bool, up: bool) -> Option<String> {
    let micros = i64::try_from(micros).ok()?;
    let mut ms = micros.div_euclid(MICROS_PER_MS);
    if up && micros.rem_euclid(MICROS_PER_MS) != 0 {
        ms += 1;
    }
    let time = DateTime::from_timestamp_millis(ms)?;
    let text = time.format("%Y-%m-%dT%H:%M:%S%.3f").to_string();
    in_range(time.year()).then(|| if utc { format!("{text}Z") } else { text })
}

fn decimal(unscaled: i128, scale: i8) -> String {
    let Ok(scale) = usize::try_from(scale) else {
        // A negative scale: whole tens, hundreds and so on.
        return format!(
            "{unscaled}{}",
            "0".repeat(usize::from(scale.unsigned_abs()))
        );
    };
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if scale == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction}")
    }
}

#[cfg(test)]
mod tests;
