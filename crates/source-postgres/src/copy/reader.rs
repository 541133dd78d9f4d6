//! The rows of one range, decoded as they come.
//!
//! A message of the server is nearly always one row, which is then decoded where it lies; only others
//! go through [`TupleCutter`].

use std::fmt;

use alluvium_change::{Error, Identity, Result};
use arrow::array::{RecordBatch, RecordBatchOptions};
use bytes::{Buf as _, Bytes};

use super::session::CopySession;
use super::tuple::{Fields, TupleCutter, damaged};
use super::{invalid_value, rights_hint, shown};
use crate::catalog::SourceTable;
use crate::connect::ServerError;
use crate::type_map::ColumnPlan;
use crate::value::ColumnBuilder;
use crate::wire::{HEADER_BYTES, first_message, protocol};

const MAX_BATCH_ROWS: usize = 1 << 20;

/// The rows of one range, as they come.
pub struct CopyReader<'a> {
    source: Source<'a>,
    doing: String,
    cutter: TupleCutter,
    rows: Rows,
    /// Nothing more comes.
    ended: bool,
}

enum Source<'a> {
    Session(&'a mut CopySession),
    Chunks(std::vec::IntoIter<Bytes>),
}

/// Rows on their way into columns.
struct Rows {
    builders: Vec<ColumnBuilder>,
    /// Of the row at hand.
    fields: Fields,
    table: SourceTable,
    max_batch_bytes: usize,
    batch_bytes: usize,
    batch_rows: usize,
    rows: u64,
    bytes: u64,
}

impl fmt::Debug for CopyReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyReader")
            .field("table", self.rows.table.id())
            .field("rows", &self.rows.rows)
            .finish_non_exhaustive()
    }
}

impl<'a> CopyReader<'a> {
    fn new(source: Source<'a>, table: &SourceTable, doing: String, max_batch_bytes: usize) -> Self {
        Self {
            source,
            doing,
            cutter: TupleCutter::default(),
            rows: Rows {
                builders: table.plans.iter().map(ColumnPlan::builder).collect(),
                fields: Vec::with_capacity(table.plans.len()),
                table: table.clone(),
                max_batch_bytes,
                batch_bytes: 0,
                batch_rows: 0,
                rows: 0,
                bytes: 0,
            },
            ended: false,
        }
    }

    pub(super) fn of_session(
        table: &SourceTable,
        session: &'a mut CopySession,
        doing: String,
        max_batch_bytes: usize,
    ) -> Self {
        Self::new(Source::Session(session), table, doing, max_batch_bytes)
    }

    /// Decodes what a `COPY` has sent before: for tests, and for `bench/harness`.
    #[doc(hidden)]
    #[must_use]
    pub fn of_chunks(
        table: &SourceTable,
        chunks: Vec<Bytes>,
        max_batch_bytes: usize,
    ) -> CopyReader<'static> {
        let source = Source::Chunks(chunks.into_iter());
        CopyReader::new(source, table, "decoding".to_owned(), max_batch_bytes)
    }

    /// Rows returned so far and those of the batch in hand.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.rows
    }

    /// Bytes of the tuples read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows.bytes
    }

    /// The next batch; `None` after the last. Safe to cancel.
    ///
    /// # Errors
    /// `VALUE` for a value its column cannot hold, `PG_CONNECTION_LOST`, `PG_PROTOCOL`.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if self.take_rows()? || (self.ended && self.rows.batch_rows > 0) {
                return self.rows.finish_batch().map(Some);
            }
            match &mut self.source {
                _ if self.ended && self.cutter.is_at_end() => return Ok(None),
                Source::Session(session) if !self.ended => {
                    session.wire.read(&self.doing).await?;
                }
                _ => return Err(damaged("no end")),
            }
        }
    }

    /// Takes in the rows that are here; whether a batch is full.
    fn take_rows(&mut self) -> Result<bool> {
        let (cutter, rows) = (&mut self.cutter, &mut self.rows);
        if rows.take_cut(cutter)? {
            return Ok(true);
        }
        let session = match &mut self.source {
            _ if self.ended => return Ok(false),
            Source::Session(session) => session,
            Source::Chunks(chunks) => {
                for chunk in chunks.by_ref() {
                    if rows.take(&chunk, cutter)? {
                        return Ok(true);
                    }
                }
                self.ended = true;
                return Ok(false);
            }
        };
        let received = &mut session.wire.received;
        // Messages are taken off the buffer together: one at a time would cost as much as the row.
        let mut taken = 0;
        let mut is_full = false;
        while !is_full
            && !self.ended
            && let Some((tag, body)) = first_message(received.get(taken..).unwrap_or_default())?
        {
            match tag {
                b'd' => is_full = rows.take(body, cutter)?,
                b'Z' => {
                    session.is_copying = false;
                    self.ended = true;
                }
                b'E' => {
                    let error = ServerError::from_fields(body).into_error(&self.doing);
                    return Err(rights_hint(error));
                }
                // The copy is done, the command is complete; notices, settings, notifications.
                b'c' | b'C' | b'N' | b'S' | b'A' => {}
                other => {
                    let what = format!("a message \"{}\" in a copy", char::from(other));
                    return Err(protocol(what));
                }
            }
            taken += HEADER_BYTES + body.len();
        }
        received.advance(taken);
        Ok(is_full)
    }
}

impl Rows {
    /// Takes in what one message holds; whether the batch is full.
    fn take(&mut self, chunk: &[u8], cutter: &mut TupleCutter) -> Result<bool> {
        if cutter.is_one_tuple(chunk, self.builders.len(), &mut self.fields)? {
            self.append(chunk)?;
            return Ok(self.is_full());
        }
        cutter.push(Bytes::copy_from_slice(chunk));
        self.take_cut(cutter)
    }

    /// Takes in the tuples the cutter has; whether the batch is full.
    fn take_cut(&mut self, cutter: &mut TupleCutter) -> Result<bool> {
        while let Some(tuple) = cutter.next(self.builders.len(), &mut self.fields)? {
            self.append(&tuple)?;
            if self.is_full() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_full(&self) -> bool {
        self.batch_bytes >= self.max_batch_bytes || self.batch_rows >= MAX_BATCH_ROWS
    }

    /// Appends the tuple that [`Self::fields`] are places in.
    fn append(&mut self, tuple: &[u8]) -> Result<()> {
        for (place, (builder, field)) in self.builders.iter_mut().zip(&self.fields).enumerate() {
            let value = field.as_ref().map(|range| tuple.get(range.clone()));
            let appended = match value {
                None => {
                    builder.append_null();
                    Ok(())
                }
                Some(Some(bytes)) => builder.append_copy(bytes),
                Some(None) => return Err(Error::bug("a field lies outside its tuple")),
            };
            if let Err(invalid) = appended {
                let row = row_name(&self.table, tuple, &self.fields);
                return Err(invalid_value(&self.table, place, &row, &invalid));
            }
        }
        self.batch_bytes += tuple.len();
        self.batch_rows += 1;
        self.rows += 1;
        self.bytes += u64::try_from(tuple.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn finish_batch(&mut self) -> Result<RecordBatch> {
        let arrays = self
            .builders
            .iter_mut()
            .map(ColumnBuilder::finish)
            .collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.batch_rows));
        (self.batch_bytes, self.batch_rows) = (0, 0);
        let schema = self.table.schema.arrow().clone();
        RecordBatch::try_new_with_options(schema, arrays, &options).map_err(|error| {
            Error::bug("copied columns do not fit their schema").with_source(error)
        })
    }
}

/// The key of a row for people, `(7, a)`; empty without a key.
fn row_name(table: &SourceTable, tuple: &[u8], fields: &Fields) -> String {
    let Identity::Key(key) = &table.schema.identity else {
        return String::new();
    };
    let text = |&place: &usize| {
        let bytes = fields
            .get(place)?
            .clone()
            .and_then(|range| tuple.get(range))?;
        shown(table.plans.get(place)?, bytes)
    };
    let texts: Vec<String> = key
        .iter()
        .map(|place| text(place).unwrap_or_else(|| "?".to_owned()))
        .collect();
    format!("({})", texts.join(", "))
}
