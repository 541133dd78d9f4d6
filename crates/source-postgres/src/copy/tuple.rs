//! `COPY (FORMAT binary)` cut into tuples, wherever the messages break. Pure.
//!
//! Invariant: no input makes it panic; a length announced allocates nothing.

use std::ops::Range;

use alluvium_change::{Error, Result, code};
use bytes::{Buf as _, Bytes, BytesMut};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Flags and the length of the extension.
const AFTER_SIGNATURE_BYTES: usize = 8;

/// The fields of a tuple, as places in its bytes; `None` is NULL.
pub(super) type Fields = Vec<Option<Range<usize>>>;

/// What the input held.
enum Step {
    Incomplete,
    Tuple { length: usize },
    End,
}

/// Cuts a stream of chunks into tuples.
#[derive(Debug, Default)]
pub(super) struct TupleCutter {
    pending: Bytes,
    /// The start of a tuple whose end has not come.
    carry: BytesMut,
    header_seen: bool,
    end_seen: bool,
}

impl TupleCutter {
    pub(super) fn push(&mut self, chunk: Bytes) {
        if self.pending.is_empty() && self.carry.is_empty() {
            self.pending = chunk;
            return;
        }
        self.carry.extend_from_slice(&self.pending);
        self.carry.extend_from_slice(&chunk);
        self.pending = self.carry.split().freeze();
    }

    /// Whether the trailer came: a stream that ends without it was cut off.
    pub(super) fn is_at_end(&self) -> bool {
        self.end_seen
    }

    /// Whether `chunk` is exactly the next tuple; its fields are in `fields` then, and it is not to be
    /// pushed.
    pub(super) fn is_one_tuple(
        &self,
        chunk: &[u8],
        columns: usize,
        fields: &mut Fields,
    ) -> Result<bool> {
        let nothing_before = self.pending.is_empty() && self.carry.is_empty();
        if !self.header_seen || self.end_seen || !nothing_before {
            return Ok(false);
        }
        let step = parse(chunk, columns, fields)?;
        Ok(matches!(step, Step::Tuple { length } if length == chunk.len()))
    }

    /// The next whole tuple, its fields in `fields`; `None` until more is pushed.
    pub(super) fn next(&mut self, columns: usize, fields: &mut Fields) -> Result<Option<Bytes>> {
        if !self.header_seen && !self.take_header()? {
            return Ok(None);
        }
        if self.end_seen {
            return Ok(None);
        }
        match parse(&self.pending, columns, fields)? {
            Step::Tuple { length } => Ok(Some(self.pending.split_to(length))),
            Step::End => {
                self.end_seen = true;
                self.pending.clear();
                Ok(None)
            }
            Step::Incomplete => {
                let rest = std::mem::take(&mut self.pending);
                self.carry.extend_from_slice(&rest);
                Ok(None)
            }
        }
    }

    fn take_header(&mut self) -> Result<bool> {
        let mut header = self.pending.clone();
        if header.len() < SIGNATURE.len() + AFTER_SIGNATURE_BYTES {
            return self.wait_for_header();
        }
        if header.split_to(SIGNATURE.len()) != SIGNATURE {
            return Err(damaged("another format than binary"));
        }
        let _flags = header.get_u32();
        let extension = usize::try_from(header.get_u32()).unwrap_or(usize::MAX);
        if header.len() < extension {
            return self.wait_for_header();
        }
        header.advance(extension);
        self.pending = header;
        self.header_seen = true;
        Ok(true)
    }

    fn wait_for_header(&mut self) -> Result<bool> {
        let rest = std::mem::take(&mut self.pending);
        self.carry.extend_from_slice(&rest);
        Ok(false)
    }
}

fn parse(bytes: &[u8], columns: usize, fields: &mut Fields) -> Result<Step> {
    fields.clear();
    let mut rest = bytes;
    let Ok(count) = rest.try_get_i16() else {
        return Ok(Step::Incomplete);
    };
    if count == -1 {
        return Ok(Step::End);
    }
    if usize::try_from(count).ok() != Some(columns) {
        return Err(damaged(&format!(
            "a row of {count} columns instead of {columns}"
        )));
    }
    for _ in 0..columns {
        let Ok(length) = rest.try_get_i32() else {
            return Ok(Step::Incomplete);
        };
        if length == -1 {
            fields.push(None);
            continue;
        }
        let length = usize::try_from(length).map_err(|_| damaged("a negative length"))?;
        let start = bytes.len() - rest.len();
        let Some((_, after)) = rest.split_at_checked(length) else {
            return Ok(Step::Incomplete);
        };
        fields.push(Some(start..start + length));
        rest = after;
    }
    Ok(Step::Tuple {
        length: bytes.len() - rest.len(),
    })
}

pub(super) fn damaged(what: &str) -> Error {
    Error::new(&code::PG_PROTOCOL, format!("the server's copy held {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use proptest::prelude::*;

    type Row = Vec<Option<Vec<u8>>>;

    fn encode(rows: &[Row]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&3_u32.to_be_bytes());
        bytes.extend_from_slice(b"ext");
        for row in rows {
            bytes.extend_from_slice(&i16::try_from(row.len()).unwrap().to_be_bytes());
            for field in row {
                match field {
                    None => bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
                    Some(value) => {
                        bytes.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
                        bytes.extend_from_slice(value);
                    }
                }
            }
        }
        bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        bytes
    }

    fn cut(chunks: &[&[u8]], columns: usize) -> Result<(Vec<Row>, bool)> {
        let (mut cutter, mut fields, mut rows) = (TupleCutter::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            let row = |tuple: &[u8], fields: &Fields| -> Row {
                let field = |range: &Option<Range<usize>>| Some(tuple[range.clone()?].to_vec());
                fields.iter().map(field).collect()
            };
            if cutter.is_one_tuple(chunk, columns, &mut fields)? {
                rows.push(row(chunk, &fields));
                continue;
            }
            cutter.push(Bytes::copy_from_slice(chunk));
            while let Some(tuple) = cutter.next(columns, &mut fields)? {
                rows.push(row(&tuple, &fields));
            }
        }
        Ok((rows, cutter.is_at_end()))
    }

    proptest! {
        #[test]
        fn any_chunks_give_the_same_rows(
            rows in prop::collection::vec(
                prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), 3),
                0..6,
            ),
            step in 1_usize..40,
            whole in any::<bool>(),
        ) {
            let bytes = encode(&rows);
            let mut chunks: Vec<&[u8]> = bytes.chunks(step).collect();
            if whole {
                // As the server sends them: a row each, the first with the header, the end by itself.
                chunks.clear();
                let mut from = 0;
                for ends in 1..=rows.len() + 1 {
                    let so_far = rows.get(..ends).map_or(bytes.len(), |rows| encode(rows).len() - 2);
                    chunks.push(&bytes[from..so_far]);
                    from = so_far;
                }
            }
            let (found, at_end) = cut(&chunks, 3).unwrap();
            prop_assert_eq!(found, rows);
            prop_assert!(at_end);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut with_header = encode(&[]);
            with_header.truncate(with_header.len() - 2);
            with_header.extend_from_slice(&bytes);
            let _ = cut(&[&bytes], 2);
            let _ = cut(&[&with_header], 2);
        }
    }

    #[test]
    fn other_formats_and_shapes_are_refused() {
        assert!(cut(&[b"1\ttext format, not binary\n"], 1).is_err());
        let bytes = encode(&[vec![None, None]]);
        assert!(cut(&[&bytes], 3).is_err());
        let (_, at_end) = cut(&[&bytes[..bytes.len() - 1]], 2).unwrap();
        assert!(!at_end);
    }
}
