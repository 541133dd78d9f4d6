//! Errors as PostgreSQL clients know them.

use alluvium_change::{Code, Error, code};
use pgwire::error::{ErrorInfo, PgWireError};

/// The code of PostgreSQL's for one of ours, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn sqlstate(code: &Code) -> &'static str {
    let known: [(&Code, &str); 12] = [
        (&code::SQL_SYNTAX, "42601"),
        (&code::SQL_TABLE, "42P01"),
        (&code::SQL_COLUMN, "42703"),
        (&code::SQL_WRITES, "25006"),
        (&code::SQL_ENDED, "57014"),
        (&code::SQL, "42000"),
        (&code::LAKE_VERSION, "22023"),
        (&code::MEMORY, "53200"),
        (&code::HTTP_BUSY, "53300"),
        (&code::LAKE_CORRUPT, "XX001"),
        (&code::LAKE_IO, "58030"),
        (&code::BUG, "XX000"),
    ];
    let found = known.iter().find(|(known, _)| *known == code);
    found.map_or("XX000", |(_, state)| state)
}

/// With the code of ours in its message, as everywhere.
pub(super) fn of(error: &Error) -> PgWireError {
    let mut info = plain(
        sqlstate(error.code()),
        format!("{} [{}]", error.message(), error.code().id),
    );
    info.detail = error.detail().map(str::to_owned);
    info.hint = Some(error.hint().to_owned());
    PgWireError::UserError(Box::new(info))
}

/// An error of the conversation itself.
pub(super) fn said(sqlstate: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(plain(sqlstate, message)))
}

/// After which the connection ends.
pub(super) fn fatal(sqlstate: &str, message: impl Into<String>) -> PgWireError {
    let mut info = plain(sqlstate, message);
    "FATAL".clone_into(&mut info.severity);
    info.severity_nonlocalized = Some("FATAL".to_owned());
    PgWireError::UserError(Box::new(info))
}

fn plain(sqlstate: &str, message: impl Into<String>) -> ErrorInfo {
    let mut info = ErrorInfo::new("ERROR".to_owned(), sqlstate.to_owned(), message.into());
    info.severity_nonlocalized = Some("ERROR".to_owned());
    info
}
