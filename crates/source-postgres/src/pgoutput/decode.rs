//! From bytes to [`Message`].

use alluvium_change::{Error, Lsn, Result, code};

use super::{
    Begin, Commit, EPOCH_MICROS, Message, OldTuple, Relation, RelationColumn, ReplicaIdentity,
    Truncate, TupleData, TupleValue,
};

/// Decodes one message.
///
/// # Errors
/// [`code::PG_PROTOCOL`] for bytes that are no complete message of protocol version 1.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>> {
    let mut reader = Reader { rest: bytes };
    let letter = reader
        .u8()
        .ok_or_else(|| malformed("an empty message", bytes))?;
    let message = match letter {
        b'I' => reader.insert(),
        b'U' => reader.update(),
        b'D' => reader.delete(),
        b'B' => reader.begin(),
        b'C' => reader.commit(),
        b'R' => reader.relation(),
        b'T' => reader.truncate(),
        b'Y' => reader.type_name(),
        b'O' => reader.origin(),
        b'M' => reader.logical_message(),
        _ => return Err(malformed("a message of an unknown type", bytes)),
    };
    match message {
        None => Err(malformed("a message that is cut short or malformed", bytes)),
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

    fn begin(&mut self) -> Option<Message<'a>> {
        Some(Message::Begin(Begin {
            final_lsn: self.lsn()?,
            commit_time_micros: self.unix_micros()?,
            xid: self.u32()?,
        }))
    }

    fn commit(&mut self) -> Option<Message<'a>> {
        // Flags, not used so far.
        if self.u8()? != 0 {
            return None;
        }
        Some(Message::Commit(Commit {
            commit_lsn: self.lsn()?,
            end_lsn: self.lsn()?,
            commit_time_micros: self.unix_micros()?,
        }))
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
