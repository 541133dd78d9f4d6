//! Rows in another order, in bounded memory: parts are sorted, put aside in files, and merged.
//!
//! Rows of which the keys are equal stay in the order in which they came.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alluvium_change::{Error, Result};
use arrow::array::{ArrayRef, AsArray as _, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, interleave_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::row::Rows;

use super::cluster::SortKeys;
use crate::fs::io_error;

/// Most rows that come out at once.
const BATCH_ROWS: usize = 8192;
/// Memory of one sorted part while parts are merged, about.
const BLOCK_BYTES: usize = 1 << 20;

/// Takes rows, in batches of one schema.
pub(crate) struct Sorter {
    /// Where parts are put aside, in files without names.
    dir: PathBuf,
    keys: SortKeys,
    /// Of rows, each with its number: how many came before it.
    schema: SchemaRef,
    most_bytes: usize,
    held: Vec<RecordBatch>,
    held_bytes: usize,
    rows: u32,
    aside: Vec<File>,
}

/// Rows that come out, and the number of each: how many came in before it.
pub(crate) type Numbered = (RecordBatch, Vec<u32>);

/// All rows in their order.
pub(crate) enum Sorted {
    InMemory { part: RecordBatch, from: usize },
    Merged(Merge),
}

/// Sorted parts that become one.
pub(crate) struct Merge {
    dir: PathBuf,
    keys: SortKeys,
    parts: Vec<Part>,
    /// The next key of each part that has one, the least on top.
    heads: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

struct Part {
    reader: StreamReader<BufReader<File>>,
    block: RecordBatch,
    keys: Rows,
    /// The next row of the block.
    at: usize,
}

impl Sorter {
    /// Holds rows of so many bytes in memory, and for a moment twice as many.
    pub(crate) fn new(dir: &Path, columns: &SchemaRef, keys: SortKeys, most_bytes: usize) -> Self {
        let number = Field::new("number", DataType::UInt32, false);
        let fields = columns.fields().iter().cloned().chain([Arc::new(number)]);
        Self {
            dir: dir.to_owned(),
            keys,
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            most_bytes,
            held: Vec::new(),
            held_bytes: 0,
            rows: 0,
            aside: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, rows: &RecordBatch) -> Result<()> {
        let too_many = || Error::bug("a file of more than 2^32 rows is to be sorted");
        let count = u32::try_from(rows.num_rows()).map_err(|_| too_many())?;
        let end = self.rows.checked_add(count).ok_or_else(too_many)?;
        let numbers: ArrayRef = Arc::new(UInt32Array::from_iter_values(self.rows..end));
        let columns = rows.columns().iter().cloned().chain([numbers]).collect();
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(unsorted)?;
        self.held_bytes += rows.get_array_memory_size();
        self.held.push(rows);
        self.rows = end;
        if self.held_bytes > self.most_bytes {
            self.put_aside()?;
        }
        Ok(())
    }

    /// What is held, in order.
    fn sort_held(&mut self) -> Result<RecordBatch> {
        let part = concat_batches(&self.schema, &self.held).map_err(unsorted)?;
        self.held.clear();
        self.held_bytes = 0;
        let keys = keys_of(&self.keys, &part)?;
        let rows = u32::try_from(part.num_rows()).unwrap_or(u32::MAX);
        let mut order: Vec<u32> = (0..rows).collect();
        order.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
        drop(keys);
        take_record_batch(&part, &UInt32Array::from(order)).map_err(unsorted)
    }

    fn put_aside(&mut self) -> Result<()> {
        let part = self.sort_held()?;
        let bytes = part.get_array_memory_size().max(1);
        let block_rows = (part.num_rows() * BLOCK_BYTES / bytes).clamp(1, BATCH_ROWS);
        let file = tempfile::tempfile_in(&self.dir);
        let file = file.map_err(|e| io_error("create a file in", &self.dir, e))?;
        let written = StreamWriter::try_new(BufWriter::new(file), &self.schema).and_then(
            |mut writer| -> std::result::Result<File, ArrowError> {
                for from in (0..part.num_rows()).step_by(block_rows) {
                    let count = block_rows.min(part.num_rows() - from);
                    writer.write(&part.slice(from, count))?;
                }
                let file = writer.into_inner()?.into_inner();
                let mut file = file.map_err(|e| ArrowError::from(e.into_error()))?;
                file.seek(SeekFrom::Start(0))?;
                Ok(file)
            },
        );
        self.aside
            .push(written.map_err(|e| aside_error(&self.dir, e))?);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Sorted> {
        if self.aside.is_empty() {
            let part = self.sort_held()?;
            return Ok(Sorted::InMemory { part, from: 0 });
        }
        if !self.held.is_empty() {
            self.put_aside()?;
        }
        let mut merge = Merge {
            dir: self.dir,
            keys: self.keys,
            parts: Vec::new(),
            heads: BinaryHeap::new(),
        };
        for (number, file) in self.aside.into_iter().enumerate() {
            let reader = StreamReader::try_new(BufReader::new(file), None);
            let mut part = Part {
                reader: reader.map_err(|e| aside_error(&merge.dir, e))?,
                block: RecordBatch::new_empty(Arc::clone(&self.schema)),
                keys: merge.keys.0.empty_rows(0, 0),
                at: 0,
            };
            if part.refill(&merge.keys, &merge.dir)? {
                let head = part.head().to_vec();
                merge.heads.push(Reverse((head, number)));
            }
            merge.parts.push(part);
        }
        Ok(Sorted::Merged(merge))
    }
}

impl Part {
    /// The key of the next row, of which there must be one.
    fn head(&self) -> &[u8] {
        self.keys.row(self.at).data()
    }

    /// Reads the next block. False: there is none.
    fn refill(&mut self, keys: &SortKeys, dir: &Path) -> Result<bool> {
        let Some(block) = self.reader.next() else {
            return Ok(false);
        };
        self.block = block.map_err(|e| aside_error(dir, e))?;
        self.keys = keys_of(keys, &self.block)?;
        self.at = 0;
        Ok(true)
    }
}

impl Merge {
    /// The next rows, none at the end.
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut chosen: Vec<(usize, usize)> = Vec::with_capacity(BATCH_ROWS);
        let mut ended = None;
        while chosen.len() < BATCH_ROWS
            && ended.is_none()
            && let Some(mut head) = self.heads.peek_mut()
        {
            let Reverse((key, number)) = &mut *head;
            let Some(part) = self.parts.get_mut(*number) else {
                return Err(Error::bug("a sorted part is missing"));
            };
            chosen.push((*number, part.at));
            part.at += 1;
            if part.at < part.block.num_rows() {
                key.clear();
                key.extend_from_slice(part.head());
            } else {
                ended = Some(*number);
                PeekMut::pop(head);
            }
        }
        if chosen.is_empty() {
            return Ok(None);
        }
        let blocks: Vec<&RecordBatch> = self.parts.iter().map(|part| &part.block).collect();
        let rows = interleave_record_batch(&blocks, &chosen).map_err(unsorted)?;
        if let Some(number) = ended
            && let Some(part) = self.parts.get_mut(number)
            && part.refill(&self.keys, &self.dir)?
        {
            self.heads.push(Reverse((part.head().to_vec(), number)));
        }
        Ok(Some(rows))
    }
}

impl Sorted {
    fn next_rows(&mut self) -> Result<Option<RecordBatch>> {
        match self {
            Self::InMemory { part, from } => {
                let count = BATCH_ROWS.min(part.num_rows() - *from);
                let rows = part.slice(*from, count);
                *from += count;
                Ok((count > 0).then_some(rows))
            }
            Self::Merged(merge) => merge.next(),
        }
    }
}

impl Iterator for Sorted {
    type Item = Result<Numbered>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.next_rows().transpose()?;
        Some(rows.map(|mut rows| {
            let numbers = rows.remove_column(rows.num_columns() - 1);
            let numbers = numbers.as_primitive::<UInt32Type>().values().to_vec();
            (rows, numbers)
        }))
    }
}

fn keys_of((converter, columns): &SortKeys, rows: &RecordBatch) -> Result<Rows> {
    let columns: Vec<ArrayRef> = columns
        .iter()
        .map(|at| Arc::clone(rows.column(*at)))
        .collect();
    converter.convert_columns(&columns).map_err(unsorted)
}

fn unsorted(error: ArrowError) -> Error {
    Error::bug("rows could not be sorted").with_source(error)
}

/// An error of a part that was put aside.
fn aside_error(dir: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, source) => {
            io_error("write or read rows to be sorted in", dir, source)
        }
        error => unsorted(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use arrow::array::{Int64Array, StringArray};
    use arrow::row::{RowConverter, SortField};
    use proptest::prelude::*;

    use super::*;

    type Row = (Option<i64>, String);

    fn batch(rows: &[Row]) -> RecordBatch {
        let ints: Int64Array = rows.iter().map(|row| row.0).collect();
        let texts = StringArray::from_iter_values(rows.iter().map(|row| &row.1));
        let (ints, texts): (ArrayRef, ArrayRef) = (Arc::new(ints), Arc::new(texts));
        let columns = [("text", texts, true), ("int", ints, true)];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    proptest! {
        #[test]
        fn rows_come_out_as_a_stable_sort_has_them(
            batches in prop::collection::vec(
                prop::collection::vec((prop::option::of(-3_i64..3), "[ab]{0,40}"), 0..30),
                0..20,
            ),
            most_bytes in prop_oneof![Just(1_usize), 1000_usize..20_000, Just(usize::MAX)],
        ) {
            let columns = batch(&[]).schema();
            let fields = vec![SortField::new(DataType::Int64), SortField::new(DataType::Utf8)];
            let keys = (RowConverter::new(fields).unwrap(), vec![1, 0]);
            let mut sorter = Sorter::new(&std::env::temp_dir(), &columns, keys, most_bytes);
            for rows in &batches {
                sorter.push(&batch(rows)).unwrap();
            }
            let mut model: Vec<(Row, u32)> = batches.into_iter().flatten().zip(0..).collect();
            model.sort();
            let mut at = 0;
            for sorted in sorter.finish().unwrap() {
                let (rows, numbers) = sorted.unwrap();
                let expected = &model[at..at + numbers.len()];
                let expected_rows: Vec<Row> = expected.iter().map(|(row, _)| row.clone()).collect();
                prop_assert_eq!(rows, batch(&expected_rows));
                prop_assert!(expected.iter().map(|(_, number)| number).eq(&numbers));
                at += numbers.len();
            }
            prop_assert_eq!(at, model.len());
        }
    }
}
