//! Which columns have values that hardly repeat: a dictionary of them is made in vain.
//!
//! Parquet's writer starts one for every column and gives it up when it has grown too large. Until
//! then each value was hashed, and stored apart from its place.

use std::hash::BuildHasher as _;

use arrow::array::{Array as _, ArrayRef, AsArray};
use arrow::datatypes::DataType;
use hashbrown::{DefaultHashBuilder, HashSet};

/// Values looked at, at even distances.
const SAMPLE: usize = 1024;
/// Of fewer rows a dictionary is small anyhow.
const FEW_ROWS: usize = 4 * SAMPLE;

/// Whether nearly all values of a column differ. False where that is not known: nested columns.
pub(super) fn hardly_repeats(column: &ArrayRef) -> bool {
    let rows = column.len();
    if rows < FEW_ROWS {
        return false;
    }
    let hasher = DefaultHashBuilder::default();
    let places = (0..rows)
        .step_by(rows / SAMPLE)
        .filter(|row| column.is_valid(*row));
    let values = places.clone().count();
    let distinct: HashSet<u64> = match column.data_type() {
        DataType::Utf8 => {
            let column = column.as_string::<i32>();
            places
                .map(|row| hasher.hash_one(column.value(row)))
                .collect()
        }
        DataType::Binary => {
            let column = column.as_binary::<i32>();
            places
                .map(|row| hasher.hash_one(column.value(row)))
                .collect()
        }
        data_type => {
            let (Some(width), data) = (data_type.primitive_width(), column.to_data()) else {
                return false;
            };
            let Some(buffer) = data.buffers().first() else {
                return false;
            };
            let value = |row: usize| {
                let start = (data.offset() + row) * width;
                buffer.as_slice().get(start..start + width)
            };
            places.map(|row| hasher.hash_one(value(row))).collect()
        }
    };
    values >= SAMPLE / 4 && distinct.len() * 10 > values * 9
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Int64Array, StringArray};

    use super::*;

    #[test]
    fn keys_hardly_repeat_and_states_do() {
        let rows = 10_000_i64;
        let number = |of: fn(i64) -> Option<i64>| -> ArrayRef {
            Arc::new((0..rows).map(of).collect::<Int64Array>())
        };
        assert!(hardly_repeats(&number(Some)));
        assert!(hardly_repeats(&number(Some).slice(1000, 9000)));
        assert!(!hardly_repeats(&number(|n| Some(n % 50))));
        assert!(
            !hardly_repeats(&number(Some).slice(0, 1000)),
            "too few to say"
        );
        assert!(
            !hardly_repeats(&number(|n| (n % 97 == 0).then_some(n))),
            "mostly NULL"
        );
        let texts: StringArray = (0..rows).map(|n| Some(format!("text {n}"))).collect();
        assert!(hardly_repeats(&(Arc::new(texts) as ArrayRef)));
        let states: StringArray = (0..rows)
            .map(|n| Some(["new", "paid"][n as usize % 2]))
            .collect();
        assert!(!hardly_repeats(&(Arc::new(states) as ArrayRef)));
        let flags: BooleanArray = (0..rows).map(|n| Some(n % 2 == 0)).collect();
        assert!(!hardly_repeats(&(Arc::new(flags) as ArrayRef)));
    }
}
