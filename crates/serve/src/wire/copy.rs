//! `COPY … TO STDOUT`: rows as lines or as PostgreSQL's binary file.
//!
//! The forms: <https://www.postgresql.org/docs/current/sql-copy.html>.

use std::fmt::Debug;

use alluvium_query::{CopyForm, CopyKind};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{Sink, SinkExt as _, StreamExt as _};
use pgwire::api::ClientInfo;
use pgwire::api::query::send_execution_response;
use pgwire::api::results::{QueryResponse, Tag};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};

/// Signature, flags, length of an extension.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_TRAILER: &[u8] = &[0xff, 0xff];

/// Rows on their way out as a file.
pub(super) struct Copied {
    /// Of values in text, or in binary, as the form has them.
    pub(super) rows: QueryResponse,
    pub(super) form: CopyForm,
}

/// Sends all rows, a message each; what comes before the first row comes with it.
pub(super) async fn send<C>(client: &mut C, mut copied: Copied) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let form = &copied.form;
    let fields = copied.rows.row_schema();
    let is_binary = form.kind == CopyKind::Binary;
    let columns = i16::try_from(fields.len()).unwrap_or(i16::MAX);
    let begin = CopyOutResponse::new(
        is_binary.into(),
        columns,
        vec![is_binary.into(); fields.len()],
    );
    client
        .feed(PgWireBackendMessage::CopyOutResponse(begin))
        .await?;
    let mut out = BytesMut::new();
    if is_binary {
        out.put_slice(BINARY_HEADER);
    } else if form.header {
        let names = fields.iter().map(|field| Some(field.name().as_bytes()));
        line(form, names, &mut out);
    }
    let mut rows = 0;
    while let Some(row) = copied.rows.data_rows.next().await {
        let row = row?;
        if is_binary {
            out.put_i16(row.field_count);
            out.put_slice(&row.data);
        } else {
            line(form, Values(&row.data), &mut out);
        }
        send_data(client, out.split().freeze()).await?;
        rows += 1;
    }
    if is_binary {
        out.put_slice(BINARY_TRAILER);
    }
    if !out.is_empty() {
        send_data(client, out.freeze()).await?;
    }
    client
        .feed(PgWireBackendMessage::CopyDone(CopyDone::new()))
        .await?;
    send_execution_response(client, Tag::new("COPY").with_rows(rows)).await
}

async fn send_data<C>(client: &mut C, data: Bytes) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    client
        .feed(PgWireBackendMessage::CopyData(CopyData::new(data)))
        .await?;
    Ok(())
}

/// The values of a row as it stands in a `DataRow`; None for NULL.
struct Values<'a>(&'a [u8]);

impl<'a> Iterator for Values<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.len() < 4 {
            return None;
        }
        let Ok(length) = usize::try_from(self.0.get_i32()) else {
            return Some(None);
        };
        let (value, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Some(value))
    }
}

fn line<'a>(form: &CopyForm, values: impl Iterator<Item = Option<&'a [u8]>>, out: &mut BytesMut) {
    let mut values = values.enumerate().peekable();
    while let Some((nth, value)) = values.next() {
        if nth > 0 {
            out.put_u8(form.delimiter);
        }
        let is_alone = nth == 0 && values.peek().is_none();
        match (value, form.kind) {
            (None, _) => out.put_slice(form.null.as_bytes()),
            (Some(value), CopyKind::Csv) => csv(form, value, is_alone, out),
            (Some(value), _) => escaped(form, value, out),
        }
    }
    out.put_u8(b'\n');
}

/// In quotes where it would be read otherwise: as several values, as NULL, as the end of the file.
fn csv(form: &CopyForm, value: &[u8], is_alone: bool, out: &mut BytesMut) {
    let is_special = |byte: &u8| *byte == form.delimiter || matches!(byte, b'"' | b'\n' | b'\r');
    let is_mistaken = value == form.null.as_bytes() || (is_alone && value == b"\\.");
    if !is_mistaken && !value.iter().any(is_special) {
        return out.put_slice(value);
    }
    out.put_u8(b'"');
    for &byte in value {
        if byte == b'"' {
            out.put_u8(b'"');
        }
        out.put_u8(byte);
    }
    out.put_u8(b'"');
}

fn escaped(form: &CopyForm, value: &[u8], out: &mut BytesMut) {
    for &byte in value {
        let letter = match byte {
            b'\\' => b'\\',
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x0b => b'v',
            _ if byte == form.delimiter => byte,
            _ => {
                out.put_u8(byte);
                continue;
            }
        };
        out.put_slice(&[b'\\', letter]);
    }
}
