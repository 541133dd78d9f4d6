//! Messages of PostgreSQL's logical decoding plugin `pgoutput`, protocol versions 1 to 3.
//!
//! After `replication`, which unwraps `XLogData`, before `streamed`, which keeps the transactions
//! that are still running or prepared, and `capture`, which assembles whole ones. [`decode`] borrows from the
//! message and copies nothing but a relation's list of columns; [`decode_in_segment`] does so
//! between a `StreamStart` and its `StreamStop`, where messages also say which sub-transaction they
//! are of. [`encode`] is the inverse of both.
//!
//! Invariant: no bytes make it panic; a message is returned only if all of it was understood.

mod decode;
pub mod encode;
#[cfg(test)]
mod tests;

use alluvium_change::Lsn;

pub use self::decode::{InSegment, decode, decode_in_segment};
pub(crate) use self::decode::{RelationOids, segment_xid};

/// Microseconds from 1970-01-01, where Alluvium counts from, to 2000-01-01, where PostgreSQL does.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Begin(Begin),
    Commit(Commit),
    /// The transaction comes from another server.
    Origin {
        commit_lsn: Lsn,
        name: &'a str,
    },
    Relation(Relation<'a>),
    /// A type that is not built in; a relation follows that uses it.
    Type {
        oid: u32,
        namespace: &'a str,
        name: &'a str,
    },
    Insert {
        relation_oid: u32,
        new: TupleData<'a>,
    },
    Update {
        relation_oid: u32,
        old: OldTuple<'a>,
        new: TupleData<'a>,
    },
    Delete {
        relation_oid: u32,
        /// Never [`OldTuple::None`].
        old: OldTuple<'a>,
    },
    Truncate(Truncate),
    /// Written by `pg_logical_emit_message`.
    LogicalMessage {
        transactional: bool,
        lsn: Lsn,
        prefix: &'a str,
        content: &'a [u8],
    },
    /// A piece of a transaction that has not ended comes next.
    StreamStart {
        xid: u32,
        /// Nothing of the transaction was sent before.
        first_segment: bool,
    },
    /// The piece ends; others, or whole transactions, may come before the next piece.
    StreamStop,
    /// The transaction sent in pieces is complete.
    StreamCommit {
        xid: u32,
        commit: Commit,
    },
    /// A sub-transaction of one sent in pieces came to nothing; all of it, if they are the same.
    StreamAbort {
        xid: u32,
        subxid: u32,
    },
    /// A transaction that was prepared comes next, up to its [`Message::Prepare`].
    BeginPrepare(Prepare<'a>),
    /// The transaction that was prepared is complete; whether it is committed comes later.
    Prepare(Prepare<'a>),
    /// The transaction sent in pieces is complete, and was prepared.
    StreamPrepare(Prepare<'a>),
    /// A prepared transaction was committed.
    CommitPrepared(CommitPrepared<'a>),
    /// A prepared transaction was rolled back.
    RollbackPrepared(RollbackPrepared<'a>),
}

/// A transaction starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Start of the commit record: the `commit_lsn` of the [`Commit`] to come.
    pub final_lsn: Lsn,
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub commit_time_micros: i64,
    pub xid: u32,
}

/// A transaction is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// End of the commit record.
    pub end_lsn: Lsn,
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub commit_time_micros: i64,
}

/// A transaction is prepared (`PREPARE TRANSACTION`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// Start of the prepare record.
    pub prepare_lsn: Lsn,
    /// End of the prepare record.
    pub end_lsn: Lsn,
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub prepare_time_micros: i64,
    pub xid: u32,
    /// The name it was given; free again once the transaction is decided.
    pub gid: &'a str,
}

/// `COMMIT PREPARED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPrepared<'a> {
    pub commit: Commit,
    pub xid: u32,
    pub gid: &'a str,
}

/// `ROLLBACK PREPARED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollbackPrepared<'a> {
    /// End of the prepare record.
    pub prepare_end_lsn: Lsn,
    /// End of the record of the rollback.
    pub rollback_end_lsn: Lsn,
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub prepare_time_micros: i64,
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub rollback_time_micros: i64,
    pub xid: u32,
    pub gid: &'a str,
}

/// A table as the messages after it write its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    pub oid: u32,
    pub namespace: &'a str,
    pub name: &'a str,
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<RelationColumn<'a>>,
}

/// A published column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationColumn<'a> {
    /// Part of the replica identity.
    pub key: bool,
    pub name: &'a str,
    pub type_oid: u32,
    /// The type modifier, -1 for none.
    pub typmod: i32,
}

/// `pg_class.relreplident`: what is sent of an old row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    Nothing,
    Full,
    /// The columns of a chosen unique index.
    Index,
}

impl ReplicaIdentity {
    /// From the letter in `pg_class.relreplident`.
    #[must_use]
    pub fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'd' => Some(Self::Default),
            b'n' => Some(Self::Nothing),
            b'f' => Some(Self::Full),
            b'i' => Some(Self::Index),
            _ => None,
        }
    }

    /// The letter in `pg_class.relreplident`.
    #[must_use]
    pub fn letter(self) -> u8 {
        match self {
            Self::Default => b'd',
            Self::Nothing => b'n',
            Self::Full => b'f',
            Self::Index => b'i',
        }
    }
}

/// What was sent of a row before its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Nothing: the identity did not change.
    None,
    /// The columns of the replica identity, the others NULL.
    Key(TupleData<'a>),
    /// The whole row, under `REPLICA IDENTITY FULL`.
    Full(TupleData<'a>),
}

impl<'a> OldTuple<'a> {
    /// The tuple, whichever kind it is.
    #[must_use]
    pub fn tuple(self) -> Option<TupleData<'a>> {
        match self {
            Self::None => None,
            Self::Key(tuple) | Self::Full(tuple) => Some(tuple),
        }
    }
}

/// Tables emptied by one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    pub relation_oids: Vec<u32>,
    pub cascade: bool,
    pub restart_identity: bool,
}

/// The columns of one row, in the order of its [`Relation`]. Checked when decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TupleData<'a> {
    columns: u16,
    bytes: &'a [u8],
}

impl<'a> TupleData<'a> {
    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.columns.into()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// Bytes of all values together with what frames them: a measure of the row's size.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The values of the columns, as many as [`Self::len`].
    #[must_use]
    pub fn iter(&self) -> TupleValues<'a> {
        TupleValues {
            columns_left: self.columns,
            bytes: self.bytes,
        }
    }
}

impl<'a> IntoIterator for TupleData<'a> {
    type Item = TupleValue<'a>;
    type IntoIter = TupleValues<'a>;

    fn into_iter(self) -> TupleValues<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &TupleData<'a> {
    type Item = TupleValue<'a>;
    type IntoIter = TupleValues<'a>;

    fn into_iter(self) -> TupleValues<'a> {
        self.iter()
    }
}

/// One column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TupleValue<'a> {
    Null,
    /// An out-of-line (TOAST) value that did not change and was not sent.
    Unchanged,
    /// The text of the type's output function.
    Text(&'a [u8]),
    /// The binary form of the type's send function (only when asked for).
    Binary(&'a [u8]),
}

/// Iterates over the columns of a [`TupleData`].
#[derive(Debug, Clone)]
pub struct TupleValues<'a> {
    columns_left: u16,
    bytes: &'a [u8],
}

impl<'a> Iterator for TupleValues<'a> {
    type Item = TupleValue<'a>;

    #[inline]
    fn next(&mut self) -> Option<TupleValue<'a>> {
        self.columns_left = self.columns_left.checked_sub(1)?;
        let (value, rest) = decode::tuple_value(self.bytes)?;
        self.bytes = rest;
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.columns_left.into(), Some(self.columns_left.into()))
    }
}

impl ExactSizeIterator for TupleValues<'_> {}
