//! Messages of the server, cut out of the bytes received. Pure.
//!
//! Invariant: no input makes it panic, and a length that a message announces allocates nothing.

use alluvium_change::{Error, Result, code};
use bytes::{Buf as _, Bytes, BytesMut};

/// Tag and length.
pub(crate) const HEADER_BYTES: usize = 5;

/// A message of the server: its tag and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) body: Bytes,
}

/// Takes the first whole message off `buffer`; `None` until it is whole.
pub(crate) fn take_message(buffer: &mut BytesMut) -> Result<Option<Message>> {
    let Some((tag, body)) = first_message(buffer)? else {
        return Ok(None);
    };
    let mut body = buffer.split_to(HEADER_BYTES + body.len()).freeze();
    body.advance(HEADER_BYTES);
    Ok(Some(Message { tag, body }))
}

/// Tag and body of the first message of `bytes`; `None` unless it is whole.
pub(crate) fn first_message(bytes: &[u8]) -> Result<Option<(u8, &[u8])>> {
    let Some((mut header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Ok(None);
    };
    let tag = header.get_u8();
    let length = header.get_i32();
    let body_bytes = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(4))
        .ok_or_else(|| protocol(format!("a message of length {length}")))?;
    Ok(rest.get(..body_bytes).map(|body| (tag, body)))
}

pub(crate) fn protocol(what: String) -> Error {
    Error::new(&code::PG_PROTOCOL, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use bytes::BufMut as _;

    use super::*;

    #[test]
    fn a_length_below_four_is_refused() {
        for length in [i32::MIN, -1, 0, 3] {
            let mut buffer = BytesMut::from(&b"d"[..]);
            buffer.put_i32(length);
            assert!(
                take_message(&mut buffer)
                    .unwrap_err()
                    .is(&code::PG_PROTOCOL)
            );
        }
    }
}
