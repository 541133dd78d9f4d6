//! `[serve]`: the servers inside `alluvium run`. There is none unless it is asked for.
//!
//! Invariant: an address that other machines can reach is taken only where who comes must say who they
//! are, or with `allow_remote`: whoever reaches a server can read the lake.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium_change::Result;
use serde::Deserialize;

use super::Limits;
use super::load::{parse_bytes, value_error};
use super::maintain::duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServeFile {
    sql_concurrency: Option<u32>,
    sql_memory: Option<String>,
    #[serde(deserialize_with = "duration")]
    statement_timeout: Option<Duration>,
    http: Option<HttpFile>,
    pg: Option<PgFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpFile {
    listen: String,
    #[serde(default)]
    allow_remote: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PgFile {
    listen: String,
    #[serde(default)]
    users: BTreeMap<String, String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    max_connections: Option<u32>,
}

/// May hold passwords: never printed.
impl fmt::Debug for PgFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgFile")
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

/// The servers, and the queries they run.
#[derive(Debug, Clone)]
pub struct ServeSettings {
    pub sql: SqlSettings,
    pub http: Option<HttpSettings>,
    pub pg: Option<PgSettings>,
}

impl ServeSettings {
    /// Whether anybody can query the running pipeline.
    #[must_use]
    pub fn answers_queries(&self) -> bool {
        self.http.is_some() || self.pg.is_some()
    }
}

/// Queries of all servers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlSettings {
    /// Queries that run at the same time.
    pub concurrency: u32,
    /// What they may use together for sorting, grouping and joining; beyond it they spill.
    pub memory_bytes: u64,
    /// After which a query is given up.
    pub timeout: Option<Duration>,
}

/// The HTTP server's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpSettings {
    /// Port 0 is any free one.
    pub listen: SocketAddr,
}

/// Settings of the server that speaks PostgreSQL's protocol.
#[derive(Clone, PartialEq, Eq)]
pub struct PgSettings {
    /// Port 0 is any free one.
    pub listen: SocketAddr,
    /// Passwords by name; without any, everybody is let in.
    pub users: BTreeMap<String, String>,
    /// PEM files: the certificate with those that vouch for it, and its key.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub max_connections: u32,
}

/// Holds passwords: never printed.
impl fmt::Debug for PgSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgSettings")
            .field("listen", &self.listen)
            .field("users", &self.users.keys())
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl ServeFile {
    /// `expand` puts in the environment's variables.
    pub(super) fn settings(
        &self,
        limits: &Limits,
        file: &Path,
        expand: &impl Fn(&str) -> Result<String>,
    ) -> Result<ServeSettings> {
        let concurrency = self.sql_concurrency.unwrap_or(4);
        if !(1..=64).contains(&concurrency) {
            let message = "[serve] sql_concurrency cannot be";
            return Err(value_error(file, message, "choose 1 to 64"));
        }
        let memory_bytes = match &self.sql_memory {
            None => limits.memory_bytes / 4,
            Some(text) => parse_bytes(text).ok_or_else(|| {
                let message = format!("[serve] sql_memory = \"{text}\" is not a size");
                value_error(
                    file,
                    &message,
                    "write a number with a unit, such as \"256MiB\"",
                )
            })?,
        };
        let sql = SqlSettings {
            concurrency,
            memory_bytes,
            timeout: self.statement_timeout,
        };
        let http = self
            .http
            .as_ref()
            .map(|http| http.settings(file))
            .transpose()?;
        let pg = self
            .pg
            .as_ref()
            .map(|pg| pg.settings(file, expand))
            .transpose()?;
        Ok(ServeSettings { sql, http, pg })
    }
}

impl HttpFile {
    fn settings(&self, file: &Path) -> Result<HttpSettings> {
        let listen = address("[serve.http]", &self.listen, file)?;
        if !listen.ip().is_loopback() && !self.allow_remote {
            let message =
                format!("[serve.http] listen = \"{listen}\" can be reached from other machines");
            let error = value_error(
                file,
                &message,
                "listen on 127.0.0.1, behind a proxy that authenticates if need be; or write allow_remote = true",
            );
            let detail = format!(
                "{}: there is no authentication yet, so whoever reaches the server can read every table",
                error.detail().unwrap_or_default()
            );
            return Err(error.with_detail(detail));
        }
        Ok(HttpSettings { listen })
    }
}

impl PgFile {
    fn settings(
        &self,
        file: &Path,
        expand: &impl Fn(&str) -> Result<String>,
    ) -> Result<PgSettings> {
        let listen = address("[serve.pg]", &self.listen, file)?;
        let users = self.users.iter();
        let users: BTreeMap<String, String> = users
            .map(|(name, password)| Ok((name.clone(), expand(password)?)))
            .collect::<Result<_>>()?;
        if !listen.ip().is_loopback() && users.is_empty() {
            return Err(value_error(
                file,
                &format!(
                    "[serve.pg] listen = \"{listen}\" can be reached from other machines, and anybody would be let in"
                ),
                "name who may come: [serve.pg.users] with grafana = \"${GRAFANA_PASSWORD}\"; or listen on 127.0.0.1",
            ));
        }
        if let Some((name, _)) = users.iter().find(|(_, password)| password.is_empty()) {
            let message = format!("[serve.pg.users] \"{name}\" has an empty password");
            return Err(value_error(
                file,
                &message,
                "give it one, best as \"${VARIABLE}\" of the environment",
            ));
        }
        let beside = |path: &PathBuf| file.parent().unwrap_or(Path::new(".")).join(path);
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((beside(cert), beside(key))),
            (None, None) => None,
            _ => {
                let message = "[serve.pg] has one of tls_cert and tls_key";
                return Err(value_error(file, message, "write both, or none"));
            }
        };
        let max_connections = self.max_connections.unwrap_or(250);
        if !(1..=10_000).contains(&max_connections) {
            let message = "[serve.pg] max_connections cannot be";
            return Err(value_error(file, message, "choose 1 to 10000"));
        }
        Ok(PgSettings {
            listen,
            users,
            tls,
            max_connections,
        })
    }
}

fn address(section: &str, text: &str, file: &Path) -> Result<SocketAddr> {
    let parsed = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| {
        value_error(
            file,
            &format!("{section} listen = \"{text}\" is not an address"),
            "write an IP address and a port, such as \"127.0.0.1:9187\"; port 0 is any free one",
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use alluvium_change::code;

    use super::*;
    use crate::project::{Project, parse};

    fn read(serve: &str) -> Result<Project> {
        let text = format!(
            "[source.shop]\ntype = \"postgres\"\nurl = \"postgres://u@h/db\"\n[lake]\npath = \"l\"\n{serve}"
        );
        parse(&text, Path::new("/p/alluvium.toml"), |_| None)
    }

    #[test]
    fn there_is_no_server_unless_asked_for() {
        assert!(!read("").unwrap().serve.answers_queries());
        assert!(!read("[serve]\n").unwrap().serve.answers_queries());
        let serve = read("[serve.http]\nlisten = \"127.0.0.1:9187\"\n")
            .unwrap()
            .serve;
        assert_eq!(serve.http.unwrap().listen.to_string(), "127.0.0.1:9187");
        assert_eq!(
            (serve.sql.concurrency, serve.sql.memory_bytes),
            (4, 1 << 28)
        );
        for listen in ["localhost:0", "[::1]:0", "127.9.9.9:1"] {
            read(&format!("[serve.http]\nlisten = \"{listen}\"\n")).unwrap();
        }
    }

    #[test]
    fn an_address_others_can_reach_needs_a_word() {
        for listen in ["0.0.0.0:9187", "[::]:9187", "192.0.2.7:80"] {
            let text = format!("[serve.http]\nlisten = \"{listen}\"\n");
            let error = read(&text).unwrap_err();
            assert!(error.is(&code::CONFIG_VALUE), "{error}");
            assert!(error.detail().unwrap().contains("no authentication"));
            assert!(error.hint().contains("allow_remote = true"));
            let allowed = read(&format!("{text}allow_remote = true\n")).unwrap();
            assert_eq!(allowed.serve.http.unwrap().listen.to_string(), listen);
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        let listen = "listen = \"127.0.0.1:0\"\n";
        for text in [
            "",
            "listen = \"here\"\n",
            "listen = \"127.0.0.1\"\n",
            &format!("{listen}port = 1\n"),
        ] {
            for server in ["http", "pg"] {
                let text = format!("[serve.{server}]\n{text}");
                assert!(read(&text).is_err(), "{text} was taken");
            }
        }
        for text in [
            "[serve]\nsql_concurrency = 0\n",
            "[serve]\nsql_memory = \"much\"\n",
            "[serve]\nstatement_timeout = \"soon\"\n",
            &format!("[serve.pg]\n{listen}tls_cert = \"c.pem\"\n"),
            &format!("[serve.pg]\n{listen}max_connections = 0\n"),
            &format!("[serve.pg]\n{listen}[serve.pg.users]\nann = \"\"\n"),
        ] {
            assert!(read(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn who_comes_from_elsewhere_has_a_password() {
        let pg = "[serve.pg]\nlisten = \"0.0.0.0:5433\"\n";
        let error = read(pg).unwrap_err();
        assert!(error.hint().contains("[serve.pg.users]"), "{error}");
        let read = read(&format!("{pg}[serve.pg.users]\nann = \"secret\"\n")).unwrap();
        let settings = read.serve.pg.unwrap();
        assert_eq!(settings.users["ann"], "secret");
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
