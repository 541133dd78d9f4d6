//! For unit tests: a table of the source, and an owner that is only its queue.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::sync::Arc;
use std::time::Duration;

use alluvium_change::TableId;
use alluvium_source_postgres::catalog::{SourceTable, sample_table};

pub(crate) const OID: u32 = 10;
pub(crate) const INT4: u32 = 23;
pub(crate) const TEXT: u32 = 25;

/// `t (id int4, v text)`, with `id` as its key.
pub(crate) fn table() -> Arc<SourceTable> {
    let columns = [("id", INT4, "int4"), ("v", TEXT, "text")];
    let table = sample_table(TableId::new("public", "t"), OID, &columns);
    Arc::new(table.unwrap())
}

/// What `future` gives; one that waits for what never comes fails the test instead of hanging it.
pub(crate) async fn comes<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"))
}
