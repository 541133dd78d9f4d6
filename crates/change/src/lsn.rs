//! A position in PostgreSQL's write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Byte position in the WAL. Written `X/Y` (hexadecimal halves) as PostgreSQL does.
///
/// Where a position of progress is meant, it says: every transaction whose commit record starts at
/// or before this LSN is included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position before any transaction.
    pub const ZERO: Self = Self(0);

    /// As stored in a Delta `txn` action, whose version is a signed 64-bit integer.
    ///
    /// A real WAL never reaches 2^63 bytes; a larger value is clamped.
    #[must_use]
    pub fn as_txn_version(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Back from a Delta `txn` version; a negative one (never written by us) is zero.
    #[must_use]
    pub fn from_txn_version(version: i64) -> Self {
        Self(u64::try_from(version).unwrap_or(0))
    }

    /// The position just before this one: a snapshot taken at `lsn` holds exactly the transactions
    /// that commit before it.
    #[must_use]
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not `X/Y` with two hexadecimal numbers of at most 32 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid LSN \"{0}\": expected two hexadecimal numbers such as 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let half = |part: &str| u32::from_str_radix(part, 16).map_err(|_| invalid());
        Ok(Self((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        for value in [0, 1, 0x16_B374_D848, u64::MAX] {
            assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "16", "16/", "/1", "g/1", "1/100000000", "1/2/3"] {
            assert!(text.parse::<Lsn>().is_err(), "{text} was taken");
        }
    }
}
