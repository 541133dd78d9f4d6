//! Rows as a PostgreSQL client reads them: which type a column is told to have, and each value in that
//! type's text or binary form.
//!
//! Beside [`crate::output`], for the wire. The forms are those of PostgreSQL's own output and send
//! functions (`src/backend/utils/adt`). Invariant: a value arrives exactly, or the row is an error.

mod binary;
mod canonical;
mod kind;
mod number;
mod text;

use alluvium_change::{Error, Result, code};
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::Schema;
use bytes::{BufMut as _, BytesMut};

pub use kind::{Kind, SOURCE_TYPE_KEY, kind_of};

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Binary,
}

/// Writes one value that is not NULL.
type Write<'a> = Box<dyn Fn(usize, &mut BytesMut) -> Result<()> + Send + 'a>;

/// For values that cannot be none of their type.
fn always<'a>(write: impl Fn(usize, &mut BytesMut) + Send + 'a) -> Write<'a> {
    Box::new(move |row, out| {
        write(row, out);
        Ok(())
    })
}

/// What rows are written as.
#[derive(Debug, Clone)]
pub struct RowFormat {
    /// By column, with its form.
    columns: Vec<(Kind, Format)>,
    zone: Option<Zone>,
}

/// The time zone in which instants are shown as text; UTC without one.
pub type Zone = arrow::array::timezone::Tz;

impl RowFormat {
    /// `format` says how the column of a number is written.
    #[must_use]
    pub fn new(schema: &Schema, format: impl Fn(usize) -> Format, zone: Option<Zone>) -> Self {
        let fields = schema.fields().iter().enumerate();
        let columns = fields.map(|(nth, field)| (kind_of(field), format(nth)));
        Self {
            columns: columns.collect(),
            zone,
        }
    }

    /// Hands each row of `batch` to `take`, as it stands in a `DataRow` after the number of columns.
    ///
    /// # Errors
    /// `SQL`: a value is none of the column's type.
    pub fn rows(&self, batch: &RecordBatch, mut take: impl FnMut(BytesMut)) -> Result<()> {
        let canonical: Vec<ArrayRef> = batch
            .columns()
            .iter()
            .map(canonical::array)
            .collect::<Result<_>>()?;
        let columns: Vec<Column<'_>> = canonical
            .iter()
            .zip(&self.columns)
            .map(|(array, (kind, format))| Column::new(array, kind, *format, self.zone))
            .collect::<Result<_>>()?;
        // Rows share it.
        let mut out = BytesMut::new();
        for row in 0..batch.num_rows() {
            for column in &columns {
                column.write(row, &mut out)?;
            }
            take(out.split());
        }
        Ok(())
    }
}

/// The values of one column of a batch.
struct Column<'a> {
    nulls: Option<NullBuffer>,
    write: Write<'a>,
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef, kind: &Kind, format: Format, zone: Option<Zone>) -> Result<Self> {
        match format {
            Format::Text => Ok(Self {
                nulls: array.logical_nulls(),
                write: text::writer(array, kind, zone)?,
            }),
            Format::Binary => Self::binary(array, kind),
        }
    }

    fn binary(array: &'a ArrayRef, kind: &Kind) -> Result<Self> {
        Ok(Self {
            nulls: array.logical_nulls(),
            write: binary::writer(array, kind)?,
        })
    }

    fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// With its length before it; -1 for a NULL.
    fn write(&self, row: usize, out: &mut BytesMut) -> Result<()> {
        let start = out.len();
        out.put_i32(-1);
        if self.is_null(row) {
            return Ok(());
        }
        (self.write)(row, out)?;
        let length = i32::try_from(out.len() - start - 4)
            .map_err(|_| Error::new(&code::SQL, "a value is longer than a client can be sent"))?;
        if let Some(place) = out.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }
}

/// A value that is none of the type its column is told to have.
fn no_value(kind: &str, text: &str) -> Error {
    Error::new(&code::SQL, format!("\"{text}\" is no value of type {kind}"))
        .with_hint("cast the column to text in the query")
}
