//! Numbers, intervals and addresses between their text and PostgreSQL's binary forms.

use std::net::IpAddr;

use arrow::datatypes::IntervalMonthDayNano;
use bytes::{BufMut as _, BytesMut};

/// Months, days and microseconds, each with its own sign.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) months: i32,
    pub(super) days: i32,
    pub(super) micros: i64,
}

impl Interval {
    pub(super) fn of(value: IntervalMonthDayNano) -> Self {
        Self {
            months: value.months,
            days: value.days,
            micros: value.nanoseconds / 1000,
        }
    }

    /// From ISO 8601 as PostgreSQL writes it: `P1Y-2M3DT4H5M-6.789S`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut interval = Self::default();
        let (mut rest, mut in_time) = (text.strip_prefix('P')?, false);
        while !rest.is_empty() {
            if let (false, Some(time)) = (in_time, rest.strip_prefix('T')) {
                (rest, in_time) = (time, true);
                continue;
            }
            let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
            let (amount, unit) = rest.split_at(end);
            let unit = unit.chars().next()?;
            rest = rest.get(end + 1..)?;
            let months =
                |amount: &str, factor: i32| amount.parse::<i32>().ok()?.checked_mul(factor);
            let micros =
                |amount: &str, factor: i64| amount.parse::<i64>().ok()?.checked_mul(factor);
            match (in_time, unit) {
                (false, 'Y') => {
                    interval.months = interval.months.checked_add(months(amount, 12)?)?
                }
                (false, 'M') => {
                    interval.months = interval.months.checked_add(months(amount, 1)?)?
                }
                (false, 'D') => interval.days = amount.parse().ok()?,
                (true, 'H') => {
                    interval.micros = interval
                        .micros
                        .checked_add(micros(amount, 3_600_000_000)?)?
                }
                (true, 'M') => {
                    interval.micros = interval.micros.checked_add(micros(amount, 60_000_000)?)?
                }
                (true, 'S') => interval.micros = interval.micros.checked_add(seconds(amount)?)?,
                _ => return None,
            }
        }
        Some(interval)
    }
}

/// Microseconds of `-6.789`.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part: i64 = format!("{fraction:0<6}").parse().ok()?;
    let part = if whole.starts_with('-') { -part } else { part };
    whole
        .parse::<i64>()
        .ok()?
        .checked_mul(1_000_000)?
        .checked_add(part)
}

/// Microseconds since midnight of `13:45:30.5`.
pub(super) fn time_of_day(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hours, minutes, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    let within = (0..=24).contains(&hours) && (0..60).contains(&minutes);
    let micros = (hours * 60 + minutes) * 60_000_000 + seconds(rest)?;
    (within && (0..=86_400_000_000).contains(&micros)).then_some(micros)
}

const NUMERIC_NEGATIVE: u16 = 0x4000;
const NUMERIC_NAN: u16 = 0xC000;
const NUMERIC_INFINITE: u16 = 0xD000;
const NUMERIC_MINUS_INFINITE: u16 = 0xF000;

/// `numeric_send`: how many base-10000 digits, the weight of the first, sign, digits shown after the
/// point, the digits. None if `text` is no number.
pub(super) fn put_numeric(text: &str, out: &mut BytesMut) -> Option<()> {
    let special = match text {
        "NaN" => Some(NUMERIC_NAN),
        "Infinity" => Some(NUMERIC_INFINITE),
        "-Infinity" => Some(NUMERIC_MINUS_INFINITE),
        _ => None,
    };
    if let Some(sign) = special {
        out.put_slice(&[0; 4]);
        out.put_u16(sign);
        out.put_u16(0);
        return Some(());
    }
    let (sign, number) = match text.strip_prefix('-') {
        Some(number) => (NUMERIC_NEGATIVE, number),
        None => (0, text),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    // Four decimal digits to a digit, counted from the point to both sides.
    let whole = whole.trim_start_matches('0');
    let before = whole.len().div_ceil(4);
    let padding = before * 4 - whole.len();
    let digits = std::iter::repeat_n(b'0', padding)
        .chain(whole.bytes())
        .chain(fraction.bytes())
        .collect::<Vec<u8>>();
    let mut groups: Vec<i16> = digits
        .chunks(4)
        .map(|chunk| {
            let value = chunk
                .iter()
                .fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0'));
            (chunk.len()..4).fold(value, |value, _| value * 10)
        })
        .collect();
    let leading = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..leading);
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let weight = match groups.is_empty() {
        true => 0,
        false => i16::try_from(before)
            .ok()?
            .checked_sub(1)?
            .checked_sub(i16::try_from(leading).ok()?)?,
    };
    out.put_i16(i16::try_from(groups.len()).ok()?);
    out.put_i16(weight);
    // Zero has no sign.
    out.put_u16(if groups.is_empty() { 0 } else { sign });
    out.put_i16(i16::try_from(fraction.len()).ok()?);
    groups.iter().for_each(|group| out.put_i16(*group));
    Some(())
}

/// `inet_send`: family, bits, whether it is a `cidr`, length, address. None if `text` is none.
pub(super) fn put_address(text: &str, is_cidr: bool, out: &mut BytesMut) -> Option<()> {
    // AF_INET and the number after it, whatever the system's.
    const FAMILY_V4: u8 = 2;
    const FAMILY_V6: u8 = 3;
    let (address, bits) = text
        .split_once('/')
        .map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().ok()?;
    let (family, most) = match address {
        IpAddr::V4(_) => (FAMILY_V4, 32),
        IpAddr::V6(_) => (FAMILY_V6, 128),
    };
    let bits = bits.map_or(Some(most), |bits| bits.parse::<u8>().ok())?;
    if bits > most {
        return None;
    }
    out.put_slice(&[family, bits, u8::from(is_cidr)]);
    match address {
        IpAddr::V4(address) => {
            out.put_u8(4);
            out.put_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            out.put_u8(16);
            out.put_slice(&address.octets());
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn numeric(text: &str) -> Option<Vec<u16>> {
        let mut out = BytesMut::new();
        put_numeric(text, &mut out)?;
        let words = out
            .chunks(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Some(words.collect())
    }

    #[test]
    fn numerics_are_digits_of_ten_thousand() {
        // As PostgreSQL's numeric_send gives them.
        assert_eq!(numeric("0").unwrap(), [0, 0, 0, 0]);
        assert_eq!(numeric("-0.00").unwrap(), [0, 0, 0, 2]);
        assert_eq!(numeric("1").unwrap(), [1, 0, 0, 0, 1]);
        assert_eq!(
            numeric("-12345.678").unwrap(),
            [3, 1, 0x4000, 3, 1, 2345, 6780]
        );
        assert_eq!(numeric("10000").unwrap(), [1, 1, 0, 0, 1]);
        assert_eq!(numeric("0.0001").unwrap(), [1, 0xFFFF, 0, 4, 1]);
        assert_eq!(numeric("0.00001").unwrap(), [1, 0xFFFE, 0, 5, 1000]);
        assert_eq!(numeric("100000000.5").unwrap(), [4, 2, 0, 1, 1, 0, 0, 5000]);
        assert_eq!(numeric("NaN").unwrap(), [0, 0, 0xC000, 0]);
        for wrong in ["", "-", ".", "1e5", "1.2.3", "x"] {
            assert_eq!(numeric(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn intervals_keep_months_days_and_time_apart() {
        let interval = |months, days, micros| {
            Some(Interval {
                months,
                days,
                micros,
            })
        };
        for (text, expected) in [
            ("P1Y2M3DT4H5M6.789S", interval(14, 3, 14_706_789_000)),
            ("PT0S", interval(0, 0, 0)),
            ("P-1Y-2M3DT-4H-5M-6.5S", interval(-14, 3, -14_706_500_000)),
            ("PT-0.000001S", interval(0, 0, -1)),
            ("P1M", interval(1, 0, 0)),
            ("PT1M", interval(0, 0, 60_000_000)),
            ("1 day", None),
            ("P1", None),
            ("P1W", None),
            ("PT1.1234567S", None),
            ("P99999999999Y", None),
        ] {
            assert_eq!(Interval::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn times_of_day_end_at_midnight() {
        assert_eq!(time_of_day("00:00:00"), Some(0));
        assert_eq!(time_of_day("13:45:30.5"), Some(49_530_500_000));
        assert_eq!(time_of_day("24:00:00"), Some(86_400_000_000));
        for wrong in ["24:00:01", "1:2", "12:60:00", "13:45:30+02", ""] {
            assert_eq!(time_of_day(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn addresses_have_a_family_and_bits() {
        let address = |text: &str, is_cidr| {
            let mut out = BytesMut::new();
            put_address(text, is_cidr, &mut out).map(|()| out.to_vec())
        };
        assert_eq!(
            address("10.0.0.1", false).unwrap(),
            [2, 32, 0, 4, 10, 0, 0, 1]
        );
        assert_eq!(
            address("10.1.0.0/16", true).unwrap(),
            [2, 16, 1, 4, 10, 1, 0, 0]
        );
        assert_eq!(address("::1/64", false).unwrap()[..4], [3, 64, 0, 16]);
        assert_eq!(address("10.0.0.1/33", false), None);
        assert_eq!(address("here", false), None);
    }
}
