//! Rows encoded for bronze apart from the table: on any thread, while its owner does something else.
//!
//! Encoding and compressing is most of what landing costs, and needs nothing of the table but its columns.

use std::sync::Arc;

use alluvium_change::{ChangeBatch, Lsn, Op, Result, TableSchema};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::columns::Columns;
use super::encode;
use crate::LakeSettings;
use crate::write::EncodedRows;

/// What encoding needs of a bronze table, as it was when it was asked for.
#[derive(Debug)]
pub struct BronzeEncoder {
    pub(super) schema: Arc<TableSchema>,
    pub(super) columns: Columns,
    pub(super) lake: LakeSettings,
}

/// Rows ready for [`super::Bronze::stage_ready`] of a table that has the same columns still.
#[derive(Debug)]
pub struct ReadyRows {
    pub(super) columns: SchemaRef,
    pub(super) rows: Ready,
}

#[derive(Debug)]
pub(super) enum Ready {
    /// Too few for a row group of their own.
    Plain(RecordBatch),
    Whole(Box<EncodedRows>),
    /// The source's columns, which silver may take over, and ours.
    Parted {
        of_source: Box<EncodedRows>,
        own: Box<EncodedRows>,
    },
}

impl BronzeEncoder {
    /// Whether so many rows are encoded as a row group of their own: of fewer, there is nothing to do
    /// before they are staged.
    #[must_use]
    pub fn encodes(&self, num_rows: usize) -> bool {
        num_rows >= self.lake.share_from_rows
    }

    /// Changes of the stream.
    ///
    /// # Errors
    /// `SCHEMA_CHANGED` when the table has other columns.
    pub fn changes(&self, batch: &ChangeBatch) -> Result<ReadyRows> {
        self.changes_from(batch, 0)
    }

    /// Without the first `start` changes, which the table has already.
    pub(super) fn changes_from(&self, batch: &ChangeBatch, start: usize) -> Result<ReadyRows> {
        let rows = encode::changes(batch, &self.schema, &self.columns)?;
        let rows = rows.slice(start, rows.num_rows() - start);
        let share = start == 0 && batch.ops.iter().all(|op| op.writes_row());
        self.ready(rows, share)
    }

    /// Rows of the initial copy.
    ///
    /// # Errors
    /// As [`Self::changes`].
    pub fn copied(
        &self,
        rows: &RecordBatch,
        snapshot: Lsn,
        copied_at_micros: i64,
    ) -> Result<ReadyRows> {
        let rows = encode::copied(
            rows,
            &self.schema,
            &self.columns,
            Op::Read,
            snapshot,
            copied_at_micros,
        )?;
        self.ready(rows, true)
    }

    /// The same for rows that a snapshot has not, of which only the key counts.
    pub(super) fn missing(
        &self,
        rows: &RecordBatch,
        snapshot: Lsn,
        at_micros: i64,
    ) -> Result<ReadyRows> {
        let (schema, columns) = (&self.schema, &self.columns);
        let rows = encode::copied(rows, schema, columns, Op::Delete, snapshot, at_micros)?;
        self.ready(rows, false)
    }

    /// Rows of the table. With `share`, the source's columns are of use to silver as well.
    pub(super) fn ready(&self, rows: RecordBatch, share: bool) -> Result<ReadyRows> {
        let rows = if !self.encodes(rows.num_rows()) {
            Ready::Plain(rows)
        } else if share {
            let (of_source, own) = self.columns.split(&rows)?;
            Ready::Parted {
                of_source: Box::new(EncodedRows::encode(&of_source, &self.lake)?),
                own: Box::new(EncodedRows::encode(&own, &self.lake)?),
            }
        } else {
            Ready::Whole(Box::new(EncodedRows::encode(&rows, &self.lake)?))
        };
        Ok(ReadyRows {
            columns: Arc::clone(&self.columns.schema),
            rows,
        })
    }
}
