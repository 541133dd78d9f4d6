//! Sessions within an exported snapshot: one that looks and locks, others that copy.

use std::error::Error as StdError;
use std::fmt;

use alluvium_change::{Error, Result, code};
use tokio_postgres::Client;

use super::reader::CopyReader;
use super::{CopyRange, copy_sql, copy_where_sql, rights_hint};
use crate::catalog::{SourceTable, get};
use crate::connect::{self, ConnectOptions, map_error, server_error};
use crate::wire::{Mode, Wire};

const BEGIN_SQL: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const BEGINNING: &str = "starting to copy";
const ENTERING: &str = "entering the snapshot";

/// The exported snapshot is gone: the session that exported it has ended.
#[derive(Debug)]
struct SnapshotGone(connect::ServerError);

impl fmt::Display for SnapshotGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for SnapshotGone {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// Whether `error` says that the exported snapshot no longer exists.
#[must_use]
pub fn is_snapshot_gone(error: &Error) -> bool {
    StdError::source(error).is_some_and(|source| source.is::<SnapshotGone>())
}

/// What [`SnapshotSession::lock`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    /// The table was rewritten or truncated after the snapshot: the snapshot does not show its
    /// rows, so what a copy would find is not what the stream builds on.
    pub rewritten: bool,
}

/// A session that sees the tables as of an exported snapshot.
#[derive(Debug)]
pub struct SnapshotSession {
    client: Client,
}

impl SnapshotSession {
    /// Opens a read-only transaction on the snapshot.
    ///
    /// # Errors
    /// As [`connect::connect`]; an error that [`is_snapshot_gone`] knows.
    pub async fn open(options: &ConnectOptions, snapshot_name: &str) -> Result<Self> {
        let client = connect::connect(options).await?;
        client
            .batch_execute(BEGIN_SQL)
            .await
            .map_err(|error| map_error(error, BEGINNING))?;
        client
            .batch_execute(&set_snapshot_sql(snapshot_name))
            .await
            .map_err(|error| not_entered(map_error(error, ENTERING), snapshot_name))?;
        Ok(Self { client })
    }

    /// The session's client, for queries that have to see the snapshot.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Keeps `table` from being changed in shape, rewritten or dropped until the session ends.
    /// Readers and writers of its rows go on.
    ///
    /// # Errors
    /// `PG_RIGHTS`, `PG_QUERY` when it is gone.
    pub async fn lock(&self, table: &SourceTable) -> Result<Locked> {
        let doing = format!("locking table \"{}\"", table.id());
        let failed = |error| map_error(error, &doing);
        let mut names = vec![table.id().quoted()];
        if table.is_partitioned {
            names.extend(table.leaves.iter().map(|leaf| leaf.quoted_name.clone()));
        }
        for name in names {
            let lock = format!("LOCK TABLE ONLY {name} IN ACCESS SHARE MODE");
            self.client.batch_execute(&lock).await.map_err(failed)?;
        }
        let oids: Vec<u32> = table.leaves.iter().map(|leaf| leaf.oid).collect();
        // The function sees today's file, the table that of the snapshot.
        let sql = "SELECT count(*) <> pg_catalog.cardinality($1::oid[]) OR COALESCE(
                       bool_or(pg_relation_filenode(oid) IS DISTINCT FROM relfilenode), false)
                   FROM pg_class WHERE oid = ANY($1::oid[])";
        let row = self.client.query_one(sql, &[&oids]).await.map_err(failed)?;
        Ok(Locked {
            rewritten: get(&row, 0)?,
        })
    }

    /// That the session, and with it every lock it took, has lasted until now.
    ///
    /// # Errors
    /// `PG_CONNECTION_LOST`.
    pub async fn check(&self) -> Result<()> {
        self.client
            .batch_execute("SELECT 1")
            .await
            .map_err(|error| map_error(error, "keeping tables locked"))
    }

    /// [`Self::lock`] of many tables, without waiting for the answer about one before asking about
    /// the next.
    ///
    /// # Errors
    /// The first one of [`Self::lock`].
    pub async fn lock_all<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a SourceTable>,
    ) -> Result<Vec<Locked>> {
        futures::future::try_join_all(tables.into_iter().map(|table| self.lock(table))).await
    }
}

/// A session that copies what an exported snapshot shows.
#[derive(Debug)]
pub struct CopySession {
    pub(super) wire: Wire,
    /// A copy was begun, and the server's last word on it has not come.
    pub(super) is_copying: bool,
}

impl CopySession {
    /// Opens a read-only transaction on the snapshot.
    ///
    /// # Errors
    /// As [`SnapshotSession::open`].
    pub async fn open(options: &ConnectOptions, snapshot_name: &str) -> Result<Self> {
        let mut wire = Wire::connect(options, Mode::Ordinary).await?;
        wire.query(BEGIN_SQL, BEGINNING).await?;
        wire.query(&set_snapshot_sql(snapshot_name), ENTERING)
            .await
            .map_err(|error| not_entered(error, snapshot_name))?;
        Ok(Self {
            wire,
            is_copying: false,
        })
    }

    /// Starts to copy one range; batches hold about `max_batch_bytes`. What a copy before it was not
    /// asked for is passed over.
    ///
    /// # Errors
    /// `PG_RIGHTS` (also when row-level security would hide rows), `PG_QUERY`.
    pub async fn copy_range(
        &mut self,
        table: &SourceTable,
        range: CopyRange,
        max_batch_bytes: usize,
    ) -> Result<CopyReader<'_>> {
        let sql = copy_sql(table, range)?;
        self.copy(table, &sql, max_batch_bytes).await
    }

    /// As [`Self::copy_range`], of the rows for which `predicate`, a condition in the server's SQL, holds.
    ///
    /// # Errors
    /// As [`Self::copy_range`]; `PG_QUERY` where the server does not understand it.
    pub async fn copy_where(
        &mut self,
        table: &SourceTable,
        predicate: &str,
        max_batch_bytes: usize,
    ) -> Result<CopyReader<'_>> {
        let sql = copy_where_sql(table, predicate);
        self.copy(table, &sql, max_batch_bytes).await
    }

    async fn copy(
        &mut self,
        table: &SourceTable,
        sql: &str,
        max_batch_bytes: usize,
    ) -> Result<CopyReader<'_>> {
        let doing = format!("copying table \"{}\"", table.id());
        if self.is_copying {
            self.wire.skip_until_ready(&doing).await?;
        }
        self.is_copying = true;
        self.wire
            .enter(sql, b'H', &doing)
            .await
            .map_err(rights_hint)?;
        Ok(CopyReader::of_session(table, self, doing, max_batch_bytes))
    }
}

fn set_snapshot_sql(name: &str) -> String {
    format!("SET TRANSACTION SNAPSHOT '{}'", name.replace('\'', "''"))
}

/// What the server's refusal of a snapshot means.
fn not_entered(error: Error, snapshot_name: &str) -> Error {
    // By version: the file is missing, or its owner is.
    let gone = server_error(&error)
        .filter(|server| matches!(server.sqlstate.as_str(), "22023" | "42704" | "55000"));
    let Some(server) = gone.cloned() else {
        return error;
    };
    Error::new(
        &code::PG_CONNECTION_LOST,
        format!("snapshot \"{snapshot_name}\" no longer exists"),
    )
    .with_detail(server.message.clone())
    .with_source(SnapshotGone(server))
}
