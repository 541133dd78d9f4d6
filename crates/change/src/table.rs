//! Tables: names, columns, what identifies a row.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::Serialize;

/// A table of the source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableId {
    pub schema: String,
    pub name: String,
}

impl TableId {
    #[must_use]
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// The table's directory in `silver/` and `bronze/`: its name when in schema `public`, else
    /// `<schema>__<table>`, each part encoded by [`encode_path_segment`].
    #[must_use]
    pub fn lake_name(&self) -> String {
        if self.schema == "public" {
            encode_path_segment(&self.name)
        } else {
            format!(
                "{}__{}",
                encode_path_segment(&self.schema),
                encode_path_segment(&self.name)
            )
        }
    }

    /// `"schema"."table"`, quoted for SQL.
    #[must_use]
    pub fn quoted(&self) -> String {
        let quote = |part: &str| format!("\"{}\"", part.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A name as a directory of the lake: bytes outside `[A-Za-z0-9_.-]`, and a leading `.` or `_`,
/// become `~XX`.
///
/// Not `%XX`: DuckDB and delta-rs decode `%` in a path and then do not find the table; a leading
/// `_` or `.` is hidden to Delta readers.
#[must_use]
pub fn encode_path_segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for (position, byte) in name.bytes().enumerate() {
        let special_first = position == 0 && matches!(byte, b'.' | b'_');
        if !special_first && (byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "~{byte:02X}");
        }
    }
    encoded
}

/// A column as the lake holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The Arrow type that decoding produces and Delta stores. Lists name their item `element`,
    /// maps their entries `key_value` with `key` and `value`, timestamps with zone are `UTC`.
    pub data_type: DataType,
    /// The source's own name of the type, `numeric(12,2)`: for people and error messages.
    pub source_type: String,
}

/// What identifies a row in change events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// These columns (places in [`TableSchema::columns`]) are unique and never NULL.
    Key(Vec<usize>),
    /// No key: the whole old row is sent, and equal rows are counted (`REPLICA IDENTITY FULL`).
    WholeRow,
    /// Nothing identifies a row: only inserts and truncates can be followed.
    AppendOnly,
}

/// One table's shape. Immutable: a changed table gets a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    pub id: TableId,
    /// PostgreSQL's `pg_class.oid` (of the root, for a partitioned table).
    pub relation_oid: u32,
    pub columns: Vec<Column>,
    pub identity: Identity,
    arrow: SchemaRef,
}

impl TableSchema {
    #[must_use]
    pub fn new(
        id: TableId,
        relation_oid: u32,
        columns: Vec<Column>,
        identity: Identity,
    ) -> Arc<Self> {
        let fields: Vec<Field> = columns
            .iter()
            .map(|column| Field::new(&column.name, column.data_type.clone(), true))
            .collect();
        let arrow = Arc::new(Schema::new(fields));
        Arc::new(Self {
            id,
            relation_oid,
            columns,
            identity,
            arrow,
        })
    }

    /// The source's columns as an Arrow schema, all nullable: a deleted row has only its identity.
    #[must_use]
    pub fn arrow(&self) -> &SchemaRef {
        &self.arrow
    }

    /// Names of the key columns; empty without a key.
    #[must_use]
    pub fn key_names(&self) -> Vec<&str> {
        let Identity::Key(key) = &self.identity else {
            return Vec::new();
        };
        key.iter()
            .filter_map(|&at| self.columns.get(at))
            .map(|c| c.name.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lake_names_follow_the_contract() {
        let name = |schema: &str, table: &str| TableId::new(schema, table).lake_name();
        assert_eq!(name("public", "orders"), "orders");
        assert_eq!(name("sales", "orders"), "sales__orders");
        assert_eq!(name("public", "_hidden"), "~5Fhidden");
        assert_eq!(name("public", ".dot"), "~2Edot");
        assert_eq!(name("public", "a b%c~"), "a~20b~25c~7E");
        assert_eq!(name("Größe", "ß"), "Gr~C3~B6~C3~9Fe__~C3~9F");
    }

    #[test]
    fn quoting_doubles_quotes() {
        assert_eq!(TableId::new("s", "a\"b").quoted(), "\"s\".\"a\"\"b\"");
    }
}
