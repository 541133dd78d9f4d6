//! Values from PostgreSQL's text and binary forms, straight into Arrow columns.
//!
//! After `pgoutput` (stream) and `copy` (initial copy), before `change`'s batches. What a column
//! becomes is planned by [`crate::type_map`]; this module appends values to it, one
//! [`ColumnBuilder`] per column.
//!
//! The text is the one that sessions of this crate get: `DateStyle=ISO`,
//! `IntervalStyle=iso_8601`, `TimeZone=UTC`, `extra_float_digits=3`, `bytea_output=hex`,
//! `client_encoding=UTF8`, `lc_monetary=C`.
//!
//! Invariant: every append makes a builder longer by exactly one, whether it succeeds or not, and
//! no value is ever changed but as the column's [`OnInvalid`] says.

mod column;
mod decoder;
mod literal;
mod nested;
mod node;
mod number;
mod range;
#[cfg(test)]
pub(crate) mod tests;
mod time;

use std::fmt;

use alluvium_change::{Error, Result};
use arrow::array::ArrayRef;

pub(crate) use self::decoder::{BinaryForm, Decoder, LongForm, TextForm};
use self::node::Node;
pub(crate) use self::number::Decimal;
use crate::type_map::{CopyForm, OnInvalid};

/// What is wrong with a value.
pub(crate) type Kind = &'static str;

/// Why a parser did not return a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject<T> {
    /// Not what the type's output function writes.
    Malformed(Kind),
    /// A true value of the source that the Delta type cannot hold, and the nearest one it can.
    Beyond { kind: Kind, nearest: Option<T> },
}

impl<T> Reject<T> {
    pub(crate) fn beyond(kind: Kind, nearest: T) -> Self {
        Self::Beyond {
            kind,
            nearest: Some(nearest),
        }
    }
}

/// A parsed value under the column's policy: a value, NULL in its place, or an error.
pub(crate) fn settle<T>(
    parsed: Result<T, Reject<T>>,
    on_invalid: OnInvalid,
) -> Result<Option<T>, Kind> {
    match parsed {
        Ok(value) => Ok(Some(value)),
        Err(Reject::Beyond { .. }) if on_invalid == OnInvalid::Null => Ok(None),
        Err(Reject::Beyond {
            nearest: Some(nearest),
            ..
        }) if on_invalid == OnInvalid::Clamp => Ok(Some(nearest)),
        Err(Reject::Malformed(kind) | Reject::Beyond { kind, .. }) => Err(kind),
    }
}

/// A value that the column cannot hold, or that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    /// What is wrong, such as `infinity in a date`.
    pub kind: &'static str,
    /// The value, cut to 80 characters.
    pub text: String,
}

impl InvalidValue {
    const LONGEST_CHARS: usize = 80;

    fn new(kind: Kind, value: &[u8]) -> Self {
        // Enough bytes for the longest text, whatever its characters.
        let (head, _) = value
            .split_at_checked(Self::LONGEST_CHARS * 4)
            .unwrap_or((value, &[]));
        let text = String::from_utf8_lossy(head);
        Self {
            kind,
            text: text.chars().take(Self::LONGEST_CHARS).collect(),
        }
    }
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

impl std::error::Error for InvalidValue {}

/// Collects the values of one column.
#[derive(Debug)]
pub struct ColumnBuilder {
    node: Node,
    copy_form: CopyForm,
    on_invalid: OnInvalid,
}

impl ColumnBuilder {
    pub(crate) fn new(decoder: &Decoder, copy_form: CopyForm, on_invalid: OnInvalid) -> Self {
        Self {
            node: Node::new(decoder),
            copy_form,
            on_invalid,
        }
    }

    /// Number of values, NULLs included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.node.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.node.memory_bytes()
    }

    /// Makes room for `rows` values more: for a batch whose size is known.
    pub fn reserve(&mut self, rows: usize) {
        self.node.reserve(rows);
    }

    pub fn append_null(&mut self) {
        self.node.append_null();
    }

    /// Appends a value from the text of its type's output function.
    ///
    /// # Errors
    /// When the value is malformed, or invalid and the policy is to say so; a NULL was appended.
    #[inline]
    pub fn append_text(&mut self, text: &[u8]) -> Result<(), InvalidValue> {
        match self.node.append_text(text, self.on_invalid) {
            Ok(()) => Ok(()),
            Err(kind) => Err(self.refuse(kind, text)),
        }
    }

    /// Appends a value from the binary form that its type's send function writes. Only columns
    /// planned with [`CopyForm::Binary`] have one.
    ///
    /// # Errors
    /// As [`Self::append_text`].
    #[inline]
    pub fn append_binary(&mut self, bytes: &[u8]) -> Result<(), InvalidValue> {
        match self.node.append_binary(bytes, self.on_invalid) {
            Ok(()) => Ok(()),
            Err(kind) => {
                let text = self.node.describe_binary(bytes);
                Err(self.refuse(kind, &text))
            }
        }
    }

    /// Appends a value as the initial copy sends it: see [`crate::type_map::ColumnPlan::copy_form`].
    ///
    /// # Errors
    /// As [`Self::append_text`].
    #[inline]
    pub fn append_copy(&mut self, bytes: &[u8]) -> Result<(), InvalidValue> {
        match self.copy_form {
            CopyForm::Binary => self.append_binary(bytes),
            CopyForm::Text => self.append_text(bytes),
        }
    }

    #[cold]
    fn refuse(&mut self, kind: Kind, value: &[u8]) -> InvalidValue {
        self.node.append_null();
        InvalidValue::new(kind, value)
    }

    /// The values so far as an array of the planned type; the builder starts anew.
    ///
    /// # Errors
    /// Only if a law of this module is broken.
    pub fn finish(&mut self) -> Result<ArrayRef> {
        self.node.finish().map_err(|error| {
            Error::bug("a column of decoded values is not well formed").with_source(error)
        })
    }
}
