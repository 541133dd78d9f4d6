//! Every error code: what it means in a line, whether trying again helps, the usual next step.
//!
//! Each code has a page `docs/errors/<ID>.md`; `cargo xtask check` fails without it.

/// Whether doing the same again may succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It passes by itself: the pipeline tries again with growing pauses.
    Backoff,
    /// Somebody has to change something first; then the same command works.
    Manual,
    /// Never, as things stand.
    Never,
}

/// A kind of error.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `AL-<AREA>-<NUMBER>`; never reused for another meaning.
    pub id: &'static str,
    /// One line, for `alluvium errors`.
    pub title: &'static str,
    /// The usual next step, when the place of the error knows no better one.
    pub hint: &'static str,
    pub retry: Retry,
}

macro_rules! codes {
    ($($name:ident $id:literal $retry:ident $title:literal, $hint:literal;)*) => {
        $(
            #[doc = $title]
            pub static $name: Code =
                Code { id: $id, title: $title, hint: $hint, retry: Retry::$retry };
        )*
        /// All codes, by id.
        pub static ALL: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    BUG "AL-BUG-001" Never "a law of the program is broken",
        "this is a bug in alluvium, please report it with the output of the command run with -v";

    CONFIG_READ "AL-CONFIG-001" Manual "the project file cannot be read",
        "write one with: alluvium init";
    CONFIG_SYNTAX "AL-CONFIG-002" Manual "the project file is not valid TOML",
        "mend the line named above";
    CONFIG_KEY "AL-CONFIG-003" Manual "the project file has an unknown key",
        "see docs/reference/config.md for all keys";
    CONFIG_VALUE "AL-CONFIG-004" Manual "a setting has a value it cannot have",
        "see docs/reference/config.md for what it takes";
    CONFIG_ENV "AL-CONFIG-005" Manual "an environment variable named in the project file is not set",
        "set the variable, or write the value";
    CONFIG_NAMES "AL-CONFIG-006" Manual "two tables would share one directory of the lake",
        "give one of them another name: [tables.\"schema.table\"] name = \"...\"";
    USAGE "AL-CLI-001" Manual "the command cannot do what was asked",
        "see alluvium help";
    OUTPUT "AL-CLI-002" Manual "the output cannot be written",
        "check where standard output goes: disk space, rights, a closed pipe";
    SQL "AL-SQL-001" Manual "the query failed",
        "see what tables and columns there are: alluvium tables, DESCRIBE <table>";
    SQL_SYNTAX "AL-SQL-002" Manual "the query is not SQL",
        "check the statement's syntax";
    SQL_TABLE "AL-SQL-003" Manual "the table does not exist",
        "list tables with: alluvium tables";
    SQL_COLUMN "AL-SQL-004" Manual "the column does not exist",
        "see a table's columns with: DESCRIBE <table>";
    SQL_WRITES "AL-SQL-005" Never "the statement would write",
        "the lake is written by alluvium run alone; change the data at its source";
    SQL_ENDED "AL-SQL-006" Manual "the query was ended before it was done",
        "run it again";

    HTTP_LISTEN "AL-HTTP-001" Manual "the HTTP server cannot listen at its address",
        "choose another port: [serve.http] listen = \"127.0.0.1:0\" takes any free one";
    HTTP_REQUEST "AL-HTTP-002" Manual "the HTTP request cannot be answered as it was made",
        "see docs/reference/http.md for what there is";
    HTTP_BUSY "AL-HTTP-003" Backoff "too many queries at the same time",
        "try again later, or raise [serve] sql_concurrency";
    WIRE_LISTEN "AL-WIRE-001" Manual "the PostgreSQL server cannot listen at its address",
        "choose another port: [serve.pg] listen = \"127.0.0.1:0\" takes any free one";

    PG_CONNECT "AL-PG-001" Backoff "the server cannot be reached",
        "check host and port, and that the server is running";
    PG_AUTH "AL-PG-002" Manual "the server refused the user or the password",
        "check PGPASSWORD, ~/.pgpass or password_file, and pg_hba.conf";
    PG_DATABASE "AL-PG-003" Manual "the database does not exist",
        "check the end of the url";
    PG_TLS "AL-PG-004" Manual "an encrypted connection could not be made as asked",
        "check sslmode and sslrootcert";
    PG_RIGHTS "AL-PG-005" Manual "the role lacks a right",
        "run: alluvium doctor";
    PG_WAL_LEVEL "AL-PG-006" Manual "wal_level is not logical",
        "ALTER SYSTEM SET wal_level = logical; then restart the server";
    PG_VERSION "AL-PG-007" Never "the server is older than PostgreSQL 13",
        "upgrade the server";
    PG_NO_TABLES "AL-PG-008" Manual "no table matches the patterns",
        "check tables and exclude in the project file";
    PG_PUBLICATION "AL-PG-009" Manual "the publication cannot be used",
        "run: alluvium doctor";
    PG_SLOTS_FULL "AL-PG-010" Manual "the server has no free replication slot or sender",
        "drop an unused slot, or raise max_replication_slots and max_wal_senders";
    PG_SLOT_LOST "AL-PG-011" Manual "the replication slot is gone or no longer usable: changes are missing",
        "copy the tables afresh with: alluvium resync --all";
    PG_SLOT_ACTIVE "AL-PG-012" Backoff "the replication slot is in use",
        "stop the other reader of the slot, or give this project a slot of its own";
    PG_OTHER_SYSTEM "AL-PG-013" Manual "the server is not the one the lake was made from",
        "point url at the right server, or use another lake";
    PG_BEHIND "AL-PG-014" Manual "the server is behind the lake: it lost transactions that were already streamed",
        "copy the tables afresh with: alluvium resync --all";
    PG_CONNECTION_LOST "AL-PG-015" Backoff "the connection was lost",
        "check the server's log";
    PG_PROTOCOL "AL-PG-016" Never "the server sent something that cannot be decoded",
        "please report it with the output of the command run with -v";
    PG_QUERY "AL-PG-017" Manual "a query on the source failed",
        "check the server's log";
    PG_URL "AL-PG-018" Manual "the connection url cannot be understood",
        "write postgres://user@host:5432/database?sslmode=prefer";
    PG_TUPLES "AL-PG-019" Manual "the stream cannot send values in binary form",
        "set tuples = \"auto\" in [source.<name>]";
    PG_PREPARED_LOST "AL-PG-020" Manual "a prepared transaction was committed of which the server did not send the changes",
        "make a new slot: drop this one with SELECT pg_drop_replication_slot('...'), then: alluvium resync --all, then: alluvium run";

    VALUE "AL-VALUE-001" Manual "a value cannot be held by its Delta type",
        "choose how to keep such values: [tables.\"schema.table\".column.\"name\"] on_invalid = \"clamp\" | \"null\" | \"string\", then: alluvium resync <table>";
    SCHEMA_CHANGED "AL-SCHEMA-001" Manual "the source table changed in a way the stream cannot follow",
        "copy the table afresh with: alluvium resync <table>";
    SCHEMA_COLUMN "AL-SCHEMA-002" Manual "a column cannot be represented",
        "leave it out: [tables.\"schema.table\"] exclude_columns = [...]";
    CONFLICT "AL-MERGE-001" Manual "a change does not fit the row the lake holds",
        "copy the table afresh with: alluvium resync <table>, or set on_conflict = \"repair\"";
    COPY_AGAIN "AL-COPY-001" Backoff "rows copied under different snapshots cannot be brought together",
        "nothing to do: the pipeline copies the table again by itself";
    NO_IDENTITY "AL-MERGE-002" Manual "an update or delete came for a table whose rows have no identity",
        "ALTER TABLE ... ADD PRIMARY KEY, or ALTER TABLE ... REPLICA IDENTITY FULL, then: alluvium resync <table>";

    LAKE_IO "AL-LAKE-001" Backoff "the lake cannot be written or read",
        "check the disk and the rights on the directory";
    LAKE_FULL "AL-LAKE-002" Backoff "the disk of the lake is full",
        "make room, then start again: nothing is lost";
    LAKE_CORRUPT "AL-LAKE-003" Manual "a file of the lake is missing or damaged",
        "copy the table afresh with: alluvium resync <table>";
    LAKE_FOREIGN "AL-LAKE-004" Manual "another program changed a table of the lake",
        "copy the table afresh with: alluvium resync <table>";
    LAKE_LOCKED "AL-LAKE-005" Manual "another alluvium is working on this lake",
        "stop it first, or give this project a lake of its own";
    LAKE_NOT_OURS "AL-LAKE-006" Manual "the table in the lake belongs to another source",
        "use another lake path, or give the table another name";
    LAKE_READ_ONLY "AL-LAKE-007" Manual "the lake cannot be written",
        "check the rights on the directory";
    LAKE_VERSION "AL-LAKE-008" Manual "a table does not have the version asked for",
        "ask for one that it has";
    MEMORY "AL-LIMIT-001" Manual "the memory budget is too small",
        "raise [limits] memory";
    SPILL "AL-LIMIT-002" Manual "a large transaction cannot be kept on the disk of the project",
        "make room where the project file is, then start again: nothing is lost";
}

/// The code with this id, upper or lower case.
#[must_use]
pub fn find(id: &str) -> Option<&'static Code> {
    ALL.iter()
        .copied()
        .find(|code| code.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_well_formed() {
        let mut seen = HashSet::new();
        for code in ALL {
            assert!(seen.insert(code.id), "{} is used twice", code.id);
            let parts: Vec<&str> = code.id.split('-').collect();
            assert!(
                matches!(parts.as_slice(), ["AL", _, n] if n.len() == 3),
                "{}",
                code.id
            );
            assert!(
                !code.hint.is_empty() && !code.title.is_empty(),
                "{}",
                code.id
            );
        }
        assert_eq!(find("al-pg-001"), Some(&PG_CONNECT));
    }
}
