//! Types by oid, resolved through domains, arrays, composites, ranges and multiranges.
//!
//! One query per level of nesting, not per type.

use std::collections::{HashMap, HashSet};

use alluvium_change::{Error, Result, code};
use tokio_postgres::{Client, Row};

use super::rows::{get, get_char};
use crate::connect::map_error;
use crate::type_map::{PgKind, PgType};

const DOING: &str = "reading the types";
/// Deeper nesting than anybody writes; guards against a cycle in a damaged catalog.
const MAX_DEPTH: usize = 64;
/// The first version with multiranges.
const MULTIRANGE_VERSION: i32 = 140_000;

#[derive(Debug)]
struct TypeRow {
    name: String,
    schema: String,
    kind: char,
    delimiter: u8,
    /// Of a true array, else 0.
    element_oid: u32,
    base_oid: u32,
    base_typmod: i32,
    base_label: String,
    relation_oid: u32,
    subtype_oid: u32,
    /// The range of a multirange, else 0.
    range_oid: u32,
    label: String,
}

#[derive(Debug)]
struct FieldRow {
    name: String,
    type_oid: u32,
    typmod: i32,
    label: String,
}

/// All types that the asked ones are made of.
#[derive(Debug, Default)]
pub(super) struct Types {
    types: HashMap<u32, TypeRow>,
    /// By the composite's `pg_class` row.
    fields: HashMap<u32, Vec<FieldRow>>,
}

impl Types {
    pub(super) async fn load(client: &Client, version: i32, oids: HashSet<u32>) -> Result<Self> {
        let mut types = Self::default();
        let mut wanted: Vec<u32> = oids.into_iter().collect();
        while !wanted.is_empty() {
            let rows = query_types(client, version, &wanted).await?;
            let composites: Vec<u32> = rows
                .iter()
                .map(|(_, row)| row.relation_oid)
                .filter(|&oid| oid != 0)
                .collect();
            let mut next: HashSet<u32> = HashSet::new();
            for (oid, row) in rows {
                next.extend([
                    row.element_oid,
                    row.base_oid,
                    row.subtype_oid,
                    row.range_oid,
                ]);
                types.types.insert(oid, row);
            }
            if !composites.is_empty() {
                for (relation_oid, field) in query_fields(client, &composites).await? {
                    next.insert(field.type_oid);
                    types.fields.entry(relation_oid).or_default().push(field);
                }
            }
            wanted = next
                .into_iter()
                .filter(|oid| *oid != 0 && !types.types.contains_key(oid))
                .collect();
        }
        Ok(types)
    }

    pub(super) fn contains(&self, oid: u32) -> bool {
        self.types.contains_key(&oid)
    }

    /// The type `oid` with `typmod`, which people write `label`.
    pub(super) fn resolve(&self, oid: u32, typmod: i32, label: &str) -> Result<PgType> {
        self.resolve_at(oid, typmod, label, 0)
    }

    fn resolve_at(&self, oid: u32, typmod: i32, label: &str, depth: usize) -> Result<PgType> {
        let row = self
            .types
            .get(&oid)
            .filter(|_| depth < MAX_DEPTH)
            .ok_or_else(|| {
                Error::new(
                    &code::SCHEMA_COLUMN,
                    format!("type {oid} is not in the catalog"),
                )
            })?;
        let below =
            |oid: u32, typmod: i32, label: &str| self.resolve_at(oid, typmod, label, depth + 1);
        let unmodified = |oid: u32| {
            let label = self.types.get(&oid).map_or("", |row| row.label.as_str());
            below(oid, -1, label).map(Box::new)
        };
        let kind = match row.kind {
            // A domain's values are those of its base.
            'd' => {
                let mut base = below(row.base_oid, row.base_typmod, &row.base_label)?;
                label.clone_into(&mut base.label);
                return Ok(base);
            }
            'e' => PgKind::Enum,
            'r' => PgKind::Range(unmodified(row.subtype_oid)?),
            'm' => PgKind::Multirange(unmodified(row.range_oid)?),
            'c' => {
                let fields = self
                    .fields
                    .get(&row.relation_oid)
                    .map_or(&[][..], Vec::as_slice);
                let resolve = |field: &FieldRow| {
                    let resolved = below(field.type_oid, field.typmod, &field.label)?;
                    Ok((field.name.clone(), resolved))
                };
                PgKind::Composite(fields.iter().map(resolve).collect::<Result<_>>()?)
            }
            _ if row.element_oid != 0 => {
                let element_label = label.strip_suffix("[]").unwrap_or(label);
                PgKind::Array(Box::new(below(row.element_oid, typmod, element_label)?))
            }
            _ => PgKind::Scalar,
        };
        Ok(PgType {
            oid,
            name: row.name.clone(),
            schema: row.schema.clone(),
            label: label.to_owned(),
            typmod,
            delimiter: row.delimiter,
            kind,
        })
    }
}

async fn query_types(client: &Client, version: i32, oids: &[u32]) -> Result<Vec<(u32, TypeRow)>> {
    let range_of_multirange = if version >= MULTIRANGE_VERSION {
        "COALESCE((SELECT m.rngtypid FROM pg_range m WHERE m.rngmultitypid = t.oid), 0)"
    } else {
        "0::oid"
    };
    // int2vector and its like have an element type too, but print no array.
    let sql = format!(
        "SELECT t.oid, t.typname, n.nspname, t.typtype::text, t.typdelim::text,
                CASE WHEN t.typoutput = 'array_out'::regproc THEN t.typelem ELSE 0::oid END,
                t.typbasetype, t.typtypmod, COALESCE(format_type(t.typbasetype, t.typtypmod), ''),
                CASE WHEN t.typtype = 'c' THEN t.typrelid ELSE 0::oid END,
                COALESCE((SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid), 0),
                {range_of_multirange}, format_type(t.oid, NULL)
         FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
         WHERE t.oid = ANY($1)"
    );
    let rows = client
        .query(sql.as_str(), &[&oids])
        .await
        .map_err(|error| map_error(error, DOING))?;
    let parse = |row: &Row| {
        let parsed = TypeRow {
            name: get(row, 1)?,
            schema: get(row, 2)?,
            kind: get_char(row, 3)?,
            delimiter: get::<String>(row, 4)?.bytes().next().unwrap_or(b','),
            element_oid: get(row, 5)?,
            base_oid: get(row, 6)?,
            base_typmod: get(row, 7)?,
            base_label: get(row, 8)?,
            relation_oid: get(row, 9)?,
            subtype_oid: get(row, 10)?,
            range_oid: get(row, 11)?,
            label: get(row, 12)?,
        };
        Ok((get(row, 0)?, parsed))
    };
    rows.iter().map(parse).collect()
}

async fn query_fields(client: &Client, relations: &[u32]) -> Result<Vec<(u32, FieldRow)>> {
    let sql = "SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod,
                      format_type(a.atttypid, a.atttypmod)
               FROM pg_attribute a
               WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
               ORDER BY a.attrelid, a.attnum";
    let rows = client
        .query(sql, &[&relations])
        .await
        .map_err(|error| map_error(error, DOING))?;
    let parse = |row: &Row| {
        let parsed = FieldRow {
            name: get(row, 1)?,
            type_oid: get(row, 2)?,
            typmod: get(row, 3)?,
            label: get(row, 4)?,
        };
        Ok((get(row, 0)?, parsed))
    };
    rows.iter().map(parse).collect()
}
