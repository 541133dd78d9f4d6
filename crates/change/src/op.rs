//! Kinds of change.

/// What happened to a row (or, for [`Op::Truncate`], to the whole table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A row copied at the start, `r`.
    Read,
    /// A new row, `c`.
    Insert,
    /// A changed row, `u`.
    Update,
    /// A removed row, `d`.
    Delete,
    /// The table was emptied, `t`.
    Truncate,
}

impl Op {
    /// The letter bronze stores, which is Debezium's.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Insert => "c",
            Self::Update => "u",
            Self::Delete => "d",
            Self::Truncate => "t",
        }
    }

    /// Whether its new image is a row of the table.
    #[must_use]
    pub fn writes_row(self) -> bool {
        matches!(self, Self::Read | Self::Insert | Self::Update)
    }

    /// The kind behind a letter of bronze.
    #[must_use]
    pub fn from_letter(letter: &str) -> Option<Self> {
        [
            Self::Read,
            Self::Insert,
            Self::Update,
            Self::Delete,
            Self::Truncate,
        ]
        .into_iter()
        .find(|op| op.letter() == letter)
    }
}
