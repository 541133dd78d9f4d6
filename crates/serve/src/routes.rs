//! The routes: what each answers, from a copy of the status or from the lake.
//!
//! | route | answers |
//! |---|---|
//! | `GET /metrics` | all metrics, Prometheus text format |
//! | `GET /healthz` | 200 while the source is followed, else 503 |
//! | `GET /api/v1/status` | what `alluvium status --output json` prints |
//! | `POST /api/v1/sql` | rows, as `alluvium sql --output json` prints them |

use std::path::PathBuf;

use alluvium_change::{Error, code};
use alluvium_pipeline::status::report::Report;
use alluvium_pipeline::status::{ErrorStatus, Phase, PipelineStatus, StatusBoard, now_micros};
use alluvium_pipeline::{LakeLock, metrics};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::answer::{failure, json, json_body, query_failure};
use crate::guard::{self, Guard};
use crate::query::Queries;

/// The longest request.
const MOST_BODY_BYTES: usize = 1 << 20;

/// What the routes know.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub board: StatusBoard,
    /// The project file.
    pub file: PathBuf,
    pub queries: Queries,
}

impl Context {
    fn status(&self) -> PipelineStatus {
        let mut status = self.board.read();
        self.queries.note(&mut status.http);
        status
    }
}

/// All routes, guarded.
pub(crate) fn all(context: Context, guard: Guard) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(health))
        .route("/api/v1/status", get(status))
        .route("/api/v1/sql", post(sql))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .layer(from_fn_with_state(guard, guard::check))
        .with_state(context)
}

async fn nothing_here() -> Response {
    let error = Error::new(&code::HTTP_REQUEST, "there is nothing at this path").with_hint(
        "GET /metrics, GET /healthz, GET /api/v1/status, POST /api/v1/sql (docs/reference/http.md)",
    );
    failure(StatusCode::NOT_FOUND, &error)
}

async fn other_method() -> Response {
    let error = Error::new(&code::HTTP_REQUEST, "this path takes another method").with_hint(
        "GET /metrics, GET /healthz, GET /api/v1/status, POST /api/v1/sql (docs/reference/http.md)",
    );
    failure(StatusCode::METHOD_NOT_ALLOWED, &error)
}

async fn metrics_text(State(context): State<Context>) -> Response {
    let text = metrics::render(&context.status(), now_micros());
    let content_type = HeaderValue::from_static(metrics::CONTENT_TYPE);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

async fn status(State(context): State<Context>) -> Response {
    let running = Some(LakeLock::own_name(&context.file));
    let report = Report::new(context.status(), running, now_micros());
    json(StatusCode::OK, &report)
}

/// How the pipeline is, for who has to decide whether to start it again.
#[derive(Debug, Serialize)]
struct Health {
    /// `ok`; `degraded` when tables are stopped; else why the source is not followed: `starting`,
    /// `disconnected` or `stuck`.
    status: &'static str,
    connected: bool,
    tables: usize,
    /// Tables that an error keeps from following. Starting again does not help them.
    stopped: Vec<String>,
    error: Option<ErrorStatus>,
}

fn health_of(status: PipelineStatus, now: i64) -> (StatusCode, Health) {
    let (code, word) = if status.connected && status.is_stale(now) {
        (StatusCode::SERVICE_UNAVAILABLE, "stuck")
    } else if status.connected {
        (StatusCode::OK, "ok")
    } else if status.error.is_some() {
        (StatusCode::SERVICE_UNAVAILABLE, "disconnected")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting")
    };
    let stopped = status.tables.iter();
    let stopped: Vec<String> = stopped
        .filter(|(_, table)| table.phase == Phase::Stopped)
        .map(|(name, _)| name.clone())
        .collect();
    let word = match word {
        "ok" if !stopped.is_empty() => "degraded",
        word => word,
    };
    let health = Health {
        status: word,
        connected: status.connected,
        tables: status.tables.len(),
        stopped,
        error: status.error,
    };
    (code, health)
}

async fn health(State(context): State<Context>) -> Response {
    let (code, health) = health_of(context.board.read(), now_micros());
    json(code, &health)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    sql: String,
}

async fn sql(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            let error = Error::new(&code::HTTP_REQUEST, "the request cannot be read")
                .with_detail(rejection.body_text())
                .with_hint("a request is at most 1 MiB");
            return failure(rejection.status(), &error);
        }
    };
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or("?"));
    let query = match query_of(content_type, &body) {
        Ok(query) => query,
        Err((status, error)) => return failure(status, &error),
    };
    match context.queries.answer(query).await {
        Ok(rows) => json_body(StatusCode::OK, Body::from_stream(rows)),
        Err(error) => query_failure(&error),
    }
}

/// The query in a request's body.
fn query_of(content_type: Option<&str>, body: &Bytes) -> Result<String, (StatusCode, Error)> {
    const HINT: &str =
        "send {\"sql\": \"SELECT ...\"} as application/json, or the query as text/plain";
    let refused = |status, message: &str, detail: String| {
        let error = Error::new(&code::HTTP_REQUEST, message)
            .with_detail(detail)
            .with_hint(HINT);
        (status, error)
    };
    let media = content_type.unwrap_or("text/plain");
    let media = media.split(';').next().unwrap_or("").trim();
    let query = if media.eq_ignore_ascii_case("application/json") {
        serde_json::from_slice::<SqlRequest>(body)
            .map_err(|error| {
                let message = "the request is not the JSON that is wanted";
                refused(StatusCode::BAD_REQUEST, message, error.to_string())
            })?
            .sql
    } else if media.eq_ignore_ascii_case("text/plain") {
        String::from_utf8(body.to_vec()).map_err(|error| {
            let message = "the request is not UTF-8";
            refused(StatusCode::BAD_REQUEST, message, error.to_string())
        })?
    } else {
        let message = "the request's content type is not known";
        let detail = format!("content-type: {media}");
        return Err(refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message, detail));
    };
    if query.trim().is_empty() {
        let error = Error::new(&code::SQL, "there is no query").with_hint(HINT);
        return Err((StatusCode::BAD_REQUEST, error));
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use alluvium_pipeline::status::TableStatus;

    use super::*;

    #[test]
    fn a_query_comes_as_json_or_text() {
        let query =
            |media, body: &'static str| query_of(media, &Bytes::from_static(body.as_bytes()));
        let json = Some("application/json; charset=utf-8");
        assert_eq!(query(json, "{\"sql\": \"SELECT 1\"}").unwrap(), "SELECT 1");
        assert_eq!(query(Some("text/plain"), "SELECT 1").unwrap(), "SELECT 1");
        assert_eq!(query(None, "SELECT 1").unwrap(), "SELECT 1");
        for (media, body, status) in [
            (json, "SELECT 1", 400),
            (json, "{\"query\": \"SELECT 1\"}", 400),
            (json, "{\"sql\": \"  \"}", 400),
            (None, "", 400),
            (Some("application/x-www-form-urlencoded"), "SELECT 1", 415),
        ] {
            let (found, error) = query(media, body).unwrap_err();
            assert_eq!(found.as_u16(), status, "{body}");
            assert!(error.hint().contains("application/json"), "{body}");
        }
        let (status, _) = query_of(None, &Bytes::from_static(b"\xff")).unwrap_err();
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn health_says_whether_the_source_is_followed() {
        let word = |status: &PipelineStatus| {
            let (code, health) = health_of(status.clone(), 100_000_000);
            (code.as_u16(), health.status)
        };
        let mut status = PipelineStatus::default();
        assert_eq!(word(&status), (503, "starting"));
        status.connected = true;
        status.updated_micros = 99_000_000;
        assert_eq!(word(&status), (200, "ok"));
        let stopped = TableStatus {
            phase: Phase::Stopped,
            ..TableStatus::default()
        };
        status.tables.insert("public.t".to_owned(), stopped);
        assert_eq!(word(&status), (200, "degraded"));
        status.updated_micros = 0;
        assert_eq!(word(&status), (503, "stuck"));
        status.connected = false;
        status.error = Some(ErrorStatus::from(&Error::new(&code::PG_CONNECT, "gone")));
        assert_eq!(word(&status), (503, "disconnected"));
    }
}
