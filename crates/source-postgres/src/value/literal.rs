//! Reading PostgreSQL's nested literals: arrays, composites, ranges, hstore.
//!
//! A [`Cursor`] moves over the text of one value; escaped parts go through a scratch buffer that
//! its owner keeps, so that nothing is allocated per value.

/// A place in a literal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

/// How a quote is written within quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quoting {
    /// Arrays and hstore: `\"` and `\\`.
    Backslash,
    /// Composites and ranges: `""` and `\\`.
    Doubled,
}

impl<'a> Cursor<'a> {
    pub(crate) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    pub(crate) fn next_byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    pub(crate) fn eat(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(expected);
        if found {
            self.next_byte();
        }
        found
    }

    /// Steps over `word` if it comes next.
    pub(crate) fn eat_word(&mut self, word: &[u8]) -> bool {
        match self.0.strip_prefix(word) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// What comes before the first byte that `stop` names, or all.
    pub(crate) fn until(&mut self, stop: impl Fn(u8) -> bool) -> &'a [u8] {
        let place = self
            .0
            .iter()
            .position(|&byte| stop(byte))
            .unwrap_or(self.0.len());
        let (before, after) = self.0.split_at_checked(place).unwrap_or((self.0, &[]));
        self.0 = after;
        before
    }

    /// The rest of a quoted part whose opening quote was taken. None without a closing quote.
    pub(crate) fn quoted<'s>(
        &mut self,
        quoting: Quoting,
        scratch: &'s mut Vec<u8>,
    ) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        let special = |byte| matches!(byte, b'"' | b'\\');
        let closes = |cursor: &Self| quoting == Quoting::Backslash || cursor.peek() != Some(b'"');
        let plain = self.until(special);
        let mut found = self.next_byte()?;
        if found == b'"' && closes(self) {
            return Some(plain);
        }
        scratch.clear();
        scratch.extend_from_slice(plain);
        loop {
            if found == b'"' && closes(self) {
                return Some(scratch);
            }
            // An escaped byte, or the second of two quotes.
            scratch.push(self.next_byte()?);
            scratch.extend_from_slice(self.until(special));
            found = self.next_byte()?;
        }
    }

    /// An item of a composite or range: None where nothing is written.
    pub(crate) fn field<'s>(
        &mut self,
        stop: impl Fn(u8) -> bool,
        scratch: &'s mut Vec<u8>,
    ) -> Option<Field<'s>>
    where
        'a: 's,
    {
        if self.eat(b'"') {
            let value = self.quoted(Quoting::Doubled, scratch)?;
            return Some(Field::Value(value));
        }
        let bare = self.until(|byte| stop(byte) || matches!(byte, b'"' | b'\\'));
        Some(if bare.is_empty() {
            Field::Absent
        } else {
            Field::Value(bare)
        })
    }
}

/// An item of a composite or range.
#[derive(Debug)]
pub(crate) enum Field<'a> {
    /// NULL, or an infinite bound.
    Absent,
    Value(&'a [u8]),
}

/// Nesting depth of an array literal (without its bounds): 0 for the empty array `{}`, None if it
/// is no array.
pub(crate) fn array_depth(literal: &[u8]) -> Option<usize> {
    if literal == b"{}" {
        return Some(0);
    }
    let braces = literal.iter().take_while(|&&byte| byte == b'{').count();
    (braces > 0).then_some(braces)
}

/// Hexadecimal digits, two for a byte, behind what `out` holds. None (and `out` as it was) for
/// anything else.
pub(crate) fn extend_from_hex(out: &mut Vec<u8>, digits: &[u8]) -> Option<()> {
    let before = out.len();
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    out.reserve(pairs.len());
    for &[high, low] in pairs {
        let (Some(high), Some(low)) = (hex_digit(high), hex_digit(low)) else {
            out.truncate(before);
            return None;
        };
        out.push(high << 4 | low);
    }
    Some(())
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// 16 bytes as lower-case hexadecimal digits, all at once.
pub(crate) fn hex_digits(bytes: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    let (halves, _) = digits.as_chunks_mut::<16>();
    for (half, shift) in halves.iter_mut().zip([64, 0]) {
        *half = half_digits((bytes >> shift) & u128::from(u64::MAX)).to_be_bytes();
    }
    digits
}

/// Each of the lower 16 nibbles as a digit in a byte of its own.
fn half_digits(nibbles: u128) -> u128 {
    const ONES: u128 = u128::MAX / 0xFF;
    let mut spread = nibbles;
    spread = (spread | (spread << 32)) & 0x0000_0000_FFFF_FFFF_0000_0000_FFFF_FFFF;
    spread = (spread | (spread << 16)) & 0x0000_FFFF_0000_FFFF_0000_FFFF_0000_FFFF;
    spread = (spread | (spread << 8)) & 0x00FF_00FF_00FF_00FF_00FF_00FF_00FF_00FF;
    spread = (spread | (spread << 4)) & 0x0F0F_0F0F_0F0F_0F0F_0F0F_0F0F_0F0F_0F0F;
    // Bit 7 of 10 + 0x76 is set: 1 for each letter.
    let letters = ((spread + ONES * 0x76) >> 7) & ONES;
    spread + ONES * u128::from(b'0') + letters * u128::from(b'a' - b'0' - 10)
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |nibble: u8| {
        DIGITS
            .get(usize::from(nibble & 15))
            .copied()
            .unwrap_or(b'0')
    };
    for byte in bytes {
        out.extend_from_slice(&[digit(byte >> 4), digit(*byte)]);
    }
}
