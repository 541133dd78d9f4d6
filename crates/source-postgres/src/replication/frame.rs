//! Frames of the replication protocol, cut out of the bytes received. Pure.
//!
//! Invariant: no input makes it panic, and a length that a message announces allocates nothing.

use alluvium_change::{Lsn, Result};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::wire::protocol;

/// Microseconds between 1970-01-01 and 2000-01-01, where PostgreSQL's clock starts.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// Kind, start, end, clock.
const XLOG_DATA_HEADER_BYTES: usize = 25;
/// Kind, end, clock, reply wanted.
const KEEPALIVE_BYTES: usize = 18;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Output of the decoding plugin.
    XLogData {
        wal_start: Lsn,
        /// End of WAL at the server when it was sent.
        wal_end: Lsn,
        data: Bytes,
    },
    /// Everything before `wal_end` that the slot's publications select was sent.
    Keepalive {
        wal_end: Lsn,
        /// The server ends the connection unless a status is sent soon.
        reply_requested: bool,
    },
}

/// The frame inside a `CopyData` message.
pub(crate) fn parse_frame(mut body: Bytes) -> Result<Frame> {
    let truncated = || protocol("a frame that ends too early".to_owned());
    match body.first() {
        Some(b'w') if body.len() >= XLOG_DATA_HEADER_BYTES => {
            body.advance(1);
            let wal_start = Lsn(body.get_u64());
            let wal_end = Lsn(body.get_u64());
            let _clock = body.get_i64();
            Ok(Frame::XLogData {
                wal_start,
                wal_end,
                data: body,
            })
        }
        Some(b'k') if body.len() >= KEEPALIVE_BYTES => {
            body.advance(1);
            let wal_end = Lsn(body.get_u64());
            let _clock = body.get_i64();
            Ok(Frame::Keepalive {
                wal_end,
                reply_requested: body.get_u8() != 0,
            })
        }
        Some(b'w' | b'k') | None => Err(truncated()),
        Some(other) => Err(protocol(format!("a frame of unknown kind {other}"))),
    }
}

/// A standby status update, whole, as sent.
pub(crate) fn put_status(
    buffer: &mut BytesMut,
    received: Lsn,
    flushed: Lsn,
    now_unix_micros: i64,
    reply_requested: bool,
) {
    buffer.put_u8(b'd');
    // Length: itself, kind, three positions, clock, reply wanted.
    buffer.put_i32(4 + 1 + 3 * 8 + 8 + 1);
    buffer.put_u8(b'r');
    buffer.put_u64(received.0);
    buffer.put_u64(flushed.0);
    // "Applied" means the same to a logical slot.
    buffer.put_u64(flushed.0);
    buffer.put_i64(now_unix_micros.saturating_sub(PG_EPOCH_MICROS));
    buffer.put_u8(u8::from(reply_requested));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::wire::take_message;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&i32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn frames_are_cut_wherever_the_bytes_break() {
        let mut xlog = vec![b'w'];
        xlog.extend_from_slice(&7_u64.to_be_bytes());
        xlog.extend_from_slice(&9_u64.to_be_bytes());
        xlog.extend_from_slice(&1_i64.to_be_bytes());
        xlog.extend_from_slice(b"data");
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&11_u64.to_be_bytes());
        keepalive.extend_from_slice(&1_i64.to_be_bytes());
        keepalive.push(1);
        let mut bytes = message(b'd', &xlog);
        bytes.extend(message(b'd', &keepalive));
        for cut in 0..bytes.len() {
            let mut buffer = BytesMut::new();
            let mut frames = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(message) = take_message(&mut buffer).unwrap() {
                    frames.push(parse_frame(message.body).unwrap());
                }
            }
            let data = Bytes::from_static(b"data");
            assert_eq!(
                frames,
                [
                    Frame::XLogData {
                        wal_start: Lsn(7),
                        wal_end: Lsn(9),
                        data
                    },
                    Frame::Keepalive {
                        wal_end: Lsn(11),
                        reply_requested: true
                    },
                ]
            );
        }
    }

    #[test]
    fn a_status_is_a_message_of_its_announced_length() {
        let mut buffer = BytesMut::new();
        put_status(&mut buffer, Lsn(5), Lsn(4), PG_EPOCH_MICROS + 1, true);
        let body = take_message(&mut buffer).unwrap().unwrap().body;
        assert!(buffer.is_empty());
        let mut expected = vec![b'r'];
        for number in [5_u64, 4, 4, 1] {
            expected.extend_from_slice(&number.to_be_bytes());
        }
        expected.push(1);
        assert_eq!(&body[..], &expected[..]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(message)) = take_message(&mut buffer) {
                let _ = parse_frame(message.body);
            }
            let _ = parse_frame(Bytes::from(bytes));
        }
    }
}
