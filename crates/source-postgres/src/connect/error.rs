//! What a server's refusal means: SQLSTATE to error code, in one place.
//!
//! Decided by SQLSTATE and by the name of the server's routine, never by the message: messages
//! are translated (`lc_messages` can be set by a superuser only).

use std::error::Error as StdError;
use std::fmt;
use std::io;

use alluvium_change::{Code, Error, code};
use tokio_postgres::error::DbError;

/// An error as the server sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The C function that raised it.
    pub routine: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)
    }
}

impl StdError for ServerError {}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> Self {
        Self {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(ToOwned::to_owned),
            hint: error.hint().map(ToOwned::to_owned),
            routine: error.routine().map(ToOwned::to_owned),
        }
    }
}

impl ServerError {
    /// From the fields of an `ErrorResponse`; missing or damaged fields stay empty.
    pub(crate) fn from_fields(body: &[u8]) -> Self {
        let mut error = Self::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((kind, text)) = field.split_first() else {
                continue;
            };
            let text = || String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => error.sqlstate = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                b'H' => error.hint = Some(text()),
                b'R' => error.routine = Some(text()),
                _ => {}
            }
        }
        error
    }

    /// Our error for it, met while `doing` ("reading the catalog").
    #[must_use]
    pub fn into_error(self, doing: &str) -> Error {
        let code = self.code();
        let mut error = Error::new(code, format!("{doing}: {}", self.message));
        let detail = match (&self.detail, code.id == code::PG_QUERY.id) {
            (Some(detail), _) => Some(format!("{detail} (SQLSTATE {})", self.sqlstate)),
            (None, true) => Some(format!("SQLSTATE {}", self.sqlstate)),
            (None, false) => None,
        };
        if let Some(detail) = detail {
            error = error.with_detail(detail);
        }
        if let Some(hint) = &self.hint {
            error = error.with_hint(hint.clone());
        }
        error.with_source(self)
    }

    fn code(&self) -> &'static Code {
        let routine = self.routine.as_deref().unwrap_or("");
        match self.sqlstate.as_str() {
            "28P01" | "28000" => &code::PG_AUTH,
            "3D000" => &code::PG_DATABASE,
            "42501" => &code::PG_RIGHTS,
            "55006" if routine.starts_with("ReplicationSlot") => &code::PG_SLOT_ACTIVE,
            // All replication slots in use; all walsenders in use.
            "53400" if routine.starts_with("ReplicationSlot") => &code::PG_SLOTS_FULL,
            "53300" if routine == "InitWalSenderSlot" || routine == "InitProcess" => {
                &code::PG_SLOTS_FULL
            }
            "55000" if routine == "CheckLogicalDecodingRequirements" => &code::PG_WAL_LEVEL,
            "42704" if routine.starts_with("get_publication") => &code::PG_PUBLICATION,
            // Starting up, shutting down, out of connections.
            "57P03" | "53300" => &code::PG_CONNECT,
            "57P01" | "57P02" => &code::PG_CONNECTION_LOST,
            state if state.starts_with("08") => &code::PG_CONNECTION_LOST,
            _ => &code::PG_QUERY,
        }
    }
}

/// The server's own error inside `error`, when the server sent one.
#[must_use]
pub fn server_error(error: &Error) -> Option<&ServerError> {
    let mut source = StdError::source(error);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<ServerError>() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}

/// Our error for one of `tokio_postgres`, met while `doing`.
pub fn map_error(error: tokio_postgres::Error, doing: &str) -> Error {
    if let Some(db) = error.as_db_error() {
        return ServerError::from(db).into_error(doing);
    }
    if error.is_closed() {
        return Error::new(
            &code::PG_CONNECTION_LOST,
            format!("{doing}: the connection was lost"),
        );
    }
    let cause = error.source();
    let is_io = cause.is_some_and(|cause| cause.is::<io::Error>());
    let text = cause.map_or_else(|| error.to_string(), ToString::to_string);
    // The kind of a tokio_postgres error can be told by its text only, which is not translated.
    let code = match error.to_string().as_str() {
        "authentication error" | "invalid configuration" => &code::PG_AUTH,
        "error parsing response from server" | "unexpected message from server" => {
            &code::PG_PROTOCOL
        }
        _ if is_io => &code::PG_CONNECTION_LOST,
        _ => &code::PG_QUERY,
    };
    Error::new(code, format!("{doing}: {text}")).with_source(error)
}

/// Our error for a broken socket, met while `doing`.
pub(crate) fn map_io(error: io::Error, doing: &str) -> Error {
    Error::new(
        &code::PG_CONNECTION_LOST,
        format!("{doing}: the connection was lost"),
    )
    .with_detail(error.to_string())
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_an_error_response() {
        let body = b"SFATAL\0C55006\0Mslot is active\0Dd\0RReplicationSlotAcquire\0\0";
        let error = ServerError::from_fields(body);
        assert_eq!(error.sqlstate, "55006");
        assert_eq!(error.detail.as_deref(), Some("d"));
        assert!(error.into_error("starting").is(&code::PG_SLOT_ACTIVE));
        assert_eq!(
            ServerError::from_fields(b"\0\0\xff\0C"),
            ServerError::from_fields(b"")
        );
    }

    #[test]
    fn sqlstates_become_codes_and_keep_the_servers_words() {
        let error = ServerError {
            sqlstate: "42P01".into(),
            message: "no such table".into(),
            hint: Some("look again".into()),
            ..ServerError::default()
        };
        let mapped = error.clone().into_error("reading");
        assert!(mapped.is(&code::PG_QUERY));
        assert_eq!(mapped.message(), "reading: no such table");
        assert_eq!(mapped.detail(), Some("SQLSTATE 42P01"));
        assert_eq!(mapped.hint(), "look again");
        assert_eq!(server_error(&mapped), Some(&error));
    }
}
