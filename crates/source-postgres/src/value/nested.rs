//! Columns that hold other columns: arrays, composites, maps, points, vectors; ranges are in
//! [`super::range`].
//!
//! Each reads one literal at a time. A literal that fails halfway is cut back out of all children.

use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, MapArray, NullBufferBuilder, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Fields, Float32Type, Float64Type};
use arrow::error::ArrowError;

use super::column::{Bytes, Fixed, Offsets};
use super::decoder::{
    composite_fields, element_field, map_entries_field, map_fields, point_fields,
};
use super::literal::{Cursor, Field, Quoting, array_depth};
use super::node::{Node, append_utf8, finish_fixed};
use super::{Decoder, Kind, OnInvalid, number};

const OTHER_DEPTH: Kind = "array with another number of dimensions than its column";
const OTHER_FIELDS: Kind = "composite with other fields than its type had";
const MALFORMED_ARRAY: Kind = "malformed array";
const MALFORMED_COMPOSITE: Kind = "malformed composite";
const MALFORMED_HSTORE: Kind = "malformed hstore";
const MALFORMED_POINT: Kind = "malformed point";
const MALFORMED_VECTOR: Kind = "malformed vector";

/// An array of a fixed number of dimensions, as lists within lists.
#[derive(Debug)]
pub(crate) struct ArrayColumn {
    /// The outermost dimension first, at least one. Only it has NULLs.
    levels: Vec<Offsets>,
    validity: NullBufferBuilder,
    element: Node,
    delimiter: u8,
    element_type: DataType,
    scratch: Vec<u8>,
}

impl ArrayColumn {
    pub(crate) fn new(dimensions: usize, delimiter: u8, element: &Decoder) -> Self {
        Self {
            levels: (0..dimensions.max(1)).map(|_| Offsets::new()).collect(),
            validity: NullBufferBuilder::new(0),
            element: Node::new(element),
            delimiter,
            element_type: element.data_type(),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.levels.first().map_or(0, Offsets::len)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let offsets: usize = self.levels.iter().map(Offsets::memory_bytes).sum();
        offsets + self.validity.allocated_size() + self.element.memory_bytes()
    }

    pub(crate) fn push_null(&mut self) {
        if let Some(outer) = self.levels.first_mut() {
            outer.push_empty();
        }
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.validity.truncate(len);
        let mut keep = len;
        for level in &mut self.levels {
            level.truncate(keep);
            keep = level.end();
        }
        self.element.truncate(keep);
    }

    pub(crate) fn append_text(&mut self, text: &[u8], on_invalid: OnInvalid) -> Result<(), Kind> {
        let mut literal = Cursor(text);
        if literal.peek() == Some(b'[') {
            // Bounds that do not start at 1: `[0:1]={...}`.
            literal.until(|byte| byte == b'=');
            literal.eat(b'=');
        }
        let depth = array_depth(literal.0).ok_or(MALFORMED_ARRAY)?;
        if depth != 0 && depth != self.levels.len() {
            if on_invalid != OnInvalid::Null {
                return Err(OTHER_DEPTH);
            }
            self.push_null();
            return Ok(());
        }
        let before = self.len();
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = if depth == 0 {
            self.close(0)
        } else {
            self.read(literal, on_invalid, &mut scratch)
        };
        self.scratch = scratch;
        if result.is_err() {
            self.truncate(before);
        } else {
            self.validity.append_non_null();
        }
        result
    }

    /// Reads a literal that is not empty.
    fn read(
        &mut self,
        mut literal: Cursor<'_>,
        on_invalid: OnInvalid,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Kind> {
        let mut depth = 0;
        let mut after_item = false;
        loop {
            let next = literal.peek().ok_or(MALFORMED_ARRAY)?;
            if next == b'}' && after_item {
                literal.next_byte();
                depth -= 1;
                self.close(depth)?;
                if depth == 0 {
                    return if literal.is_at_end() {
                        Ok(())
                    } else {
                        Err(MALFORMED_ARRAY)
                    };
                }
            } else if next == self.delimiter && after_item && depth > 0 {
                literal.next_byte();
                after_item = false;
            } else if next == b'{' && !after_item && depth < self.levels.len() {
                literal.next_byte();
                depth += 1;
            } else if !after_item && depth == self.levels.len() {
                self.read_item(&mut literal, on_invalid, scratch)?;
                after_item = true;
            } else {
                return Err(MALFORMED_ARRAY);
            }
        }
    }

    fn read_item(
        &mut self,
        literal: &mut Cursor<'_>,
        on_invalid: OnInvalid,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Kind> {
        if literal.eat(b'"') {
            let item = literal
                .quoted(Quoting::Backslash, scratch)
                .ok_or(MALFORMED_ARRAY)?;
            return self.element.append_text(item, on_invalid);
        }
        let delimiter = self.delimiter;
        let bare = |byte| byte == delimiter || matches!(byte, b'{' | b'}' | b'"' | b'\\');
        match literal.until(bare) {
            b"" => Err(MALFORMED_ARRAY),
            b"NULL" => {
                self.element.append_null();
                Ok(())
            }
            item => self.element.append_text(item, on_invalid),
        }
    }

    /// Ends a list of the level `level`: what its children have grown to belongs to it.
    fn close(&mut self, level: usize) -> Result<(), Kind> {
        let end = self
            .levels
            .get(level + 1)
            .map_or_else(|| self.element.len(), Offsets::len);
        self.levels.get_mut(level).ok_or(MALFORMED_ARRAY)?.push(end)
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let mut values = self.element.finish()?;
        let mut item_type = self.element_type.clone();
        let innermost_first: Vec<OffsetBuffer<i32>> =
            self.levels.iter_mut().rev().map(Offsets::take).collect();
        let outermost = innermost_first.len().saturating_sub(1);
        for (place, offsets) in innermost_first.into_iter().enumerate() {
            let validity = if place == outermost {
                self.validity.finish()
            } else {
                None
            };
            let field = element_field(item_type);
            item_type = DataType::List(Arc::clone(&field));
            values = Arc::new(ListArray::try_new(field, offsets, values, validity)?);
        }
        Ok(values)
    }
}

/// A composite type.
#[derive(Debug)]
pub(crate) struct CompositeColumn {
    fields: Fields,
    columns: Vec<Node>,
    validity: NullBufferBuilder,
    scratch: Vec<u8>,
}

impl CompositeColumn {
    pub(crate) fn new(fields: &[(String, Decoder)]) -> Self {
        Self {
            fields: composite_fields(fields),
            columns: fields.iter().map(|(_, field)| Node::new(field)).collect(),
            validity: NullBufferBuilder::new(0),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.validity.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(Node::memory_bytes).sum();
        columns + self.validity.allocated_size()
    }

    pub(crate) fn push_null(&mut self) {
        for column in &mut self.columns {
            column.append_null();
        }
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        for column in &mut self.columns {
            column.truncate(len);
        }
        self.validity.truncate(len);
    }

    pub(crate) fn append_text(&mut self, text: &[u8], on_invalid: OnInvalid) -> Result<(), Kind> {
        let before = self.len();
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.read(Cursor(text), on_invalid, &mut scratch);
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
        mut literal: Cursor<'_>,
        on_invalid: OnInvalid,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Kind> {
        if !literal.eat(b'(') {
            return Err(MALFORMED_COMPOSITE);
        }
        for (place, column) in self.columns.iter_mut().enumerate() {
            if place > 0 && !literal.eat(b',') {
                return Err(OTHER_FIELDS);
            }
            let field = literal.field(|byte| matches!(byte, b',' | b')' | b'('), scratch);
            match field.ok_or(MALFORMED_COMPOSITE)? {
                Field::Absent => column.append_null(),
                Field::Value(value) => column.append_text(value, on_invalid)?,
            }
        }
        match literal.0 {
            b")" => Ok(()),
            [b',', ..] => Err(OTHER_FIELDS),
            _ => Err(MALFORMED_COMPOSITE),
        }
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let columns = self
            .columns
            .iter_mut()
            .map(Node::finish)
            .collect::<Result<Vec<_>, _>>()?;
        let validity = self.validity.finish();
        Ok(Arc::new(StructArray::try_new(
            self.fields.clone(),
            columns,
            validity,
        )?))
    }
}

/// An hstore: a map of texts.
#[derive(Debug)]
pub(crate) struct MapColumn {
    offsets: Offsets,
    validity: NullBufferBuilder,
    keys: Bytes,
    values: Bytes,
    scratch: Vec<u8>,
}

impl MapColumn {
    pub(crate) fn new() -> Self {
        Self {
            offsets: Offsets::new(),
            validity: NullBufferBuilder::new(0),
            keys: Bytes::new(),
            values: Bytes::new(),
            scratch: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.offsets.memory_bytes()
            + self.validity.allocated_size()
            + self.keys.memory_bytes()
            + self.values.memory_bytes()
    }

    pub(crate) fn push_null(&mut self) {
        self.offsets.push_empty();
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len);
        self.validity.truncate(len);
        self.keys.truncate(self.offsets.end());
        self.values.truncate(self.offsets.end());
    }

    pub(crate) fn append_text(&mut self, text: &[u8], on_invalid: OnInvalid) -> Result<(), Kind> {
        let before = self.len();
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self
            .read(Cursor(text), on_invalid, &mut scratch)
            .and_then(|()| self.offsets.push(self.values.len()));
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
        mut literal: Cursor<'_>,
        on_invalid: OnInvalid,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Kind> {
        // A key cannot be NULL.
        let on_invalid_key = if on_invalid == OnInvalid::Null {
            OnInvalid::Error
        } else {
            on_invalid
        };
        if literal.is_at_end() {
            return Ok(());
        }
        loop {
            if !literal.eat(b'"') {
                return Err(MALFORMED_HSTORE);
            }
            let key = literal
                .quoted(Quoting::Backslash, scratch)
                .ok_or(MALFORMED_HSTORE)?;
            append_utf8(&mut self.keys, key, on_invalid_key)?;
            if !literal.eat_word(b"=>") {
                return Err(MALFORMED_HSTORE);
            }
            if literal.eat(b'"') {
                let value = literal
                    .quoted(Quoting::Backslash, scratch)
                    .ok_or(MALFORMED_HSTORE)?;
                append_utf8(&mut self.values, value, on_invalid)?;
            } else if literal.eat_word(b"NULL") {
                self.values.push_null();
            } else {
                return Err(MALFORMED_HSTORE);
            }
            if literal.is_at_end() {
                return Ok(());
            }
            if !literal.eat_word(b", ") {
                return Err(MALFORMED_HSTORE);
            }
        }
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let columns = vec![self.keys.finish_text()?, self.values.finish_text()?];
        let entries = StructArray::try_new(map_fields(), columns, None)?;
        let (offsets, validity) = (self.offsets.take(), self.validity.finish());
        let array = MapArray::try_new(map_entries_field(), offsets, entries, validity, false)?;
        Ok(Arc::new(array))
    }
}

/// A point of the plane.
#[derive(Debug)]
pub(crate) struct PointColumn {
    x: Fixed<f64>,
    y: Fixed<f64>,
    validity: NullBufferBuilder,
}

impl PointColumn {
    pub(crate) fn new() -> Self {
        Self {
            x: Fixed::new(),
            y: Fixed::new(),
            validity: NullBufferBuilder::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.validity.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.x.memory_bytes() + self.y.memory_bytes() + self.validity.allocated_size()
    }

    pub(crate) fn push_null(&mut self) {
        self.x.push_null();
        self.y.push_null();
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.x.truncate(len);
        self.y.truncate(len);
        self.validity.truncate(len);
    }

    /// `(x,y)`.
    pub(crate) fn append_text(&mut self, text: &[u8]) -> Result<(), Kind> {
        let (x, y) = read_point(text).ok_or(MALFORMED_POINT)?;
        self.x.push(x);
        self.y.push(y);
        self.validity.append_non_null();
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let columns = vec![
            finish_fixed::<Float64Type>(&mut self.x)?,
            finish_fixed::<Float64Type>(&mut self.y)?,
        ];
        let validity = self.validity.finish();
        Ok(Arc::new(StructArray::try_new(
            point_fields(),
            columns,
            validity,
        )?))
    }
}

fn read_point(text: &[u8]) -> Option<(f64, f64)> {
    let mut literal = Cursor(text.strip_prefix(b"(")?.strip_suffix(b")")?);
    let x = number::float(literal.until(|byte| byte == b','))?;
    literal.next_byte()?;
    Some((x, number::float(literal.0)?))
}

/// A vector or halfvec of pgvector.
#[derive(Debug)]
pub(crate) struct VectorColumn {
    offsets: Offsets,
    validity: NullBufferBuilder,
    elements: Fixed<f32>,
}

impl VectorColumn {
    pub(crate) fn new() -> Self {
        Self {
            offsets: Offsets::new(),
            validity: NullBufferBuilder::new(0),
            elements: Fixed::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.offsets.memory_bytes() + self.validity.allocated_size() + self.elements.memory_bytes()
    }

    pub(crate) fn push_null(&mut self) {
        self.offsets.push_empty();
        self.validity.append_null();
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len);
        self.validity.truncate(len);
        self.elements.truncate(self.offsets.end());
    }

    /// `[1,2.5,3]`.
    pub(crate) fn append_text(&mut self, text: &[u8]) -> Result<(), Kind> {
        let result = self
            .read(text)
            .and_then(|()| self.offsets.push(self.elements.len()));
        if result.is_err() {
            self.elements.truncate(self.offsets.end());
        } else {
            self.validity.append_non_null();
        }
        result
    }

    fn read(&mut self, text: &[u8]) -> Result<(), Kind> {
        let inner = text
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_suffix(b"]"));
        let inner = inner.ok_or(MALFORMED_VECTOR)?;
        if inner.is_empty() {
            return Ok(());
        }
        for item in inner.split(|&byte| byte == b',') {
            self.elements
                .push(number::float(item).ok_or(MALFORMED_VECTOR)?);
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let elements = finish_fixed::<Float32Type>(&mut self.elements)?;
        let (offsets, validity) = (self.offsets.take(), self.validity.finish());
        let field = element_field(DataType::Float32);
        Ok(Arc::new(ListArray::try_new(
            field, offsets, elements, validity,
        )?))
    }
}
