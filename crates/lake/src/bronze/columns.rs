//! The columns of a bronze table and the names ours have in it.

use alluvium_change::{Column, Error, Result, TableSchema};
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use crate::owned::free_name;

const OWN: [&str; 7] = [
    "_op",
    "_commit_lsn",
    "_event_serial",
    "_xid",
    "_commit_time",
    "_before",
    "_unchanged",
];
/// Of [`OWN`], those before the source's columns.
const LEADING: usize = 5;

/// The table's columns, ours by name.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) schema: SchemaRef,
    pub(super) op: String,
    pub(super) commit_lsn: String,
    pub(super) event_serial: String,
    pub(super) xid: String,
    pub(super) commit_time: String,
    pub(super) before: String,
    pub(super) unchanged: String,
}

impl Columns {
    /// Finds ours in an existing table: the first five, and by their types the two that follow the
    /// columns the table was made with.
    pub(super) fn of_table(schema: SchemaRef) -> Result<Self> {
        let foreign = || {
            Error::new(
                &alluvium_change::code::LAKE_FOREIGN,
                "a bronze table does not have the columns alluvium gives it",
            )
        };
        let leading = |at: usize| -> Result<String> {
            let field = schema.fields().get(at).ok_or_else(foreign)?;
            let base = OWN.get(at).ok_or_else(foreign)?;
            if is_own(field.name(), base) {
                Ok(field.name().clone())
            } else {
                Err(foreign())
            }
        };
        // Each follows the same rule of naming, so of several that fit it is the longest: the
        // shorter ones are the source's.
        let trailing = |base: &str| -> Result<String> {
            schema
                .fields()
                .iter()
                .skip(LEADING)
                .map(|field| field.name())
                .filter(|name| is_own(name, base))
                .max_by_key(|name| name.len())
                .cloned()
                .ok_or_else(foreign)
        };
        Ok(Self {
            op: leading(0)?,
            commit_lsn: leading(1)?,
            event_serial: leading(2)?,
            xid: leading(3)?,
            commit_time: leading(4)?,
            before: trailing("_before")?,
            unchanged: trailing("_unchanged")?,
            schema,
        })
    }

    fn own(&self) -> [&String; 7] {
        [
            &self.op,
            &self.commit_lsn,
            &self.event_serial,
            &self.xid,
            &self.commit_time,
            &self.before,
            &self.unchanged,
        ]
    }

    /// Rows of the table parted into the source's columns and ours.
    pub(super) fn split(&self, rows: &RecordBatch) -> Result<(RecordBatch, RecordBatch)> {
        let own = self.own();
        let (ours, sources): (Vec<usize>, Vec<usize>) =
            (0..rows.num_columns()).partition(|at| own.contains(&self.schema.field(*at).name()));
        let project = |columns: &[usize]| {
            rows.project(columns)
                .map_err(|e| Error::bug("rows lack a column of their table").with_source(e))
        };
        Ok((project(&sources)?, project(&ours)?))
    }

    /// The source's columns, in their order.
    pub(super) fn source_fields(&self) -> Vec<Field> {
        let own = self.own();
        self.schema
            .fields()
            .iter()
            .filter(|field| !own.contains(&field.name()))
            .map(|field| field.as_ref().clone())
            .collect()
    }
}

fn is_own(name: &str, base: &str) -> bool {
    name.strip_suffix(base)
        .is_some_and(|rest| rest.chars().all(|c| c == '_'))
}

/// Whether a column could be taken for one of ours.
pub(super) fn is_reserved(name: &str) -> bool {
    OWN.iter().any(|base| is_own(name, base))
}

/// The columns of a new bronze table.
pub(super) fn table_columns(schema: &TableSchema) -> Schema {
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let leading = [
        DataType::Utf8,
        DataType::Int64,
        DataType::Int64,
        DataType::Int64,
        time,
    ];
    let name = |base: &str| free_name(base, &schema.columns);
    let mut fields: Vec<Field> = OWN
        .iter()
        .zip(leading)
        .map(|(base, data_type)| Field::new(name(base), data_type, true))
        .collect();
    fields.extend(
        schema
            .arrow()
            .fields()
            .iter()
            .map(|field| field.as_ref().clone()),
    );
    fields.push(before_field(&name("_before"), schema));
    fields.push(Field::new(name("_unchanged"), unchanged_type(), true));
    Schema::new(fields)
}

/// The old image: a struct of the source's columns.
pub(super) fn before_field(name: &str, schema: &TableSchema) -> Field {
    Field::new(name, DataType::Struct(before_fields(&schema.columns)), true)
}

fn before_fields(columns: &[Column]) -> Fields {
    columns
        .iter()
        .map(|c| Field::new(&c.name, c.data_type.clone(), true))
        .collect()
}

pub(super) fn unchanged_type() -> DataType {
    DataType::List(Field::new("element", DataType::Utf8, true).into())
}
