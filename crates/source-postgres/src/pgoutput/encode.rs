//! From messages to bytes: what a server writes. The inverse of [`super::decode`] and of
//! [`super::decode_in_segment`].

use alluvium_change::{Error, Lsn, Result};

use super::{
    Commit, CommitPrepared, EPOCH_MICROS, InSegment, Message, OldTuple, Prepare, Relation,
    ReplicaIdentity, RollbackPrepared, Truncate, TupleData, TupleValue,
};

/// The bytes of one row, to make a [`TupleData`] of: see [`TupleBuffer::tuple`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TupleBuffer {
    columns: u16,
    bytes: Vec<u8>,
}

impl TupleBuffer {
    /// A row of these values.
    ///
    /// # Errors
    /// For more columns, or a longer value, than the protocol can say.
    pub fn new<'v>(values: impl IntoIterator<Item = TupleValue<'v>>) -> Result<Self> {
        let mut tuple = Self::default();
        for value in values {
            tuple.push(value)?;
        }
        Ok(tuple)
    }

    /// Adds a column.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn push(&mut self, value: TupleValue<'_>) -> Result<()> {
        let (kind, bytes) = match value {
            TupleValue::Null => (b'n', None),
            TupleValue::Unchanged => (b'u', None),
            TupleValue::Text(text) => (b't', Some(text)),
            TupleValue::Binary(bytes) => (b'b', Some(bytes)),
        };
        let columns = self
            .columns
            .checked_add(1)
            .ok_or_else(|| too_long("columns"))?;
        let length = bytes.map(|bytes| length(bytes.len())).transpose()?;
        self.bytes.push(kind);
        if let (Some(bytes), Some(length)) = (bytes, length) {
            self.bytes.extend_from_slice(&length);
            self.bytes.extend_from_slice(bytes);
        }
        self.columns = columns;
        Ok(())
    }

    /// The row.
    #[must_use]
    pub fn tuple(&self) -> TupleData<'_> {
        TupleData {
            columns: self.columns,
            bytes: &self.bytes,
        }
    }
}

/// Writes `message` behind what `out` holds.
///
/// # Errors
/// For what the protocol cannot say: a name with a zero byte, a deleted row of which nothing is
/// sent, too many columns, a time before PostgreSQL's. `out` is then as long as it was.
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) -> Result<()> {
    let before = out.len();
    let result = write(message, out);
    if result.is_err() {
        out.truncate(before);
    }
    result
}

/// Writes a message of a segment behind what `out` holds.
///
/// # Errors
/// As [`encode`]; and for an `xid` where there is none, or none where one belongs.
pub fn encode_in_segment(message: &InSegment<'_>, out: &mut Vec<u8>) -> Result<()> {
    let before = out.len();
    encode(&message.message, out)?;
    match (&message.message, message.xid) {
        (Message::StreamStop | Message::Origin { .. }, None) => Ok(()),
        (
            Message::Relation(_)
            | Message::Type { .. }
            | Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate(_)
            | Message::LogicalMessage { .. },
            Some(xid),
        ) => {
            out.splice(before + 1..before + 1, xid.to_be_bytes());
            Ok(())
        }
        _ => {
            out.truncate(before);
            Err(Error::bug("a message that a segment cannot hold"))
        }
    }
}

fn write(message: &Message<'_>, out: &mut Vec<u8>) -> Result<()> {
    match message {
        Message::Begin(begin) => {
            out.push(b'B');
            put_lsn(out, begin.final_lsn);
            put_time(out, begin.commit_time_micros)?;
            out.extend_from_slice(&begin.xid.to_be_bytes());
        }
        Message::Commit(commit) => {
            out.push(b'C');
            put_commit(out, commit)?;
        }
        Message::StreamStart { xid, first_segment } => {
            out.push(b'S');
            out.extend_from_slice(&xid.to_be_bytes());
            out.push(u8::from(*first_segment));
        }
        Message::StreamStop => out.push(b'E'),
        Message::StreamCommit { xid, commit } => {
            out.push(b'c');
            out.extend_from_slice(&xid.to_be_bytes());
            put_commit(out, commit)?;
        }
        Message::StreamAbort { xid, subxid } => {
            out.push(b'A');
            out.extend_from_slice(&xid.to_be_bytes());
            out.extend_from_slice(&subxid.to_be_bytes());
        }
        Message::BeginPrepare(prepare) => put_prepare(out, b"b", prepare)?,
        Message::Prepare(prepare) => put_prepare(out, b"P\0", prepare)?,
        Message::StreamPrepare(prepare) => put_prepare(out, b"p\0", prepare)?,
        Message::CommitPrepared(prepared) => put_commit_prepared(out, prepared)?,
        Message::RollbackPrepared(prepared) => put_rollback_prepared(out, prepared)?,
        Message::Origin { commit_lsn, name } => {
            out.push(b'O');
            put_lsn(out, *commit_lsn);
            put_text(out, name)?;
        }
        Message::Relation(relation) => put_relation(out, relation)?,
        Message::Type {
            oid,
            namespace,
            name,
        } => {
            out.push(b'Y');
            out.extend_from_slice(&oid.to_be_bytes());
            put_namespace(out, namespace)?;
            put_text(out, name)?;
        }
        Message::Insert { relation_oid, new } => {
            out.push(b'I');
            out.extend_from_slice(&relation_oid.to_be_bytes());
            put_tuple(out, b'N', *new);
        }
        Message::Update {
            relation_oid,
            old,
            new,
        } => {
            out.push(b'U');
            out.extend_from_slice(&relation_oid.to_be_bytes());
            put_old(out, *old);
            put_tuple(out, b'N', *new);
        }
        Message::Delete {
            old: OldTuple::None,
            ..
        } => {
            return Err(Error::bug("a deleted row of which nothing is sent"));
        }
        Message::Delete { relation_oid, old } => {
            out.push(b'D');
            out.extend_from_slice(&relation_oid.to_be_bytes());
            put_old(out, *old);
        }
        Message::Truncate(truncate) => put_truncate(out, truncate)?,
        Message::LogicalMessage {
            transactional,
            lsn,
            prefix,
            content,
        } => {
            out.extend_from_slice(&[b'M', u8::from(*transactional)]);
            put_lsn(out, *lsn);
            put_text(out, prefix)?;
            out.extend_from_slice(&length(content.len())?);
            out.extend_from_slice(content);
        }
    }
    Ok(())
}

fn put_commit(out: &mut Vec<u8>, commit: &Commit) -> Result<()> {
    // Flags, not used so far.
    out.push(0);
    put_lsn(out, commit.commit_lsn);
    put_lsn(out, commit.end_lsn);
    put_time(out, commit.commit_time_micros)
}

/// `start` is the letter, and the flags where there are some: not used so far.
fn put_prepare(out: &mut Vec<u8>, start: &[u8], prepare: &Prepare<'_>) -> Result<()> {
    out.extend_from_slice(start);
    put_lsn(out, prepare.prepare_lsn);
    put_lsn(out, prepare.end_lsn);
    put_time(out, prepare.prepare_time_micros)?;
    out.extend_from_slice(&prepare.xid.to_be_bytes());
    put_text(out, prepare.gid)
}

fn put_commit_prepared(out: &mut Vec<u8>, prepared: &CommitPrepared<'_>) -> Result<()> {
    out.push(b'K');
    put_commit(out, &prepared.commit)?;
    out.extend_from_slice(&prepared.xid.to_be_bytes());
    put_text(out, prepared.gid)
}

fn put_rollback_prepared(out: &mut Vec<u8>, prepared: &RollbackPrepared<'_>) -> Result<()> {
    out.extend_from_slice(b"r\0");
    put_lsn(out, prepared.prepare_end_lsn);
    put_lsn(out, prepared.rollback_end_lsn);
    put_time(out, prepared.prepare_time_micros)?;
    put_time(out, prepared.rollback_time_micros)?;
    out.extend_from_slice(&prepared.xid.to_be_bytes());
    put_text(out, prepared.gid)
}

fn put_relation(out: &mut Vec<u8>, relation: &Relation<'_>) -> Result<()> {
    let count = u16::try_from(relation.columns.len()).map_err(|_| too_long("columns"))?;
    out.push(b'R');
    out.extend_from_slice(&relation.oid.to_be_bytes());
    put_namespace(out, relation.namespace)?;
    put_text(out, relation.name)?;
    out.push(ReplicaIdentity::letter(relation.replica_identity));
    out.extend_from_slice(&count.to_be_bytes());
    for column in &relation.columns {
        out.push(column.key.into());
        put_text(out, column.name)?;
        out.extend_from_slice(&column.type_oid.to_be_bytes());
        out.extend_from_slice(&column.typmod.to_be_bytes());
    }
    Ok(())
}

fn put_truncate(out: &mut Vec<u8>, truncate: &Truncate) -> Result<()> {
    out.push(b'T');
    out.extend_from_slice(&length(truncate.relation_oids.len())?);
    out.push(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
    for oid in &truncate.relation_oids {
        out.extend_from_slice(&oid.to_be_bytes());
    }
    Ok(())
}

fn put_old(out: &mut Vec<u8>, old: OldTuple<'_>) {
    match old {
        OldTuple::None => {}
        OldTuple::Key(tuple) => put_tuple(out, b'K', tuple),
        OldTuple::Full(tuple) => put_tuple(out, b'O', tuple),
    }
}

fn put_tuple(out: &mut Vec<u8>, kind: u8, tuple: TupleData<'_>) {
    out.push(kind);
    out.extend_from_slice(&tuple.columns.to_be_bytes());
    out.extend_from_slice(tuple.bytes);
}

fn put_lsn(out: &mut Vec<u8>, lsn: Lsn) {
    out.extend_from_slice(&lsn.0.to_be_bytes());
}

fn put_time(out: &mut Vec<u8>, unix_micros: i64) -> Result<()> {
    let micros = unix_micros
        .checked_sub(EPOCH_MICROS)
        .ok_or_else(|| Error::bug("a commit time before PostgreSQL's first"))?;
    out.extend_from_slice(&micros.to_be_bytes());
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::bug("a name with a zero byte"));
    }
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    Ok(())
}

/// The catalog's name is written as an empty one.
fn put_namespace(out: &mut Vec<u8>, namespace: &str) -> Result<()> {
    put_text(
        out,
        if namespace == "pg_catalog" {
            ""
        } else {
            namespace
        },
    )
}

fn length(length: usize) -> Result<[u8; 4]> {
    i32::try_from(length)
        .map(i32::to_be_bytes)
        .map_err(|_| too_long("bytes"))
}

fn too_long(what: &str) -> Error {
    Error::bug(format!(
        "a message with more {what} than the protocol can say"
    ))
}
