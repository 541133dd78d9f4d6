//! Columns of ranges and multiranges.
//!
//! As in [`super::nested`], a literal that fails halfway is cut back out of all children.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, NullBufferBuilder, StructArray};
use arrow::datatypes::{DataType, Fields};
use arrow::error::ArrowError;

use super::column::{Bits, Offsets};
use super::decoder::{element_field, range_fields};
use super::literal::{Cursor, Field};
use super::node::Node;
use super::{Decoder, Kind, OnInvalid};

const MALFORMED_RANGE: Kind = "malformed range";
const MALFORMED_MULTIRANGE: Kind = "malformed multirange";

/// A range: its bounds, whether they belong to it, whether it is empty.
#[derive(Debug)]
pub(crate) struct RangeColumn {
    fields: Fields,
    lower: Node,
    upper: Node,
    lower_inc: Bits,
    upper_inc: Bits,
    empty: Bits,
    validity: NullBufferBuilder,
    scratch: Vec<u8>,
}

impl RangeColumn {
    pub(crate) fn new(bound: &Decoder) -> Self {
        Self {
            fields: range_fields(bound),
            lower: Node::new(bound),
            upper: Node::new(bound),
            lower_inc: Bits::new(),
            upper_inc: Bits::new(),
            empty: Bits::new(),
            validity: NullBufferBuilder::new(0),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.validity.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.lower.memory_bytes()
            + self.upper.memory_bytes()
            + self.lower_inc.memory_bytes()
            + self.upper_inc.memory_bytes()
            + self.empty.memory_bytes()
            + self.validity.allocated_size()
    }

    pub(crate) fn push_null(&mut self) {
        self.lower.append_null();
        self.upper.append_null();
        self.lower_inc.push_null();
        self.upper_inc.push_null();
        self.empty.push_null();
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.lower.truncate(len);
        self.upper.truncate(len);
        self.lower_inc.truncate(len);
        self.upper_inc.truncate(len);
        self.empty.truncate(len);
        self.validity.truncate(len);
    }

    pub(crate) fn append_text(&mut self, text: &[u8], on_invalid: OnInvalid) -> Result<(), Kind> {
        let before = self.len();
        let mut literal = Cursor(text);
        self.append_from(&mut literal, on_invalid)?;
        if !literal.is_at_end() {
            self.truncate(before);
            return Err(MALFORMED_RANGE);
        }
        Ok(())
    }

    /// Reads one range from the front of `literal`.
    fn append_from(&mut self, literal: &mut Cursor<'_>, on_invalid: OnInvalid) -> Result<(), Kind> {
        let before = self.len();
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.read(literal, on_invalid, &mut scratch);
        self.scratch = scratch;
        if result.is_err() {
            self.truncate(before);
        } else {
            self.validity.append_non_null();
        }
        result
    }

    fn read(
        &mut self,
        literal: &mut Cursor<'_>,
        on_invalid: OnInvalid,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Kind> {
        if literal.eat_word(b"empty") {
            self.lower.append_null();
            self.upper.append_null();
            self.lower_inc.push(false);
            self.upper_inc.push(false);
            self.empty.push(true);
            return Ok(());
        }
        let lower_inc = match literal.next_byte() {
            Some(b'[') => true,
            Some(b'(') => false,
            _ => return Err(MALFORMED_RANGE),
        };
        let stop = |byte| matches!(byte, b',' | b'(' | b')' | b'[' | b']');
        match literal.field(stop, scratch).ok_or(MALFORMED_RANGE)? {
            Field::Absent => self.lower.append_null(),
            Field::Value(value) => self.lower.append_text(value, on_invalid)?,
        }
        if !literal.eat(b',') {
            return Err(MALFORMED_RANGE);
        }
        match literal.field(stop, scratch).ok_or(MALFORMED_RANGE)? {
            Field::Absent => self.upper.append_null(),
            Field::Value(value) => self.upper.append_text(value, on_invalid)?,
        }
        let upper_inc = match literal.next_byte() {
            Some(b']') => true,
            Some(b')') => false,
            _ => return Err(MALFORMED_RANGE),
        };
        self.lower_inc.push(lower_inc);
        self.upper_inc.push(upper_inc);
        self.empty.push(false);
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let columns = vec![
            self.lower.finish()?,
            self.upper.finish()?,
            self.lower_inc.finish(),
            self.upper_inc.finish(),
            self.empty.finish(),
        ];
        let validity = self.validity.finish();
        Ok(Arc::new(StructArray::try_new(
            self.fields.clone(),
            columns,
            validity,
        )?))
    }
}

/// A multirange: a list of ranges.
#[derive(Debug)]
pub(crate) struct MultirangeColumn {
    offsets: Offsets,
    validity: NullBufferBuilder,
    ranges: RangeColumn,
}

impl MultirangeColumn {
    pub(crate) fn new(bound: &Decoder) -> Self {
        Self {
            offsets: Offsets::new(),
            validity: NullBufferBuilder::new(0),
            ranges: RangeColumn::new(bound),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.offsets.memory_bytes() + self.validity.allocated_size() + self.ranges.memory_bytes()
    }

    pub(crate) fn push_null(&mut self) {
        self.offsets.push_empty();
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len);
        self.validity.truncate(len);
        self.ranges.truncate(self.offsets.end());
    }

    pub(crate) fn append_text(&mut self, text: &[u8], on_invalid: OnInvalid) -> Result<(), Kind> {
        let result = self
            .read(Cursor(text), on_invalid)
            .and_then(|()| self.offsets.push(self.ranges.len()));
        if result.is_err() {
            self.ranges.truncate(self.offsets.end());
        } else {
            self.validity.append_non_null();
        }
        result
    }

    fn read(&mut self, mut literal: Cursor<'_>, on_invalid: OnInvalid) -> Result<(), Kind> {
        if literal.0 == b"{}" {
            return Ok(());
        }
        if !literal.eat(b'{') {
            return Err(MALFORMED_MULTIRANGE);
        }
        loop {
            self.ranges.append_from(&mut literal, on_invalid)?;
            match literal.next_byte() {
                Some(b',') => {}
                Some(b'}') if literal.is_at_end() => return Ok(()),
                _ => return Err(MALFORMED_MULTIRANGE),
            }
        }
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let field = element_field(DataType::Struct(self.ranges.fields.clone()));
        let ranges = self.ranges.finish()?;
        let (offsets, validity) = (self.offsets.take(), self.validity.finish());
        Ok(Arc::new(ListArray::try_new(
            field, offsets, ranges, validity,
        )?))
    }
}
