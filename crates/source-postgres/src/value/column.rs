//! Growing columns that can be cut back: Arrow's own builders cannot, and a nested value that
//! turns out to be malformed halfway must leave no trace.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, NullBufferBuilder, StringArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::error::ArrowError;

use super::Kind;

const TOO_MUCH: Kind = "more than 2 GiB in one column of a batch";

/// Values of a fixed width.
#[derive(Debug)]
pub(crate) struct Fixed<T> {
    pub(crate) values: Vec<T>,
    pub(crate) validity: NullBufferBuilder,
}

impl<T: Default> Fixed<T> {
    pub(crate) fn new() -> Self {
        Self {
            values: Vec::new(),
            validity: NullBufferBuilder::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    #[inline]
    pub(crate) fn push(&mut self, value: T) {
        self.values.push(value);
        self.validity.append_non_null();
    }

    #[inline]
    pub(crate) fn push_null(&mut self) {
        self.values.push(T::default());
        self.validity.append_null();
    }

    #[inline]
    pub(crate) fn push_option(&mut self, value: Option<T>) {
        match value {
            Some(value) => self.push(value),
            None => self.push_null(),
        }
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.validity.truncate(len);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.values.capacity() * size_of::<T>() + self.validity.allocated_size()
    }

    /// Values and validity; the column is empty afterwards.
    pub(crate) fn take(&mut self) -> (Vec<T>, Option<arrow::buffer::NullBuffer>) {
        (std::mem::take(&mut self.values), self.validity.finish())
    }
}

/// Booleans, as bits.
#[derive(Debug)]
pub(crate) struct Bits {
    values: BooleanBufferBuilder,
    validity: NullBufferBuilder,
}

impl Bits {
    pub(crate) fn new() -> Self {
        Self {
            values: BooleanBufferBuilder::new(0),
            validity: NullBufferBuilder::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    #[inline]
    pub(crate) fn push(&mut self, value: bool) {
        self.values.append(value);
        self.validity.append_non_null();
    }

    pub(crate) fn push_null(&mut self) {
        self.values.append(false);
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.values.truncate(len);
            self.validity.truncate(len);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.values.capacity() / 8 + self.validity.allocated_size()
    }

    pub(crate) fn finish(&mut self) -> ArrayRef {
        Arc::new(BooleanArray::new(
            self.values.finish(),
            self.validity.finish(),
        ))
    }
}

/// Ends of variable-length values: one offset more than values, the first is 0.
#[derive(Debug)]
pub(crate) struct Offsets(Vec<i32>);

impl Offsets {
    pub(crate) fn new() -> Self {
        Self(vec![0])
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Where the last value ends.
    pub(crate) fn end(&self) -> usize {
        self.0
            .last()
            .and_then(|&end| usize::try_from(end).ok())
            .unwrap_or(0)
    }

    /// Ends a value at `end`, which is not before the last one's.
    #[inline]
    pub(crate) fn push(&mut self, end: usize) -> Result<(), Kind> {
        debug_assert!(end >= self.end(), "offsets run backwards");
        self.0.push(i32::try_from(end).map_err(|_| TOO_MUCH)?);
        Ok(())
    }

    /// A value of no length.
    #[inline]
    pub(crate) fn push_empty(&mut self) {
        self.0.push(self.0.last().copied().unwrap_or(0));
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len + 1);
    }

    pub(crate) fn reserve(&mut self, rows: usize) {
        self.0.reserve(rows);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<i32>()
    }

    pub(crate) fn take(&mut self) -> OffsetBuffer<i32> {
        let offsets = std::mem::replace(&mut self.0, vec![0]);
        OffsetBuffer::new(ScalarBuffer::from(offsets))
    }
}

/// Values of varying length.
#[derive(Debug)]
pub(crate) struct Bytes {
    offsets: Offsets,
    /// May hold bytes behind the last offset while a value is being written.
    pub(crate) data: Vec<u8>,
    validity: NullBufferBuilder,
}

impl Bytes {
    pub(crate) fn new() -> Self {
        Self {
            offsets: Offsets::new(),
            data: Vec::new(),
            validity: NullBufferBuilder::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    #[inline]
    pub(crate) fn push(&mut self, value: &[u8]) -> Result<(), Kind> {
        self.data.extend_from_slice(value);
        self.end_value()
    }

    /// Makes what was written to `data` since the last value a value. On an error it is gone.
    #[inline]
    pub(crate) fn end_value(&mut self) -> Result<(), Kind> {
        if let Err(kind) = self.offsets.push(self.data.len()) {
            self.discard();
            return Err(kind);
        }
        self.validity.append_non_null();
        Ok(())
    }

    /// Takes back what was written to `data` since the last value.
    pub(crate) fn discard(&mut self) {
        self.data.truncate(self.offsets.end());
    }

    pub(crate) fn push_null(&mut self) {
        self.offsets.push_empty();
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len);
        self.data.truncate(self.offsets.end());
        self.validity.truncate(len);
    }

    pub(crate) fn reserve(&mut self, rows: usize) {
        self.offsets.reserve(rows);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.offsets.memory_bytes() + self.data.capacity() + self.validity.allocated_size()
    }

    pub(crate) fn finish_text(&mut self) -> Result<ArrayRef, ArrowError> {
        let data = Buffer::from_vec(std::mem::take(&mut self.data));
        let array = StringArray::try_new(self.offsets.take(), data, self.validity.finish())?;
        Ok(Arc::new(array))
    }

    pub(crate) fn finish_binary(&mut self) -> Result<ArrayRef, ArrowError> {
        let data = Buffer::from_vec(std::mem::take(&mut self.data));
        let array = BinaryArray::try_new(self.offsets.take(), data, self.validity.finish())?;
        Ok(Arc::new(array))
    }
}
