//! Rows of a file in the order of some columns, so that readers who ask for a range pass over the rest of it.

use std::sync::Arc;

use alluvium_change::{Error, Identity, Result, TableSchema, code};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::ClusterBy;

/// By which a table says how the rows of its files are ordered: a JSON list of columns, or nothing.
pub(crate) const CLUSTER_PROPERTY: &str = "alluvium.cluster_by";

/// The columns that order the rows of each file that is written anew. NULL comes first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Clustering {
    columns: Vec<String>,
}

/// What turns rows into keys that compare as bytes, and the places of the columns they are made of.
pub(crate) type SortKeys = (RowConverter, Vec<usize>);

impl Clustering {
    /// As asked for, of a table with these columns; none when nothing is.
    ///
    /// # Errors
    /// `CONFIG_VALUE`: the table has no such column or no key, or values of a type that has no order.
    pub(crate) fn wanted(
        by: &ClusterBy,
        table: &TableSchema,
        columns: &Schema,
    ) -> Result<Option<Arc<Self>>> {
        let refused = |what: String, hint: &str| {
            let what = format!("cluster_by of table \"{}\" {what}", table.id);
            Err(Error::new(&code::CONFIG_VALUE, what).with_hint(hint))
        };
        let names: Vec<String> = match by {
            ClusterBy::Nothing => return Ok(None),
            ClusterBy::Columns(names) => names.clone(),
            ClusterBy::Key if matches!(table.identity, Identity::Key(_)) => {
                table.key_names().into_iter().map(str::to_owned).collect()
            }
            ClusterBy::Key => {
                return refused(
                    "is \"key\", and the table has none".to_owned(),
                    "name columns: cluster_by = [\"created_at\"]",
                );
            }
        };
        for name in &names {
            let Ok(field) = columns.field_with_name(name) else {
                let hint = "name columns that silver has";
                return refused(format!("names \"{name}\", which is no column of it"), hint);
            };
            if !RowConverter::supports_fields(&[SortField::new(field.data_type().clone())]) {
                let hint = "name other columns";
                return refused(
                    format!("names \"{name}\", whose values have no order"),
                    hint,
                );
            }
        }
        Ok((!names.is_empty()).then(|| Arc::new(Self { columns: names })))
    }

    /// As the table's property says; none where it names a column that is not there.
    pub(crate) fn of_property(property: &str, table: &Schema) -> Option<Arc<Self>> {
        let columns: Vec<String> = serde_json::from_str(property).ok()?;
        let has_all = columns.iter().all(|name| table.index_of(name).is_ok());
        (has_all && !columns.is_empty()).then(|| Arc::new(Self { columns }))
    }

    pub(crate) fn property(&self) -> String {
        json!(self.columns).to_string()
    }

    /// Stands in the names of files that are in this order.
    pub(crate) fn tag(&self) -> u32 {
        // The lower half of a hash is one, too.
        #[allow(clippy::cast_possible_truncation, reason = "a shorter hash is wanted")]
        let tag = xxh3_64(self.property().as_bytes()) as u32;
        tag
    }

    /// For rows with these columns.
    pub(crate) fn keys(&self, columns: &SchemaRef) -> Result<SortKeys> {
        let unordered = |e| Error::bug("columns have no order").with_source(e);
        let places = self.columns.iter().map(|name| columns.index_of(name));
        let places: std::result::Result<Vec<usize>, _> = places.collect();
        let places = places.map_err(unordered)?;
        let fields = places.iter().map(|at| columns.field(*at));
        let fields = fields.map(|field| SortField::new(field.data_type().clone()));
        let converter = RowConverter::new(fields.collect()).map_err(unordered)?;
        Ok((converter, places))
    }
}
