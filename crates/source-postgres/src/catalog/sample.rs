//! A table as a server's catalogs would describe it, without a server: for tests, also of other
//! crates.

use alluvium_change::{Column, Error, Identity, Result, TableId, TableSchema};

use super::{Attribute, Leaf, SourceTable};
use crate::type_map::{ColumnOptions, PgKind, PgType, plan_column};

/// A table of columns with built-in types (name, oid and name of the type); the first is the key.
///
/// # Errors
/// The options do not fit a type.
#[doc(hidden)]
pub fn sample_table(id: TableId, oid: u32, columns: &[(&str, u32, &str)]) -> Result<SourceTable> {
    let mut plans = Vec::new();
    let mut attributes = Vec::new();
    let mut planned = Vec::new();
    for (place, (name, type_oid, type_name)) in columns.iter().enumerate() {
        let ty = PgType {
            oid: *type_oid,
            name: (*type_name).to_owned(),
            schema: "pg_catalog".to_owned(),
            label: (*type_name).to_owned(),
            typmod: -1,
            delimiter: b',',
            kind: PgKind::Scalar,
        };
        let plan = plan_column(&ty, &ColumnOptions::default())?;
        planned.push(Column {
            name: (*name).to_owned(),
            data_type: plan.data_type.clone(),
            source_type: (*type_name).to_owned(),
        });
        plans.push(plan);
        attributes.push(Attribute {
            attnum: i16::try_from(place + 1).map_err(|_| Error::bug("too many columns"))?,
            name: (*name).to_owned(),
            type_oid: *type_oid,
            typmod: -1,
            not_null: place == 0,
            missing_value: None,
            has_default: false,
            is_identity: false,
            is_generated: false,
            storage: 'x',
            column: Some(place),
        });
    }
    let leaf = Leaf {
        oid,
        relfilenode: oid,
        quoted_name: id.quoted(),
        pages: 10,
    };
    Ok(SourceTable {
        schema: TableSchema::new(id, oid, planned, Identity::Key(vec![0])),
        read: 0,
        plans,
        attributes,
        leaves: vec![leaf],
        replica_identity: 'd',
        append_only_asked: false,
        is_partitioned: false,
        has_primary_key: true,
        is_key_enforced: true,
        estimated_rows: 0.0,
        total_bytes: 0,
        toast_columns: Vec::new(),
        generated_columns: Vec::new(),
        notes: Vec::new(),
        refused: None,
        has_tid_range_scan: true,
    })
}
