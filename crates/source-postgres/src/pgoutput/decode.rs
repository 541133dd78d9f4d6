//! From bytes to [`Message`].

use alluvium_change::{Error, Lsn, Result, code};

use super::{
    Begin, Commit, CommitPrepared, EPOCH_MICROS, Message, OldTuple, Prepare, Relation,
    RelationColumn, ReplicaIdentity, RollbackPrepared, Truncate, TupleData, TupleValue,
};

/// Decodes one message that comes outside a segment.
///
/// # Errors
/// [`code::PG_PROTOCOL`] for bytes that are no complete message of protocol version 3.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>> {
    let mut reader = Reader { rest: bytes };
    let letter = reader
        .u8()
        .ok_or_else(|| malformed("an empty message", bytes))?;
    let message = match letter {
        b'B' => reader.begin(),
        b'C' => reader.commit(),
        b'O' => reader.origin(),
        b'S' => reader.stream_start(),
        b'c' => reader.stream_commit(),
        b'A' => reader.stream_abort(),
        b'b' => reader.prepare_body().map(Message::BeginPrepare),
        b'P' => reader.prepare().map(Message::Prepare),
        b'p' => reader.prepare().map(Message::StreamPrepare),
        b'K' => reader.commit_prepared(),
        b'r' => reader.rollback_prepared(),
        _ => reader.change(letter),
    };
    whole(message, reader, bytes)
}

/// A message of a segment: between a `StreamStart` and its `StreamStop`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InSegment<'a> {
    /// The sub-transaction it belongs to, or the transaction itself; `StreamStop` and `Origin` have
    /// none.
    pub xid: Option<u32>,
    pub message: Message<'a>,
}

/// Decodes one message of a segment.
///
/// # Errors
/// [`code::PG_PROTOCOL`] for bytes that are no complete message of protocol version 3, or one that
/// a segment cannot hold.
pub fn decode_in_segment(bytes: &[u8]) -> Result<InSegment<'_>> {
    let mut reader = Reader { rest: bytes };
    let letter = reader
        .u8()
        .ok_or_else(|| malformed("an empty message", bytes))?;
    let (xid, message) = match letter {
        b'E' => (None, Some(Message::StreamStop)),
        b'O' => (None, reader.origin()),
        _ => match reader.u32() {
            None => (None, None),
            xid => (xid, reader.change(letter)),
        },
    };
    let message = whole(message, reader, bytes)?;
    Ok(InSegment { xid, message })
}

/// The sub-transaction of a change within a segment, without decoding the rest.
#[inline]
pub(crate) fn segment_xid(bytes: &[u8]) -> Option<u32> {
    let (_, rest) = bytes.split_first()?;
    rest.first_chunk::<4>().copied().map(u32::from_be_bytes)
}

/// The relations whose description a change relies on.
pub(crate) enum RelationOids<'m> {
    None,
    One(u32),
    Many(&'m [u32]),
}

impl<'m> RelationOids<'m> {
    pub(crate) fn of(message: &'m Message<'_>) -> Self {
        match message {
            Message::Insert { relation_oid, .. }
            | Message::Update { relation_oid, .. }
            | Message::Delete { relation_oid, .. } => Self::One(*relation_oid),
            Message::Truncate(truncate) => Self::Many(&truncate.relation_oids),
            _ => Self::None,
        }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(oid) => std::slice::from_ref(oid),
            Self::Many(oids) => oids,
        }
    }
}

fn whole<'a>(
    message: Option<Message<'a>>,
    reader: Reader<'_>,
    bytes: &[u8],
) -> Result<Message<'a>> {
    match message {
        None => Err(malformed(
            "a message that is malformed, cut short or unknown here",
            bytes,
        )),
        Some(_) if !reader.rest.is_empty() => {
            Err(malformed("a message with bytes after its end", bytes))
        }
        Some(message) => Ok(message),
    }
}

#[cold]
fn malformed(what: &str, bytes: &[u8]) -> Error {
    // Type and length only: what follows may be a row's values.
    let kind = bytes.first().map_or("none".to_owned(), |letter| {
        char::from(*letter).escape_default().to_string()
    });
    Error::new(&code::PG_PROTOCOL, format!("the server sent {what}")).with_detail(format!(
        "logical replication message of type \"{kind}\", {} bytes long",
        bytes.len()
    ))
}

/// One column from the front of a tuple's bytes, and the bytes after it.
#[inline]
pub(super) fn tuple_value(bytes: &[u8]) -> Option<(TupleValue<'_>, &[u8])> {
    let (&kind, rest) = bytes.split_first()?;
    match kind {
        b'n' => Some((TupleValue::Null, rest)),
        b'u' => Some((TupleValue::Unchanged, rest)),
        b't' | b'b' => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
            let (value, rest) = rest.split_at_checked(length)?;
            let value = if kind == b't' {
                TupleValue::Text(value)
            } else {
                TupleValue::Binary(value)
            };
            Some((value, rest))
        }
        _ => None,
    }
}

/// Reads from the front of a message. Every method answers None where the bytes do not fit.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.fixed().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.fixed().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.fixed().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.fixed().map(i32::from_be_bytes)
    }

    fn lsn(&mut self) -> Option<Lsn> {
        self.fixed().map(u64::from_be_bytes).map(Lsn)
    }

    fn unix_micros(&mut self) -> Option<i64> {
        self.fixed()
            .map(i64::from_be_bytes)?
            .checked_add(EPOCH_MICROS)
    }

    /// Text up to a zero byte.
    fn text(&mut self) -> Option<&'a str> {
        let length = self.rest.iter().position(|&byte| byte == 0)?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest.get(1..)?;
        std::str::from_utf8(text).ok()
    }

    /// A schema's name, of which an empty one means the catalog.
    fn namespace(&mut self) -> Option<&'a str> {
        self.text()
            .map(|name| if name.is_empty() { "pg_catalog" } else { name })
    }

    /// What a transaction does, sent whole or in pieces.
    #[inline]
    fn change(&mut self, letter: u8) -> Option<Message<'a>> {
        match letter {
            b'I' => self.insert(),
            b'U' => self.update(),
            b'D' => self.delete(),
            b'R' => self.relation(),
            b'T' => self.truncate(),
            b'Y' => self.type_name(),
            b'M' => self.logical_message(),
            _ => None,
        }
    }

    fn stream_start(&mut self) -> Option<Message<'a>> {
        Some(Message::StreamStart {
            xid: self.u32()?,
            first_segment: match self.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }

    fn stream_commit(&mut self) -> Option<Message<'a>> {
        let xid = self.u32()?;
        let commit = self.commit_body()?;
        Some(Message::StreamCommit { xid, commit })
    }

    fn stream_abort(&mut self) -> Option<Message<'a>> {
        Some(Message::StreamAbort {
            xid: self.u32()?,
            subxid: self.u32()?,
        })
    }

    fn begin(&mut self) -> Option<Message<'a>> {
        Some(Message::Begin(Begin {
            final_lsn: self.lsn()?,
            commit_time_micros: self.unix_micros()?,
            xid: self.u32()?,
        }))
    }

    fn commit(&mut self) -> Option<Message<'a>> {
        self.commit_body().map(Message::Commit)
    }

    /// Flags, not used so far.
    fn flags(&mut self) -> Option<()> {
        (self.u8()? == 0).then_some(())
    }

    fn prepare(&mut self) -> Option<Prepare<'a>> {
        self.flags()?;
        self.prepare_body()
    }

    fn prepare_body(&mut self) -> Option<Prepare<'a>> {
        Some(Prepare {
            prepare_lsn: self.lsn()?,
            end_lsn: self.lsn()?,
            prepare_time_micros: self.unix_micros()?,
            xid: self.u32()?,
            gid: self.text()?,
        })
    }

    fn commit_prepared(&mut self) -> Option<Message<'a>> {
        Some(Message::CommitPrepared(CommitPrepared {
            commit: self.commit_body()?,
            xid: self.u32()?,
            gid: self.text()?,
        }))
    }

    fn rollback_prepared(&mut self) -> Option<Message<'a>> {
        self.flags()?;
        Some(Message::RollbackPrepared(RollbackPrepared {
            prepare_end_lsn: self.lsn()?,
            rollback_end_lsn: self.lsn()?,
            prepare_time_micros: self.unix_micros()?,
            rollback_time_micros: self.unix_micros()?,
            xid: self.u32()?,
            gid: self.text()?,
        }))
    }

    fn commit_body(&mut self) -> Option<Commit> {
        self.flags()?;
        Some(Commit {
            commit_lsn: self.lsn()?,
            end_lsn: self.lsn()?,
            commit_time_micros: self.unix_micros()?,
        })
    }

    fn origin(&mut self) -> Option<Message<'a>> {
        Some(Message::Origin {
            commit_lsn: self.lsn()?,
            name: self.text()?,
        })
    }

    fn type_name(&mut self) -> Option<Message<'a>> {
        Some(Message::Type {
            oid: self.u32()?,
            namespace: self.namespace()?,
            name: self.text()?,
        })
    }

    fn relation(&mut self) -> Option<Message<'a>> {
        let oid = self.u32()?;
        let namespace = self.namespace()?;
        let name = self.text()?;
        let replica_identity = ReplicaIdentity::from_letter(self.u8()?)?;
        let count = self.u16()?;
        let mut columns = Vec::with_capacity(usize::from(count).min(self.rest.len()));
        for _ in 0..count {
            columns.push(RelationColumn {
                key: match self.u8()? {
                    0 => false,
                    1 => true,
                    _ => return None,
                },
                name: self.text()?,
                type_oid: self.u32()?,
                typmod: self.i32()?,
            });
        }
        Some(Message::Relation(Relation {
            oid,
            namespace,
            name,
            replica_identity,
            columns,
        }))
    }

    #[inline]
    fn tuple(&mut self) -> Option<TupleData<'a>> {
        let columns = self.u16()?;
        let start = self.rest;
        for _ in 0..columns {
            self.rest = tuple_value(self.rest)?.1;
        }
        let length = start.len().checked_sub(self.rest.len())?;
        Some(TupleData {
            columns,
            bytes: start.get(..length)?,
        })
    }

    fn new_tuple(&mut self) -> Option<TupleData<'a>> {
        if self.u8()? == b'N' {
            self.tuple()
        } else {
            None
        }
    }

    /// An old tuple if one comes next, else nothing is read.
    fn old_tuple(&mut self) -> Option<OldTuple<'a>> {
        match self.rest {
            [b'K', rest @ ..] => {
                self.rest = rest;
                self.tuple().map(OldTuple::Key)
            }
            [b'O', rest @ ..] => {
                self.rest = rest;
                self.tuple().map(OldTuple::Full)
            }
            _ => Some(OldTuple::None),
        }
    }

    fn insert(&mut self) -> Option<Message<'a>> {
        Some(Message::Insert {
            relation_oid: self.u32()?,
            new: self.new_tuple()?,
        })
    }

    fn update(&mut self) -> Option<Message<'a>> {
        Some(Message::Update {
            relation_oid: self.u32()?,
            old: self.old_tuple()?,
            new: self.new_tuple()?,
        })
    }

    fn delete(&mut self) -> Option<Message<'a>> {
        let relation_oid = self.u32()?;
        match self.old_tuple()? {
            OldTuple::None => None,
            old => Some(Message::Delete { relation_oid, old }),
        }
    }

    fn truncate(&mut self) -> Option<Message<'a>> {
        let count = usize::try_from(self.i32()?).ok()?;
        let options = self.u8()?;
        if options > 3 {
            return None;
        }
        let mut relation_oids = Vec::with_capacity(count.min(self.rest.len() / 4));
        for _ in 0..count {
            relation_oids.push(self.u32()?);
        }
        Some(Message::Truncate(Truncate {
            relation_oids,
            cascade: options & 1 != 0,
            restart_identity: options & 2 != 0,
        }))
    }

    fn logical_message(&mut self) -> Option<Message<'a>> {
        let transactional = match self.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let lsn = self.lsn()?;
        let prefix = self.text()?;
        let length = usize::try_from(self.i32()?).ok()?;
        let (content, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(Message::LogicalMessage {
            transactional,
            lsn,
            prefix,
            content,
        })
    }
}
