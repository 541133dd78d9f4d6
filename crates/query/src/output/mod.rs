//! Batches of rows as text: a box for people, JSON, NDJSON or CSV for machines.
//!
//! The last step of a query; knows Arrow only. Streaming: memory is bounded by one batch, the
//! first [`table::SAMPLE_ROWS`] rows of a box, and the longest cell. Invariant: machine formats
//! carry every value exactly.
//!
//! | value | table, csv | json, ndjson |
//! |---|---|---|
//! | NULL | `NULL` (table), nothing (csv) | `null` |
//! | integer, decimal | digits | number with the same digits, also beyond 2^53 |
//! | float | shortest digits that read back the same; `NaN`, `Infinity`, `-Infinity` | number; the three as strings |
//! | text | as it is; table: control characters escaped, long text cut | string |
//! | binary | `\x` and hexadecimal digits | the same as a string |
//! | timestamp with zone | `2024-02-29T12:00:00.5Z`, always UTC | the same as a string |
//! | timestamp, date, time | ISO-8601 without zone | the same as a string |
//! | interval, duration | ISO-8601, `P1Y2M3DT4H` | the same as a string |
//! | list, struct, map | JSON | nested JSON |
//!
//! CSV tells the empty string (`""`) from NULL (nothing), as PostgreSQL does. In a table the text
//! `NULL` is shown in quotes. Columns with equal names are `name`, `name_2`, … in JSON.

mod cell;
mod lines;
mod table;
pub(crate) mod time;

pub(crate) use cell::Cells;

use std::io::{self, Write};

use alluvium_change::{Error, Result, code};
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::{Stream, StreamExt};

/// How to write rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// An aligned box, for people.
    #[default]
    Table,
    /// One array of objects.
    Json,
    /// One object per line.
    Ndjson,
    /// RFC 4180 with a header line.
    Csv,
}

/// Format and what only the box needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub format: Format,
    /// Cells of a box longer than this many columns of the screen are cut.
    pub max_cell_width: usize,
    /// Whether the box may use terminal colours (NULL is dimmed).
    pub color: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: Format::Table,
            max_cell_width: 60,
            color: false,
        }
    }
}

impl Options {
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            ..Self::default()
        }
    }
}

/// What stopped a row from being written.
enum Failure {
    Write(io::Error),
    Value(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Value(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Value(error) => error,
            Failure::Write(error) => Self::new(&code::OUTPUT, "the result could not be written")
                .with_detail(error.to_string())
                .with_source(error),
        }
    }
}

/// One output format at work.
trait Layout: Send {
    fn batch(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> Result<(), Failure>;
    fn finish(&mut self, rows: u64, out: &mut dyn Write) -> Result<(), Failure>;
}

/// Writes batches of one schema to `out`, as they come.
pub struct Printer<'out> {
    layout: Box<dyn Layout>,
    out: &'out mut dyn Write,
    rows: u64,
}

impl<'out> Printer<'out> {
    #[must_use]
    pub fn new(schema: &Schema, options: &Options, out: &'out mut dyn Write) -> Self {
        let layout: Box<dyn Layout> = match options.format {
            Format::Table => Box::new(table::Table::new(schema, options)),
            Format::Json => Box::new(lines::Json::new(schema, true)),
            Format::Ndjson => Box::new(lines::Json::new(schema, false)),
            Format::Csv => Box::new(lines::Csv::new(schema)),
        };
        Self {
            layout,
            out,
            rows: 0,
        }
    }

    fn push(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        self.layout.batch(batch, self.out)?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn end(&mut self) -> Result<u64, Failure> {
        self.layout.finish(self.rows, self.out)?;
        self.out.flush()?;
        Ok(self.rows)
    }

    /// Writes the rows of `batch`, which has the printer's schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        Ok(self.push(batch)?)
    }

    /// Writes what closes the output; returns the number of rows.
    pub fn finish(mut self) -> Result<u64> {
        Ok(self.end()?)
    }
}

/// How printing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Printed {
    /// Rows written, or handed on before the reader went away.
    pub rows: u64,
    /// The reader closed its end (`| head`): no error, but nothing more was written.
    pub reader_gone: bool,
}

/// Writes a whole stream of batches with `schema` to `out`.
pub async fn print<S>(
    schema: &SchemaRef,
    mut batches: S,
    options: &Options,
    out: &mut dyn Write,
) -> Result<Printed>
where
    S: Stream<Item = Result<RecordBatch>> + Unpin,
{
    let mut printer = Printer::new(schema, options, out);
    while let Some(batch) = batches.next().await {
        if let Err(failure) = printer.push(&batch?) {
            return reader_gone(failure, printer.rows);
        }
    }
    match printer.end() {
        Ok(rows) => Ok(Printed {
            rows,
            reader_gone: false,
        }),
        Err(failure) => reader_gone(failure, printer.rows),
    }
}

fn reader_gone(failure: Failure, rows: u64) -> Result<Printed> {
    match failure {
        Failure::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Printed {
            rows,
            reader_gone: true,
        }),
        other => Err(other.into()),
    }
}

#[cfg(test)]
mod tests;
