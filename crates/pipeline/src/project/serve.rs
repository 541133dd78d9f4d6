//! `[serve.http]`: the HTTP server inside `alluvium run`. There is none unless it is asked for.
//!
//! Invariant: an address that other machines can reach is taken only with `allow_remote`, because
//! whoever reaches the server can read the lake.

use std::net::SocketAddr;
use std::path::Path;

use alluvium_change::Result;
use serde::Deserialize;

use super::Limits;
use super::load::{parse_bytes, value_error};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServeFile {
    http: Option<HttpFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpFile {
    listen: String,
    #[serde(default)]
    allow_remote: bool,
    sql_concurrency: Option<u32>,
    sql_memory: Option<String>,
}

/// The HTTP server's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpSettings {
    /// Port 0 is any free one.
    pub listen: SocketAddr,
    /// Queries that run at the same time.
    pub sql_concurrency: u32,
    /// What they may use together for sorting, grouping and joining; beyond it they spill.
    pub sql_memory_bytes: u64,
}

impl ServeFile {
    pub(super) fn settings(&self, limits: &Limits, file: &Path) -> Result<Option<HttpSettings>> {
        let Some(http) = &self.http else {
            return Ok(None);
        };
        let listen = address(&http.listen).ok_or_else(|| {
            value_error(
                file,
                &format!("[serve.http] listen = \"{}\" is not an address", http.listen),
                "write an IP address and a port, such as \"127.0.0.1:9187\"; port 0 is any free one",
            )
        })?;
        if !listen.ip().is_loopback() && !http.allow_remote {
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
        let sql_concurrency = http.sql_concurrency.unwrap_or(4);
        if !(1..=64).contains(&sql_concurrency) {
            return Err(value_error(
                file,
                "[serve.http] sql_concurrency cannot be",
                "choose 1 to 64",
            ));
        }
        let sql_memory_bytes = match &http.sql_memory {
            None => limits.memory_bytes / 4,
            Some(text) => parse_bytes(text).ok_or_else(|| {
                value_error(
                    file,
                    &format!("[serve.http] sql_memory = \"{text}\" is not a size"),
                    "write a number with a unit, such as \"256MiB\"",
                )
            })?,
        };
        Ok(Some(HttpSettings {
            listen,
            sql_concurrency,
            sql_memory_bytes,
        }))
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    }
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
        assert_eq!(read("").unwrap().http, None);
        assert_eq!(read("[serve]\n").unwrap().http, None);
        let http = read("[serve.http]\nlisten = \"127.0.0.1:9187\"\n")
            .unwrap()
            .http
            .unwrap();
        assert_eq!(http.listen.to_string(), "127.0.0.1:9187");
        assert_eq!(http.sql_concurrency, 4);
        assert_eq!(http.sql_memory_bytes, 1 << 28);
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
            assert_eq!(allowed.http.unwrap().listen.to_string(), listen);
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        let listen = "listen = \"127.0.0.1:0\"\n";
        for text in [
            "",
            "listen = \"here\"\n",
            "listen = \"127.0.0.1\"\n",
            &format!("{listen}sql_concurrency = 0\n"),
            &format!("{listen}sql_memory = \"much\"\n"),
            &format!("{listen}port = 1\n"),
        ] {
            assert!(
                read(&format!("[serve.http]\n{text}")).is_err(),
                "{text} was taken"
            );
        }
    }
}
