//! Who is let in, before the routes: there is no authentication yet.
//!
//! A server on a loopback address is reached by every browser on the machine, and through it by any
//! web page. Two rules keep pages out: a page of another origin is refused (its requests carry
//! `Origin`), and a name that an attacker made to point here (DNS rebinding) is no name of ours.

use std::net::{IpAddr, SocketAddr};

use alluvium_change::{Error, code};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::answer::failure;

/// What is checked of each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    /// Requests must name an address, or `localhost`.
    own_names_only: bool,
}

impl Guard {
    pub(crate) fn of(address: SocketAddr) -> Self {
        Self {
            own_names_only: address.ip().is_loopback(),
        }
    }

    fn refusal(self, headers: &HeaderMap) -> Option<Error> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or("");
        if self.own_names_only && !is_own_name(host) {
            return Some(
                Error::new(&code::HTTP_REQUEST, "the request names another server")
                    .with_hint("call it by its address, such as http://127.0.0.1:9187"),
            );
        }
        let origin = headers.get(header::ORIGIN)?;
        let same = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
        (!same).then(|| {
            Error::new(
                &code::HTTP_REQUEST,
                "the request comes from a web page of another origin",
            )
            .with_hint("call it from a program, or from a page that this server serves")
        })
    }
}

/// Whether `host` (with or without a port) cannot be a name in somebody's DNS.
fn is_own_name(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let name_is_own = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_v6 = bracketed.is_some_and(|address| address.parse::<IpAddr>().is_ok());
    (name_is_own && port.parse::<u16>().is_ok()) || is_v6
}

/// The middleware.
pub(crate) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.refusal(request.headers()) {
        Some(error) => failure(StatusCode::FORBIDDEN, &error),
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn refused(own_names_only: bool, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        Guard { own_names_only }.refusal(&headers).is_some()
    }

    #[test]
    fn a_loopback_server_answers_to_addresses_and_localhost_only() {
        for host in [
            "127.0.0.1:9187",
            "127.0.0.1",
            "localhost:1",
            "LOCALHOST",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(!refused(true, host, None), "{host}");
        }
        for host in [
            "evil.example:9187",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "",
            "localhost:x",
        ] {
            assert!(refused(true, host, None), "{host}");
        }
        assert!(!refused(false, "lake.example", None));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let host = "127.0.0.1:9187";
        assert!(!refused(true, host, Some("http://127.0.0.1:9187")));
        for origin in ["http://127.0.0.1:1", "https://evil.example", "null", ""] {
            assert!(refused(true, host, Some(origin)), "{origin}");
            assert!(refused(false, host, Some(origin)), "{origin}");
        }
    }
}
