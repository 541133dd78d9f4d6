//! Answers: JSON, and errors in the shape they have everywhere, with the HTTP status that fits.

use alluvium_change::{Code, Error, code};
use alluvium_pipeline::status::ErrorStatus;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// `body` as JSON that no cache keeps.
pub(crate) fn json_body(status: StatusCode, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, JSON),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body).into_response()
}

/// `value` as one JSON document.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => json_body(status, Body::from(text + "\n")),
        Err(error) => {
            let error = Error::bug("an answer cannot be written as JSON").with_source(error);
            failure(StatusCode::INTERNAL_SERVER_ERROR, &error)
        }
    }
}

/// An error as `{code, message, detail, hint}`.
pub(crate) fn failure(status: StatusCode, error: &Error) -> Response {
    let body = serde_json::to_string(&ErrorStatus::from(error)).unwrap_or_default();
    let mut response = json_body(status, Body::from(body + "\n"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

/// A query's error, with the status that tells whose fault it is.
pub(crate) fn query_failure(error: &Error) -> Response {
    failure(status_of(error.code()), error)
}

fn status_of(code: &Code) -> StatusCode {
    let is = |other: &Code| code.id == other.id;
    if is(&code::MEMORY) || is(&code::SQL_ENDED) {
        // The query as it is will never fit.
        StatusCode::UNPROCESSABLE_ENTITY
    } else if code.id.starts_with("AL-SQL-") || is(&code::USAGE) || is(&code::HTTP_REQUEST) {
        StatusCode::BAD_REQUEST
    } else if is(&code::HTTP_BUSY) {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_whose_fault_it_is() {
        for (code, status) in [
            (&code::SQL, 400),
            (&code::SQL_TABLE, 400),
            (&code::SQL_ENDED, 422),
            (&code::MEMORY, 422),
            (&code::HTTP_BUSY, 503),
            (&code::LAKE_CORRUPT, 500),
            (&code::BUG, 500),
        ] {
            assert_eq!(status_of(code).as_u16(), status, "{}", code.id);
        }
    }
}
