//! The settings a session has to have, whatever server, database and role say.
//!
//! Decoding relies on every one of them; the walsender's session gets the same as the sessions
//! that copy, so a value has one text everywhere.

use std::fmt::Write as _;

/// Settings every supported version knows. `search_path` is empty, so that only `pg_catalog` is
/// found unqualified and `regclass` and its kin always print qualified names; `row_security` off
/// turns a policy that would hide rows into an error.
pub(crate) const SETTINGS: [(&str, &str); 13] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("standard_conforming_strings", "on"),
    ("search_path", ""),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Sets all of [`SETTINGS`], and switches off the time limits that only newer versions have.
pub(crate) fn settings_sql() -> String {
    let mut sql = String::new();
    for (name, value) in SETTINGS {
        // Writing to a String cannot fail.
        let _ = match value {
            "" => write!(sql, "SET {name} = '';"),
            "ISO, YMD" => write!(sql, "SET {name} = {value};"),
            _ => write!(sql, "SET {name} = '{value}';"),
        };
    }
    sql.push_str(NEWER_TIMEOUTS_SQL);
    sql
}

/// `idle_session_timeout` (14) and `transaction_timeout` (17) would end a long copy.
pub(crate) const NEWER_TIMEOUTS_SQL: &str = "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings \
     WHERE name IN ('idle_session_timeout', 'transaction_timeout')";
