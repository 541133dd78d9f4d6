//! One error shape for all crates, after PostgreSQL's: message, detail, hint.

use std::error::Error as StdError;
use std::fmt;

use crate::{Code, Retry};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, why, and what to do.
///
/// `Display` shows the message alone; the edge (`cli`) prints code, detail, hint and the chain
/// once. A message is lower case, without a full stop, and never holds a secret.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: &'static Code,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    #[must_use]
    pub fn new(code: &'static Code, message: impl Into<String>) -> Self {
        let inner = Inner {
            code,
            message: message.into(),
            detail: None,
            hint: None,
            source: None,
        };
        Self(Box::new(inner))
    }

    /// An impossible state: reported, never a panic.
    #[must_use]
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(&crate::code::BUG, message)
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    #[must_use]
    pub fn code(&self) -> &'static Code {
        self.0.code
    }

    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The next step: the hint given where the error arose, else the code's own.
    #[must_use]
    pub fn hint(&self) -> &str {
        self.0.hint.as_deref().unwrap_or(self.0.code.hint)
    }

    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.code.retry
    }

    /// Whether this is the error `code`.
    #[must_use]
    pub fn is(&self, code: &Code) -> bool {
        self.0.code.id == code.id
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
