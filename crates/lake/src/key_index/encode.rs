//! Keys and rows as 128-bit numbers.
//!
//! Two keys are equal when their stored bits are: an old image carries the bits of the stored row,
//! so this is the equality that finds rows (`-0.0` and `0.0` are two rows to an UPDATE that names
//! one of them by its old image).

use alluvium_change::{Error, Result};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{
    ArrowNativeType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use xxhash_rust::xxh3::xxh3_128;

use super::Key;

/// How keys of some columns become numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyWidth {
    /// Exactly, in 8 bytes.
    Narrow,
    /// Exactly, in 16 bytes.
    Wide,
    /// As a hash.
    Hashed,
}

impl KeyWidth {
    pub(crate) fn of<'a>(types: impl Iterator<Item = &'a DataType>) -> Self {
        let mut total = 0;
        for data_type in types {
            match fixed_bytes(data_type) {
                Some(bytes) => total += bytes,
                None => return Self::Hashed,
            }
        }
        match total {
            0..=8 => Self::Narrow,
            9..=16 => Self::Wide,
            _ => Self::Hashed,
        }
    }
}

fn fixed_bytes(data_type: &DataType) -> Option<usize> {
    Some(match data_type {
        DataType::Boolean | DataType::Int8 => 1,
        DataType::Int16 => 2,
        DataType::Int32 | DataType::Float32 | DataType::Date32 => 4,
        DataType::Int64 | DataType::Float64 | DataType::Timestamp(TimeUnit::Microsecond, _) => 8,
        // 18 digits fit in 8 bytes.
        DataType::Decimal128(precision, _) => {
            if *precision <= 18 {
                8
            } else {
                16
            }
        }
        _ => return None,
    })
}

/// The values of one column, ready to be appended row by row.
enum Column<'a> {
    Boolean(&'a arrow::array::BooleanArray),
    /// Little-endian values of `width` bytes, of which the first `kept` are the value.
    Fixed {
        values: &'a [u8],
        width: usize,
        kept: usize,
    },
    Text(&'a arrow::array::StringArray),
    Bytes(&'a arrow::array::BinaryArray),
    List {
        offsets: &'a [i32],
        values: Box<Encoded<'a>>,
    },
    Struct(Vec<Encoded<'a>>),
    Null,
}

struct Encoded<'a> {
    nulls: Option<NullBuffer>,
    column: Column<'a>,
}

/// Turns rows of some columns into keys.
pub(crate) struct KeyEncoder<'a> {
    columns: Vec<Encoded<'a>>,
    width: KeyWidth,
    /// Scratch, kept between rows.
    bytes: Vec<u8>,
}

impl<'a> KeyEncoder<'a> {
    /// For the columns of a key, which are never NULL.
    pub(crate) fn of_key(columns: &'a [ArrayRef]) -> Result<Self> {
        let width = KeyWidth::of(columns.iter().map(|column| column.data_type()));
        Self::new(columns, width)
    }

    /// For whole rows.
    pub(crate) fn of_row(columns: &'a [ArrayRef]) -> Result<Self> {
        Self::new(columns, KeyWidth::Hashed)
    }

    fn new(columns: &'a [ArrayRef], width: KeyWidth) -> Result<Self> {
        let columns = columns.iter().map(Encoded::new).collect::<Result<_>>()?;
        Ok(Self {
            columns,
            width,
            bytes: Vec::new(),
        })
    }

    /// Whether a column of the row is NULL.
    pub(crate) fn has_null(&self, row: usize) -> bool {
        self.columns.iter().any(|column| column.is_null(row))
    }

    /// The keys of the first `rows` rows, which have no NULL.
    pub(crate) fn keys(&mut self, rows: usize, keys: &mut Vec<Key>) {
        keys.clear();
        let exact = self.width != KeyWidth::Hashed
            && self
                .columns
                .iter()
                .all(|column| matches!(column.column, Column::Fixed { .. }));
        if !exact {
            keys.extend((0..rows).map(|row| self.key(row)));
            return;
        }
        // Column by column: nothing is decided row by row.
        keys.resize(rows, 0);
        let mut shift = 0;
        for column in &self.columns {
            if let Column::Fixed {
                values,
                width,
                kept,
            } = column.column
            {
                add_column(keys, values, (width, kept), shift);
                shift += 8 * kept;
            }
        }
    }

    pub(crate) fn key(&mut self, row: usize) -> Key {
        self.bytes.clear();
        if self.width == KeyWidth::Hashed {
            for column in &self.columns {
                column.append(row, &mut self.bytes);
            }
            return xxh3_128(&self.bytes);
        }
        for column in &self.columns {
            column.append_value(row, &mut self.bytes);
        }
        let mut exact = [0; 16];
        for (to, from) in exact.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        Key::from_le_bytes(exact)
    }
}

impl<'a> Encoded<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self> {
        let column = match array.data_type() {
            DataType::Null => Column::Null,
            DataType::Boolean => Column::Boolean(array.as_boolean()),
            DataType::Int8 => fixed(array.as_primitive::<Int8Type>().values(), 1),
            DataType::Int16 => fixed(array.as_primitive::<Int16Type>().values(), 2),
            DataType::Int32 => fixed(array.as_primitive::<Int32Type>().values(), 4),
            DataType::Int64 => fixed(array.as_primitive::<Int64Type>().values(), 8),
            DataType::Date32 => fixed(array.as_primitive::<Date32Type>().values(), 4),
            DataType::Float32 => fixed(array.as_primitive::<Float32Type>().values(), 4),
            DataType::Float64 => fixed(array.as_primitive::<Float64Type>().values(), 8),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                fixed(array.as_primitive::<TimestampMicrosecondType>().values(), 8)
            }
            DataType::Decimal128(precision, _) => {
                let kept = if *precision <= 18 { 8 } else { 16 };
                fixed(array.as_primitive::<Decimal128Type>().values(), kept)
            }
            DataType::Utf8 => Column::Text(array.as_string()),
            DataType::Binary => Column::Bytes(array.as_binary()),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let values = Box::new(Self::new(list.values())?);
                Column::List {
                    offsets: list.value_offsets(),
                    values,
                }
            }
            DataType::Map(..) => {
                let map = array.as_map();
                let fields = map.entries().columns().iter().map(Self::new);
                let entries = Self {
                    nulls: None,
                    column: Column::Struct(fields.collect::<Result<_>>()?),
                };
                Column::List {
                    offsets: map.value_offsets(),
                    values: Box::new(entries),
                }
            }
            DataType::Struct(_) => {
                let fields = array.as_struct().columns().iter().map(Self::new);
                Column::Struct(fields.collect::<Result<_>>()?)
            }
            other => {
                return Err(Error::bug(format!(
                    "rows with a column of type {other} have no key"
                )));
            }
        };
        Ok(Self {
            nulls: array.nulls().cloned(),
            column,
        })
    }

    fn is_null(&self, row: usize) -> bool {
        matches!(self.column, Column::Null)
            || self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Appends the value so that no two different rows give the same bytes.
    fn append(&self, row: usize, bytes: &mut Vec<u8>) {
        let present = !self.is_null(row);
        bytes.push(u8::from(present));
        if present {
            self.append_value(row, bytes);
        }
    }

    fn append_value(&self, row: usize, bytes: &mut Vec<u8>) {
        match &self.column {
            Column::Null => {}
            Column::Boolean(array) => bytes.push(u8::from(array.value(row))),
            Column::Fixed {
                values,
                width,
                kept,
            } => {
                let start = row * width;
                bytes.extend_from_slice(values.get(start..start + kept).unwrap_or_default());
            }
            Column::Text(array) => append_sized(array.value(row).as_bytes(), bytes),
            Column::Bytes(array) => append_sized(array.value(row), bytes),
            Column::List { offsets, values } => {
                let end = |at: usize| offsets.get(at).map_or(0, |offset| offset.as_usize());
                let (start, end) = (end(row), end(row + 1));
                bytes.extend_from_slice(&(end.saturating_sub(start) as u64).to_le_bytes());
                for item in start..end {
                    values.append(item, bytes);
                }
            }
            Column::Struct(fields) => {
                for field in fields {
                    field.append(row, bytes);
                }
            }
        }
    }
}

/// Adds the first `kept` bytes of each of `values`, `width` bytes wide, to the keys.
fn add_column(keys: &mut [Key], values: &[u8], (width, kept): (usize, usize), shift: usize) {
    fn each<const WIDTH: usize, const KEPT: usize>(keys: &mut [Key], values: &[u8], shift: usize) {
        for (key, value) in keys.iter_mut().zip(values.as_chunks::<WIDTH>().0) {
            let mut bytes = [0; 16];
            if let (Some(to), Some(from)) = (bytes.get_mut(..KEPT), value.get(..KEPT)) {
                to.copy_from_slice(from);
            }
            *key |= Key::from_le_bytes(bytes) << shift;
        }
    }
    match (width, kept) {
        (1, _) => each::<1, 1>(keys, values, shift),
        (2, _) => each::<2, 2>(keys, values, shift),
        (4, _) => each::<4, 4>(keys, values, shift),
        (8, _) => each::<8, 8>(keys, values, shift),
        (16, 8) => each::<16, 8>(keys, values, shift),
        _ => each::<16, 16>(keys, values, shift),
    }
}

fn append_sized(value: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(value);
}

fn fixed<T: ArrowNativeType>(values: &arrow::buffer::ScalarBuffer<T>, kept: usize) -> Column<'_> {
    Column::Fixed {
        values: values.inner().as_slice(),
        width: size_of::<T>(),
        kept,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use std::sync::Arc;

    use arrow::array::{
        Decimal128Array, Int32Array, Int64Array, ListArray, StringArray, StructArray,
    };
    use arrow::datatypes::{Field, Fields};

    use super::*;

    fn keys(columns: &[ArrayRef]) -> Vec<Key> {
        let mut encoder = KeyEncoder::of_key(columns).unwrap();
        let one_by_one: Vec<Key> = (0..columns[0].len()).map(|row| encoder.key(row)).collect();
        let mut all = Vec::new();
        encoder.keys(columns[0].len(), &mut all);
        assert_eq!(all, one_by_one);
        all
    }

    #[test]
    fn short_keys_are_exact() {
        let width = |types: &[DataType]| KeyWidth::of(types.iter());
        assert_eq!(width(&[DataType::Int64]), KeyWidth::Narrow);
        assert_eq!(width(&[DataType::Int32, DataType::Int32]), KeyWidth::Narrow);
        assert_eq!(width(&[DataType::Int64, DataType::Boolean]), KeyWidth::Wide);
        assert_eq!(width(&[DataType::Decimal128(38, 2)]), KeyWidth::Wide);
        assert_eq!(width(&[DataType::Utf8]), KeyWidth::Hashed);
        assert_eq!(
            width(&[DataType::Decimal128(38, 2), DataType::Int8]),
            KeyWidth::Hashed
        );

        let one: ArrayRef = Arc::new(Int32Array::from(vec![1, -1]));
        let two: ArrayRef = Arc::new(Int32Array::from(vec![2, 0]));
        assert_eq!(keys(&[one, two]), vec![0x2_0000_0001, 0xFFFF_FFFF]);
        let decimals: ArrayRef = Arc::new(
            Decimal128Array::from(vec![-1, 5])
                .with_precision_and_scale(18, 0)
                .unwrap(),
        );
        assert_eq!(keys(&[decimals]), vec![u128::from(u64::MAX), 5]);
    }

    #[test]
    fn neighbours_do_not_run_together() {
        let column =
            |values: [&str; 2]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
        let keys = keys(&[column(["ab", "a"]), column(["c", "bc"])]);
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn slices_encode_like_the_whole() {
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
            Some(vec![Some(1), None]),
        ]));
        let longs: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None, None, Some(7)]));
        let structs: ArrayRef = Arc::new(StructArray::new(
            Fields::from(vec![Field::new("a", DataType::Int64, true)]),
            vec![Arc::clone(&longs)],
            None,
        ));
        let rows = |columns: &[ArrayRef]| -> Vec<Key> {
            let mut encoder = KeyEncoder::of_row(columns).unwrap();
            (0..columns[0].len()).map(|row| encoder.key(row)).collect()
        };
        let whole = [lists, longs, structs];
        let all = rows(&whole);
        assert_eq!(all[0], all[3]);
        assert_ne!(all[1], all[2], "a null list is not an empty one");
        let sliced = whole.each_ref().map(|column| column.slice(2, 2));
        assert_eq!(rows(&sliced), all[2..]);
    }
}
