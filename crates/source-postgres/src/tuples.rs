//! In which form the stream sends values: as text, or in the binary form of each type.
//!
//! Stands before [`crate::replication`], which asks the server for it, and beside
//! [`crate::capture`], which reads both. pgoutput's `binary` is a choice for the whole stream, so one
//! column that is read as text only keeps all of them text.
//!
//! Invariant: a binary form that is not known exactly is never decoded, whatever was chosen here:
//! the decoder refuses it with [`not_read`], and the stream starts again as text.

use alluvium_change::{Error, Result, code};

use crate::catalog::SourceTable;
use crate::connect::server_error;
use crate::type_map::ColumnPlan;

/// The first version of the server that sends binary tuples.
const BINARY_VERSION: u32 = 140_000;
/// No function with this name and arguments: a type within another has no binary form.
const UNDEFINED_FUNCTION: &str = "42883";

/// What the project wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tuples {
    /// The quicker form that is exact.
    #[default]
    Auto,
    Text,
    /// Binary, or an error.
    Binary,
}

/// How a stream sends values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TupleForm {
    #[default]
    Text,
    /// Values of all types that have a binary form, in it.
    Binary,
}

impl TupleForm {
    /// For people, as in the project file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Binary => "binary",
        }
    }
}

/// A form, and why it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub form: TupleForm,
    pub why: String,
}

/// Chooses the form for a stream of `tables` from a server of `server_version` (150004 for 15.4).
///
/// # Errors
/// `PG_TUPLES` when binary tuples are wanted and cannot be.
pub fn choose<'a>(
    wanted: Tuples,
    server_version: u32,
    tables: impl IntoIterator<Item = &'a SourceTable>,
) -> Result<Choice> {
    let choice = |form, why: String| Ok(Choice { form, why });
    if wanted == Tuples::Text {
        return choice(TupleForm::Text, "chosen".to_owned());
    }
    let tables: Vec<&SourceTable> = tables.into_iter().collect();
    let obstacle = too_old(server_version).or_else(|| tables.iter().find_map(|t| obstacle(t)));
    match (wanted, obstacle) {
        (Tuples::Binary, Some(error)) => Err(error),
        (_, Some(error)) => choice(TupleForm::Text, error.message().to_owned()),
        (Tuples::Binary, None) => choice(TupleForm::Binary, "chosen".to_owned()),
        (_, None) => Ok(quicker(&tables)),
    }
}

/// Where both forms can be: the one that costs both sides less, by what each column's type does.
fn quicker(tables: &[&SourceTable]) -> Choice {
    let plans = tables.iter().flat_map(|table| &table.plans);
    let saved_ns: i64 = plans.map(ColumnPlan::binary_saves_ns).sum();
    if saved_ns > 0 {
        Choice {
            form: TupleForm::Binary,
            why: "quicker for these types".to_owned(),
        }
    } else {
        Choice {
            form: TupleForm::Text,
            why: "not slower for these types".to_owned(),
        }
    }
}

/// What keeps a server from sending binary tuples at all.
fn too_old(server_version: u32) -> Option<Error> {
    (server_version < BINARY_VERSION).then(|| {
        Error::new(
            &code::PG_TUPLES,
            format!(
                "PostgreSQL {} does not send binary tuples",
                server_version / 10_000
            ),
        )
        .with_detail("servers do from version 14 on")
    })
}

/// The first column of `table` that keeps it from binary tuples, as an error that names it.
#[must_use]
pub fn obstacle(table: &SourceTable) -> Option<Error> {
    let place = table
        .plans
        .iter()
        .position(|plan| !plan.reads_binary_tuples())?;
    Some(not_read(table, place))
}

/// The error for a column whose binary form is not read.
pub(crate) fn not_read(table: &SourceTable, place: usize) -> Error {
    let (name, source_type) = table
        .schema
        .columns
        .get(place)
        .map_or(("?", "?"), |column| {
            (column.name.as_str(), column.source_type.as_str())
        });
    let id = table.id();
    Error::new(
        &code::PG_TUPLES,
        format!("table \"{id}\", column \"{name}\": type {source_type} is read as text only"),
    )
    .with_detail("binary tuples are a choice for all columns of all tables at once")
    .with_hint(format!(
        "set tuples = \"auto\" in [source.<name>], or leave the column out: [tables.\"{id}\"] \
         exclude_columns = [\"{name}\"]"
    ))
}

/// An error of a stream in `form`: of a column whose type holds one without a binary form, the server
/// itself says so. It may be a column that is left out here.
pub(crate) fn server_refused(error: Error, form: TupleForm) -> Error {
    match server_error(&error) {
        Some(server) if form == TupleForm::Binary && server.sqlstate == UNDEFINED_FUNCTION => {
            let message = format!("the server cannot send binary tuples: {}", server.message);
            Error::new(&code::PG_TUPLES, message).with_source(error)
        }
        _ => error,
    }
}
