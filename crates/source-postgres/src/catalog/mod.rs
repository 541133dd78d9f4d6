//! The source's tables as the server's catalogs describe them, and what Alluvium makes of each.
//!
//! Before the copy and the stream: both decode by the [`SourceTable`]s made here. A table that
//! cannot be followed is not left out: it carries the reason in [`SourceTable::refused`].

mod build;
mod identity;
mod rows;
mod sample;
mod selection;
mod types;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alluvium_change::{Code, Error, Result, TableId, TableSchema};
use tokio_postgres::Client;

use crate::type_map::ColumnPlan;

pub use sample::sample_table;
pub use selection::{ColumnChoice, TableOverride, TableSelection};

pub(crate) use rows::{get, server_version};

/// `money`.
const MONEY_OID: u32 = 790;
const MONEY_ARRAY_OID: u32 = 791;
/// The first version that scans a range of row positions without reading the whole table.
const TID_RANGE_SCAN_VERSION: i32 = 140_000;

/// A column as `pg_attribute` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    pub attnum: i16,
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
    pub not_null: bool,
    /// What rows older than the column show in it, as the type's text; `None` where NULL.
    pub missing_value: Option<String>,
    pub has_default: bool,
    pub is_identity: bool,
    pub is_generated: bool,
    /// `p` plain, `e` external, `m` main, `x` extended.
    pub storage: char,
    /// Its place in [`TableSchema::columns`]; `None` for a column left out.
    pub column: Option<usize>,
}

/// A table that holds rows: the table itself, or a leaf partition of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub oid: u32,
    /// Changes whenever the table is rewritten: positions of rows mean nothing afterwards.
    pub relfilenode: u32,
    pub quoted_name: String,
    pub pages: u32,
}

/// Why a table cannot be followed.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: &'static Code,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Refusal {
    /// The refusal as an error.
    #[must_use]
    pub fn to_error(&self) -> Error {
        let mut error = Error::new(self.code, self.message.clone());
        if let Some(detail) = &self.detail {
            error = error.with_detail(detail.clone());
        }
        if let Some(hint) = &self.hint {
            error = error.with_hint(hint.clone());
        }
        error
    }
}

/// One table: its shape for the lake, and all that copying and streaming it needs.
#[derive(Debug, Clone)]
pub struct SourceTable {
    pub schema: Arc<TableSchema>,
    /// When the catalogs were read, counted in this process: of two, the larger has the newer shape.
    pub read: u64,
    /// How each of [`TableSchema::columns`] is decoded.
    pub plans: Vec<ColumnPlan>,
    /// All columns of the source in `attnum` order, those left out too.
    pub attributes: Vec<Attribute>,
    pub leaves: Vec<Leaf>,
    pub replica_identity: char,
    /// The project asks for no updates and deletes.
    pub append_only_asked: bool,
    pub is_partitioned: bool,
    pub has_primary_key: bool,
    /// At no moment do two rows have one key. Not so of a key that the project names where a constraint is
    /// deferrable, or where there is none.
    pub is_key_enforced: bool,
    pub estimated_rows: f64,
    pub total_bytes: u64,
    /// Columns whose values may be stored out of line, and then are not sent when unchanged.
    pub toast_columns: Vec<String>,
    /// Left out: the stream does not carry them.
    pub generated_columns: Vec<String>,
    /// For people: what is special about this table.
    pub notes: Vec<String>,
    pub refused: Option<Refusal>,
    /// Whether the server reads a range of pages without the rest of the table (14 and later).
    pub has_tid_range_scan: bool,
}

impl SourceTable {
    #[must_use]
    pub fn id(&self) -> &TableId {
        &self.schema.id
    }
}

/// All tables that `selection` wants, by schema and name.
///
/// # Errors
/// When the catalogs cannot be read. What is wrong with one table is in its `refused`.
pub async fn load_tables(client: &Client, selection: &TableSelection) -> Result<Vec<SourceTable>> {
    load(client, selection, None).await
}

/// One table afresh; `None` when it is gone or not wanted.
///
/// # Errors
/// As [`load_tables`].
pub async fn load_table(
    client: &Client,
    id: &TableId,
    selection: &TableSelection,
) -> Result<Option<SourceTable>> {
    Ok(load(client, selection, Some(id)).await?.pop())
}

/// A text that changes whenever tables, columns, unique indexes or schemas do: far cheaper to ask
/// for again and again than [`load_tables`]. Changes to types and extensions alone do not show.
///
/// # Errors
/// When the catalogs cannot be read.
pub async fn fingerprint(client: &Client) -> Result<String> {
    rows::fingerprint(client).await
}

/// How often catalogs were read.
static READS: AtomicU64 = AtomicU64::new(1);

async fn load(
    client: &Client,
    selection: &TableSelection,
    only: Option<&TableId>,
) -> Result<Vec<SourceTable>> {
    let version = server_version(client).await?;
    let mut relations = rows::relations(client).await?;
    relations.retain(|relation| {
        let id = relation.id.as_ref();
        id.is_some_and(|id| only.is_none_or(|only| only == id) && selection.wants(id))
    });
    let roots: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let attributes = rows::attributes(client, &roots).await?;
    let leaves = rows::leaves(client, &roots).await?;
    let mut indexed = roots.clone();
    indexed.extend(leaves.iter().map(|leaf| leaf.relation.oid));
    let indexes = rows::indexes(client, &indexed).await?;
    let type_oids: HashSet<u32> = attributes
        .iter()
        .map(|row| row.attribute.type_oid)
        .collect();
    let types = types::Types::load(client, version, type_oids).await?;
    let has_money = types.contains(MONEY_OID) || types.contains(MONEY_ARRAY_OID);
    let money_fraction_digits = if has_money {
        rows::money_fraction_digits(client).await?
    } else {
        2
    };

    let facts = build::Facts {
        types: &types,
        indexes: &group(indexes, |index| index.relation_oid),
        selection,
        money_fraction_digits,
        has_tid_range_scan: version >= TID_RANGE_SCAN_VERSION,
        read: READS.fetch_add(1, Ordering::Relaxed),
    };
    let mut attributes = group(attributes, |row| row.relation_oid);
    let mut leaves = group(leaves, |leaf| leaf.root_oid);
    let table = |relation: rows::Relation| {
        let attributes = attributes.remove(&relation.oid).unwrap_or_default();
        let leaves = leaves.remove(&relation.oid).unwrap_or_default();
        build::source_table(&facts, relation, attributes, leaves)
    };
    relations.into_iter().map(table).collect()
}

fn group<T>(rows: Vec<T>, key: impl Fn(&T) -> u32) -> HashMap<u32, Vec<T>> {
    let mut groups: HashMap<u32, Vec<T>> = HashMap::new();
    for row in rows {
        groups.entry(key(&row)).or_default().push(row);
    }
    groups
}
