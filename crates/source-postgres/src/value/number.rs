//! Integers, floats and decimals from PostgreSQL's text and binary forms.
//!
//! Leaf parsers of [`super`]: byte loops without allocation. A decimal that the column's type
//! cannot hold is reported with the nearest value it can hold; digits are never dropped silently.

use super::{Kind, Reject};

const NAN: Kind = "NaN in a decimal";
const INFINITE: Kind = "infinity in a decimal";
const TOO_LARGE: Kind = "number with more digits than its decimal type holds";
const TOO_FINE: Kind = "number with more fraction digits than its decimal type holds";
const MALFORMED: Kind = "malformed number";
const MALFORMED_MONEY: Kind = "malformed money";

/// 10^exponent, if an `i128` holds it.
fn power_of_ten(exponent: usize) -> Option<i128> {
    static POWERS: [i128; 39] = {
        let mut powers = [1; 39];
        let mut at = 1;
        while at < powers.len() {
            powers[at] = powers[at - 1] * 10;
            at += 1;
        }
        powers
    };
    POWERS.get(exponent).copied()
}

/// A decimal type: at most 38 digits, `scale` of them after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decimal {
    pub(crate) precision: u8,
    pub(crate) scale: u8,
}

/// Digits that a decimal type has no place for.
#[derive(Default)]
struct Cut {
    /// The first of them, which decides the rounding of a clamped value.
    first: u8,
    nonzero: bool,
}

impl Decimal {
    /// The largest magnitude, as the integer that Arrow stores.
    fn limit(self) -> i128 {
        power_of_ten(self.precision.into()).map_or(i128::MAX, |power| power - 1)
    }

    /// `magnitude` (None: beyond 128 bits) with its sign, if the type holds all of it.
    fn settle(
        self,
        negative: bool,
        magnitude: Option<i128>,
        cut: &Cut,
    ) -> Result<i128, Reject<i128>> {
        let signed = |value: i128| if negative { -value } else { value };
        let limit = self.limit();
        match magnitude {
            Some(magnitude) if magnitude <= limit && !cut.nonzero => Ok(signed(magnitude)),
            Some(magnitude) if magnitude <= limit => {
                let rounded = magnitude.saturating_add(i128::from(cut.first >= 5));
                Err(Reject::beyond(TOO_FINE, signed(rounded.min(limit))))
            }
            _ => Err(Reject::beyond(TOO_LARGE, signed(limit))),
        }
    }

    fn infinite(self, negative: bool) -> Reject<i128> {
        let limit = self.limit();
        Reject::beyond(INFINITE, if negative { -limit } else { limit })
    }

    /// `numeric_out`: an optional sign, digits, an optional fraction; or `NaN`, `Infinity`.
    pub(crate) fn parse(self, text: &[u8]) -> Result<i128, Reject<i128>> {
        let (negative, unsigned) = match text {
            [b'-', rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        match unsigned {
            [b'0'..=b'9', ..] => self.parse_digits(negative, unsigned),
            b"NaN" => Err(Reject::Beyond {
                kind: NAN,
                nearest: None,
            }),
            b"Infinity" => Err(self.infinite(negative)),
            _ => Err(Reject::Malformed(MALFORMED)),
        }
    }

    fn parse_digits(self, negative: bool, digits: &[u8]) -> Result<i128, Reject<i128>> {
        const BAD: Reject<i128> = Reject::Malformed(MALFORMED);
        let scale = usize::from(self.scale);
        let (integer, fraction) = match digits.iter().position(|&byte| byte == b'.') {
            None => (digits, [].as_slice()),
            Some(point) => {
                let (integer, fraction) = digits.split_at_checked(point).ok_or(BAD)?;
                match fraction {
                    [b'.', fraction @ ..] if !fraction.is_empty() => (integer, fraction),
                    _ => return Err(BAD),
                }
            }
        };
        let (kept, beyond) = fraction.split_at_checked(scale).unwrap_or((fraction, &[]));
        if !beyond.iter().all(u8::is_ascii_digit) {
            return Err(BAD);
        }
        let cut = Cut {
            first: beyond.first().map_or(0, |digit| digit.wrapping_sub(b'0')),
            nonzero: beyond.iter().any(|&digit| digit != b'0'),
        };
        let magnitude = append_digits(Some(0), integer).ok_or(BAD)?;
        let magnitude = append_digits(magnitude, kept).ok_or(BAD)?;
        let magnitude = shift(magnitude, scale.saturating_sub(kept.len()));
        self.settle(negative, magnitude, &cut)
    }

    /// `numeric_send`: count of groups, weight, sign, display scale, groups of four digits.
    pub(crate) fn decode(self, bytes: &[u8]) -> Result<i128, Reject<i128>> {
        const BAD: Reject<i128> = Reject::Malformed(MALFORMED);
        let numeric = BinaryNumeric::read(bytes).ok_or(BAD)?;
        let negative = match numeric.sign {
            Sign::Positive => false,
            Sign::Negative => true,
            Sign::NaN => {
                return Err(Reject::Beyond {
                    kind: NAN,
                    nearest: None,
                });
            }
            Sign::Infinity => return Err(self.infinite(false)),
            Sign::NegativeInfinity => return Err(self.infinite(true)),
        };
        // What the last digit of a group counts, as a power of ten in units of the type's last place.
        let mut exponent = i32::from(numeric.weight) * 4 + i32::from(self.scale);
        let mut magnitude: Option<i128> = Some(0);
        let mut cut = Cut::default();
        for (place, group) in numeric.groups().enumerate() {
            let digits = i128::from(group);
            match exponent {
                0.. if place < 9 => magnitude = magnitude.map(|value| value * 10_000 + digits),
                0.. => magnitude = shift(magnitude, 4).and_then(|value| value.checked_add(digits)),
                -3..=-1 => {
                    // This group reaches past the last place: its first digits are kept. Dividing
                    // 128-bit numbers would cost more than all the rest.
                    let past = 10_u32.pow(exponent.unsigned_abs());
                    let room = usize::try_from(exponent + 4).map_err(|_| BAD)?;
                    let (kept, rest) = (u32::from(group) / past, u32::from(group) % past);
                    magnitude = shift(magnitude, room)
                        .and_then(|value| value.checked_add(i128::from(kept)));
                    cut.nonzero |= rest != 0;
                    cut.first = u8::try_from(rest * 10 / past).unwrap_or(9);
                }
                _ => {
                    cut.nonzero |= group != 0;
                    if exponent == -4 {
                        cut.first = u8::try_from(group / 1000).unwrap_or(9);
                    }
                }
            }
            exponent -= 4;
        }
        let missing = usize::try_from(exponent + 4).unwrap_or(0);
        self.settle(negative, shift(magnitude, missing), &cut)
    }

    /// `money` from its raw 64-bit integer, which counts units of 10^-`fraction_digits`.
    pub(crate) fn of_money(self, raw: i64, fraction_digits: u8) -> Result<i128, Reject<i128>> {
        let magnitude = i128::from(raw.unsigned_abs());
        let missing = usize::from(self.scale.saturating_sub(fraction_digits));
        let surplus = usize::from(fraction_digits.saturating_sub(self.scale));
        let past = power_of_ten(surplus).unwrap_or(i128::MAX);
        let rest = magnitude % past;
        let cut = Cut {
            first: u8::try_from(rest / power_of_ten(surplus.saturating_sub(1)).unwrap_or(1))
                .unwrap_or(9),
            nonzero: rest != 0,
        };
        self.settle(raw < 0, shift(Some(magnitude / past), missing), &cut)
    }
}

/// `magnitude` times 10^`places`; None beyond 128 bits.
fn shift(magnitude: Option<i128>, places: usize) -> Option<i128> {
    match magnitude {
        Some(0) => Some(0),
        Some(value) if places == 0 => Some(value),
        Some(value) => value.checked_mul(power_of_ten(places)?),
        None => None,
    }
}

/// Decimal digits behind `magnitude`. The outer None: something else than digits; the inner one:
/// beyond 128 bits.
fn append_digits(mut magnitude: Option<i128>, digits: &[u8]) -> Option<Option<i128>> {
    for chunk in digits.chunks(18) {
        let mut value: u64 = 0;
        for byte in chunk {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            value = value * 10 + u64::from(digit);
        }
        magnitude = match magnitude {
            Some(0) => Some(i128::from(value)),
            other => shift(other, chunk.len()).and_then(|m| m.checked_add(i128::from(value))),
        };
    }
    Some(magnitude)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Positive,
    Negative,
    NaN,
    Infinity,
    NegativeInfinity,
}

/// A value as `numeric_send` writes it, checked.
struct BinaryNumeric<'a> {
    weight: i16,
    sign: Sign,
    display_scale: u16,
    groups: &'a [[u8; 2]],
}

impl<'a> BinaryNumeric<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = bytes.split_first_chunk::<8>()?;
        let [
            count_high,
            count_low,
            weight_high,
            weight_low,
            sign_high,
            sign_low,
            scale_high,
            scale_low,
        ] = *header;
        let sign = match u16::from_be_bytes([sign_high, sign_low]) {
            0x0000 => Sign::Positive,
            0x4000 => Sign::Negative,
            0xC000 => Sign::NaN,
            0xD000 => Sign::Infinity,
            0xF000 => Sign::NegativeInfinity,
            _ => return None,
        };
        let (groups, rest) = body.as_chunks::<2>();
        let count = usize::from(u16::from_be_bytes([count_high, count_low]));
        let numeric = Self {
            weight: i16::from_be_bytes([weight_high, weight_low]),
            sign,
            display_scale: u16::from_be_bytes([scale_high, scale_low]),
            groups,
        };
        let well_formed = rest.is_empty()
            && groups.len() == count
            && numeric.groups().all(|group| group < 10_000);
        well_formed.then_some(numeric)
    }

    fn groups(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.groups.iter().map(|&pair| u16::from_be_bytes(pair))
    }
}

/// The text of a binary numeric, for messages. Long numbers are cut short.
pub(crate) fn numeric_text(bytes: &[u8]) -> Option<String> {
    let numeric = BinaryNumeric::read(bytes)?;
    let mut text = match numeric.sign {
        Sign::NaN => return Some("NaN".to_owned()),
        Sign::Infinity => return Some("Infinity".to_owned()),
        Sign::NegativeInfinity => return Some("-Infinity".to_owned()),
        Sign::Positive => String::new(),
        Sign::Negative => "-".to_owned(),
    };
    let group_at = |weight: i32| {
        usize::try_from(i32::from(numeric.weight) - weight)
            .ok()
            .and_then(|place| numeric.groups.get(place))
            .map_or(0, |&pair| u16::from_be_bytes(pair))
    };
    let first = i32::from(numeric.weight).max(0);
    text.push_str(&group_at(first).to_string());
    for weight in (0..first).rev().take(30) {
        text.push_str(&format!("{:04}", group_at(weight)));
    }
    if first > 30 {
        text.push('…');
    } else if numeric.display_scale > 0 {
        let places = usize::from(numeric.display_scale).min(100);
        let mut fraction = String::new();
        for weight in (-26..0).rev() {
            fraction.push_str(&format!("{:04}", group_at(weight)));
        }
        text.push('.');
        text.extend(fraction.chars().take(places));
    }
    Some(text)
}

/// `cash_out` under `lc_monetary = C`: `$1,234.56`, `-$0.01`, `($0.01)`. The digits, taken together,
/// are the raw integer: the C locale always writes two places.
pub(crate) fn money(text: &[u8]) -> Result<i64, Kind> {
    let negative = text.iter().any(|byte| matches!(byte, b'-' | b'('));
    // Accumulated below zero, where one value more fits.
    let mut raw: i64 = 0;
    let mut digits = 0;
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                raw = raw
                    .checked_mul(10)
                    .and_then(|value| value.checked_sub(i64::from(byte - b'0')))
                    .ok_or(MALFORMED_MONEY)?;
            }
            b'-' | b'(' | b')' | b'$' | b',' | b'.' => {}
            _ => return Err(MALFORMED_MONEY),
        }
    }
    if digits == 0 {
        return Err(MALFORMED_MONEY);
    }
    if negative {
        Ok(raw)
    } else {
        raw.checked_neg().ok_or(MALFORMED_MONEY)
    }
}

/// `int2out`, `int4out`, `int8out`.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let magnitude = unsigned(digits)?;
    if negative {
        0_i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

/// `oidout`, `xidout`, `xid8out`.
pub(crate) fn unsigned(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    let mut value: u64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// `float4out`, `float8out` with `extra_float_digits` at 1 or more: the shortest text that reads
/// back as the same number.
pub(crate) fn float<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    // Rust also reads words such as "inf" and "nan"; PostgreSQL never writes them.
    let plain = match text {
        b"NaN" | b"Infinity" | b"-Infinity" => true,
        _ => text
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e')),
    };
    if !plain {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
