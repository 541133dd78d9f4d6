//! One table's changes, decoded column by column into Arrow builders.

use std::sync::Arc;

use alluvium_change::{
    ChangeBatch, Error, Identity, Lsn, OldImages, Op, Result, TableSchema, Unchanged, code,
};
use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};

use super::assembler::{Relation, Transaction};
use crate::catalog::SourceTable;
use crate::copy::{invalid_value, shown};
use crate::pgoutput::{TupleData, TupleValue};
use crate::tuples;
use crate::type_map::ColumnPlan;
use crate::value::ColumnBuilder;

/// How a Relation message differs from the table as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShapeChange {
    /// The relation has columns that the table, as known, has not.
    Added(Vec<String>),
    /// A column is gone, was renamed, or has another type: what, for people.
    Incompatible(String),
}

/// Decodes one table's tuples. Columns are matched by name, so that a relation from before an
/// `ADD COLUMN` and one from after it both fit the newest schema.
pub struct TableDecoder {
    table: Arc<SourceTable>,
    /// For each column of the relation, its place in the schema; `None` when left out.
    place_of: Vec<Option<usize>>,
    /// Schema columns that the relation lacks, with the value such rows show in the source.
    absent: Vec<(usize, Option<Vec<u8>>)>,
    new: Vec<ColumnBuilder>,
    old: Vec<ColumnBuilder>,
    old_rows: u32,
    old_row_of: Vec<Option<u32>>,
    ops: Vec<Op>,
    commit_lsn: Vec<Lsn>,
    event_serial: Vec<u64>,
    xid: Vec<u32>,
    commit_time_micros: Vec<i64>,
    unchanged: Vec<Unchanged>,
}

impl TableDecoder {
    /// A decoder for tuples of `relation`.
    ///
    /// # Errors
    /// What must change before the relation's tuples can be decoded.
    pub fn new(table: Arc<SourceTable>, relation: &Relation) -> Result<Self, ShapeChange> {
        let (place_of, absent) = match_columns(&table, relation)?;
        let builders = || table.plans.iter().map(ColumnPlan::builder).collect();
        Ok(Self {
            new: builders(),
            old: builders(),
            place_of,
            absent,
            old_rows: 0,
            old_row_of: Vec::new(),
            ops: Vec::new(),
            commit_lsn: Vec::new(),
            event_serial: Vec::new(),
            xid: Vec::new(),
            commit_time_micros: Vec::new(),
            unchanged: Vec::new(),
            table,
        })
    }

    #[must_use]
    pub fn table(&self) -> &Arc<SourceTable> {
        &self.table
    }

    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.ops.len()
    }

    /// Memory held by the rows not yet taken, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        const FIXED_BYTES_PER_ROW: usize = 48;
        let columns = self
            .new
            .iter()
            .chain(&self.old)
            .map(ColumnBuilder::memory_bytes);
        columns.sum::<usize>() + self.ops.len() * FIXED_BYTES_PER_ROW
    }

    /// Adds one event. `new` is the new image (of a delete: what the identity sent), `old` the old
    /// image of an update; a truncate has neither.
    ///
    /// # Errors
    /// A value that its column cannot hold, under the policy `error`. The batch is then of no use.
    pub fn push(
        &mut self,
        op: Op,
        transaction: &Transaction,
        serial: u64,
        new: Option<&TupleData<'_>>,
        old: Option<&TupleData<'_>>,
    ) -> Result<()> {
        let row = u32::try_from(self.ops.len())
            .map_err(|_| Error::bug("a batch of changes grew beyond 2^32 rows"))?;
        match new {
            Some(tuple) => self.push_image(
                tuple,
                Image::New {
                    row,
                    whole: op != Op::Delete,
                },
            )?,
            None => self.new.iter_mut().for_each(ColumnBuilder::append_null),
        }
        let old_row = match old {
            Some(tuple) => {
                self.push_image(tuple, Image::Old)?;
                self.old_rows += 1;
                Some(self.old_rows - 1)
            }
            None => None,
        };
        self.old_row_of.push(old_row);
        self.ops.push(op);
        self.commit_lsn.push(transaction.commit_lsn);
        self.event_serial.push(serial);
        self.xid.push(transaction.xid);
        self.commit_time_micros.push(transaction.commit_time_micros);
        Ok(())
    }

    fn push_image(&mut self, tuple: &TupleData<'_>, image: Image) -> Result<()> {
        let builders = if matches!(image, Image::Old) {
            &mut self.old
        } else {
            &mut self.new
        };
        let mut places = self.place_of.iter();
        let first_unchanged = self.unchanged.len();
        for value in tuple {
            let Some(place) = places.next() else {
                return Err(self.protocol("a tuple has more columns than its relation"));
            };
            let Some(place) = *place else { continue };
            let Some(builder) = builders.get_mut(place) else {
                return Err(Error::bug("a column has no builder"));
            };
            let appended = match value {
                TupleValue::Null => {
                    builder.append_null();
                    Ok(())
                }
                TupleValue::Unchanged => {
                    builder.append_null();
                    if let Image::New { row, .. } = image {
                        let column = u32::try_from(place).unwrap_or(u32::MAX);
                        self.unchanged.push(Unchanged { row, column });
                    }
                    Ok(())
                }
                TupleValue::Text(text) => builder.append_text(text),
                TupleValue::Binary(bytes) => {
                    let plan = self.table.plans.get(place);
                    if !plan.is_some_and(ColumnPlan::reads_binary_tuples) {
                        return Err(tuples::not_read(&self.table, place));
                    }
                    builder.append_binary(bytes)
                }
            };
            appended.map_err(|invalid| {
                let row = row_name(&self.table, tuple, &self.place_of);
                invalid_value(&self.table, place, &row, &invalid)
            })?;
        }
        if places.next().is_some() {
            return Err(self.protocol("a tuple has fewer columns than its relation"));
        }
        self.unchanged[first_unchanged..].sort_unstable();
        let fill = !matches!(image, Image::New { whole: false, .. });
        for (place, missing) in &self.absent {
            let Some(builder) = builders.get_mut(*place) else {
                continue;
            };
            match missing {
                Some(text) if fill => builder
                    .append_text(text)
                    .map_err(|invalid| invalid_value(&self.table, *place, "", &invalid))?,
                _ => builder.append_null(),
            }
        }
        Ok(())
    }

    fn protocol(&self, what: &str) -> Error {
        Error::new(&code::PG_PROTOCOL, what)
            .with_detail(format!("table \"{}\"", self.table.schema.id))
    }

    /// The rows since the last call, as one batch; `None` when there are none.
    ///
    /// # Errors
    /// Arrow refuses the columns: a bug.
    pub fn take(&mut self) -> Result<Option<ChangeBatch>> {
        if self.ops.is_empty() {
            return Ok(None);
        }
        let schema = &self.table.schema;
        let rows = finish(schema, &mut self.new, self.ops.len())?;
        let row_of = std::mem::take(&mut self.old_row_of);
        let old_count = std::mem::take(&mut self.old_rows) as usize;
        let old = if old_count == 0 {
            None
        } else {
            Some(OldImages {
                row_of,
                rows: finish(schema, &mut self.old, old_count)?,
            })
        };
        Ok(Some(ChangeBatch {
            table: Arc::clone(schema),
            ops: std::mem::take(&mut self.ops),
            commit_lsn: std::mem::take(&mut self.commit_lsn),
            event_serial: std::mem::take(&mut self.event_serial),
            xid: std::mem::take(&mut self.xid),
            commit_time_micros: std::mem::take(&mut self.commit_time_micros),
            rows,
            old,
            unchanged: std::mem::take(&mut self.unchanged),
        }))
    }
}

#[derive(Clone, Copy)]
enum Image {
    New { row: u32, whole: bool },
    Old,
}

type Matched = (Vec<Option<usize>>, Vec<(usize, Option<Vec<u8>>)>);

fn match_columns(table: &SourceTable, relation: &Relation) -> Result<Matched, ShapeChange> {
    let mut place_of = Vec::with_capacity(relation.columns.len());
    let mut added = Vec::new();
    for column in &relation.columns {
        let attribute = table.attributes.iter().find(|a| a.name == column.name);
        match attribute {
            None => added.push(column.name.clone()),
            Some(attribute)
                if attribute.type_oid != column.type_oid || attribute.typmod != column.typmod =>
            {
                return Err(ShapeChange::Incompatible(format!(
                    "column \"{}\" has another type than the lake",
                    column.name
                )));
            }
            Some(_) => {}
        }
        place_of.push(
            table
                .schema
                .columns
                .iter()
                .position(|c| c.name == column.name),
        );
    }
    if !added.is_empty() {
        return Err(ShapeChange::Added(added));
    }
    let mut absent = Vec::new();
    for (place, column) in table.schema.columns.iter().enumerate() {
        if relation.columns.iter().any(|c| c.name == column.name) {
            continue;
        }
        // The catalog is ahead of the stream: these rows were written before the column was
        // added, and show its missing value ever since.
        let attribute = table.attributes.iter().find(|a| a.name == column.name);
        let missing = attribute
            .and_then(|a| a.missing_value.clone())
            .map(String::into_bytes);
        absent.push((place, missing));
    }
    Ok((place_of, absent))
}

fn finish(
    schema: &TableSchema,
    builders: &mut [ColumnBuilder],
    rows: usize,
) -> Result<RecordBatch> {
    // A row that failed half-way left some columns one value longer.
    let finish = |builder: &mut ColumnBuilder| Ok(builder.finish()?.slice(0, rows));
    let columns: Vec<ArrayRef> = builders.iter_mut().map(finish).collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema.arrow()), columns, &options)
        .map_err(|error| Error::bug("decoded columns do not form a batch").with_source(error))
}

/// The row's key for people, `(7, a)`; empty without one.
fn row_name(table: &SourceTable, tuple: &TupleData<'_>, place_of: &[Option<usize>]) -> String {
    let Identity::Key(key) = &table.schema.identity else {
        return String::new();
    };
    let text = |place: &usize| {
        let mut values = tuple.iter().zip(place_of);
        match values.find(|(_, at)| at.as_ref() == Some(place))? {
            (TupleValue::Text(text), _) => Some(String::from_utf8_lossy(text).into_owned()),
            (TupleValue::Binary(bytes), _) => {
                let plan = table.plans.get(*place)?;
                plan.reads_binary_tuples().then(|| shown(plan, bytes))?
            }
            _ => None,
        }
    };
    let texts: Vec<String> = key
        .iter()
        .map(|place| text(place).unwrap_or_else(|| "?".to_owned()))
        .collect();
    format!("({})", texts.join(", "))
}
