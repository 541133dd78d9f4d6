//! For unit tests: a table of the source, and an owner that is only its queue.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Column, Identity, TableId, TableSchema};
use alluvium_source_postgres::catalog::{Attribute, Leaf, SourceTable};
use alluvium_source_postgres::type_map::{ColumnOptions, PgKind, PgType, plan_column};

pub(crate) const OID: u32 = 10;
pub(crate) const INT4: u32 = 23;
pub(crate) const TEXT: u32 = 25;

/// `t (id int4, v text)`, with `id` as its key.
pub(crate) fn table() -> Arc<SourceTable> {
    let mut plans = Vec::new();
    let mut attributes = Vec::new();
    let mut columns = Vec::new();
    for (place, (name, type_oid, type_name)) in [("id", INT4, "int4"), ("v", TEXT, "text")]
        .into_iter()
        .enumerate()
    {
        let ty = PgType {
            oid: type_oid,
            name: type_name.to_owned(),
            schema: "pg_catalog".to_owned(),
            label: type_name.to_owned(),
            typmod: -1,
            delimiter: b',',
            kind: PgKind::Scalar,
        };
        let plan = plan_column(&ty, &ColumnOptions::default()).unwrap();
        columns.push(Column {
            name: name.to_owned(),
            data_type: plan.data_type.clone(),
            source_type: type_name.to_owned(),
        });
        plans.push(plan);
        attributes.push(Attribute {
            attnum: i16::try_from(place + 1).unwrap(),
            name: name.to_owned(),
            type_oid,
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
    Arc::new(SourceTable {
        schema: TableSchema::new(
            TableId::new("public", "t"),
            OID,
            columns,
            Identity::Key(vec![0]),
        ),
        plans,
        attributes,
        leaves: vec![Leaf {
            oid: OID,
            relfilenode: OID,
            quoted_name: "\"public\".\"t\"".to_owned(),
            pages: 10,
        }],
        replica_identity: 'd',
        is_partitioned: false,
        has_primary_key: true,
        estimated_rows: 0.0,
        total_bytes: 0,
        toast_columns: Vec::new(),
        generated_columns: Vec::new(),
        notes: Vec::new(),
        refused: None,
        has_tid_range_scan: true,
    })
}

/// What `future` gives; one that waits for what never comes fails the test instead of hanging it.
pub(crate) async fn comes<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"))
}
