//! Dates, timestamps and times of day from PostgreSQL's text (`DateStyle = ISO`) and binary forms.
//!
//! Leaf parsers of [`super`]. Years before Christ and beyond 9999 are exact; what no date or
//! 64-bit count of microseconds holds is reported with the nearest value that fits.
//!
//! The nearest value to an infinity is the largest or smallest number whose negation also exists:
//! DuckDB reads it back as an infinity, other readers as a day millions of years away.

use super::{Kind, Reject};

const DATE_INFINITE: Kind = "infinity in a date";
const TIMESTAMP_INFINITE: Kind = "infinity in a timestamp";
const TIMESTAMP_BEYOND: Kind = "timestamp beyond 64-bit microseconds since 1970";
const MALFORMED_DATE: Kind = "malformed date";
const MALFORMED_TIMESTAMP: Kind = "malformed timestamp";

/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_DAYS: i32 = 10_957;
const MICROS_PER_SEC: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SEC;
/// Microseconds from 1970 to 2000.
pub(crate) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * MICROS_PER_DAY;

/// Days since 1970-01-01 of a day of the proleptic Gregorian calendar; year 0 is 1 BC.
pub(crate) fn days_of(year: i64, month: u32, day: u32) -> i64 {
    // Years start in March here, so that the leap day is the last day of a year.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let day_of_year = i64::from((153 * month + 2) / 5 + day - 1);
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719 468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + day_of_year - 719_468
}

fn days_in_month(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Reads from the front of a text.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn eat(&mut self, expected: u8) -> bool {
        match self.0 {
            [first, rest @ ..] if *first == expected => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn two_digits(&mut self) -> Option<u32> {
        let [tens @ b'0'..=b'9', ones @ b'0'..=b'9', rest @ ..] = self.0 else {
            return None;
        };
        self.0 = rest;
        Some(u32::from(tens - b'0') * 10 + u32::from(ones - b'0'))
    }

    /// Four to nine digits.
    fn year(&mut self) -> Option<i64> {
        let mut year = 0;
        let mut digits = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            year = year * 10 + i64::from(digit - b'0');
            digits += 1;
            if digits > 9 {
                return None;
            }
            self.0 = rest;
        }
        (digits >= 4).then_some(year)
    }

    /// `YYYY-MM-DD`: year (not yet turned around for BC), month, day.
    fn date(&mut self) -> Option<(i64, u32, u32)> {
        let year = self.year()?;
        if !self.eat(b'-') {
            return None;
        }
        let month = self.two_digits()?;
        if !self.eat(b'-') {
            return None;
        }
        Some((year, month, self.two_digits()?))
    }

    /// `HH:MM:SS[.ffffff]` as microseconds, at most 24:00:00.
    fn time(&mut self) -> Option<i64> {
        let hour = self.two_digits()?;
        if !self.eat(b':') {
            return None;
        }
        let minute = self.two_digits()?;
        if !self.eat(b':') {
            return None;
        }
        let second = self.two_digits()?;
        let fraction = if self.eat(b'.') { self.fraction()? } else { 0 };
        if minute > 59 || second > 59 {
            return None;
        }
        let micros =
            i64::from(hour * 3600 + minute * 60 + second) * MICROS_PER_SEC + i64::from(fraction);
        (micros <= MICROS_PER_DAY).then_some(micros)
    }

    /// One to six digits of a fraction of a second, as microseconds.
    fn fraction(&mut self) -> Option<u32> {
        let mut unit = 1_000_000;
        let mut micros = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            unit /= 10;
            if unit == 0 {
                return None;
            }
            micros += u32::from(digit - b'0') * unit;
            self.0 = rest;
        }
        (unit < 1_000_000).then_some(micros)
    }

    /// `+HH[:MM[:SS]]`, seconds east of Greenwich.
    fn zone(&mut self) -> Option<i64> {
        let west = self.eat(b'-');
        if !west && !self.eat(b'+') {
            return None;
        }
        let mut seconds = self.two_digits()? * 3600;
        if self.eat(b':') {
            seconds += self.two_digits()? * 60;
            if self.eat(b':') {
                seconds += self.two_digits()?;
            }
        }
        let seconds = i64::from(seconds);
        Some(if west { -seconds } else { seconds })
    }

    /// What may follow a date: ` BC`. True if it did, None if something else is there.
    fn era_is_bc(&self) -> Option<bool> {
        match self.0 {
            [] => Some(false),
            b" BC" => Some(true),
            _ => None,
        }
    }
}

/// Days since 1970 of a written date; None if there is no such day.
fn checked_days(year: i64, month: u32, day: u32, before_christ: bool) -> Option<i64> {
    let astronomical = if before_christ { 1 - year } else { year };
    let exists = year >= 1
        && (1..=12).contains(&month)
        && (1..=days_in_month(astronomical, month)).contains(&day);
    exists.then(|| days_of(astronomical, month, day))
}

/// `date_out`: days since 1970-01-01.
pub(crate) fn date(text: &[u8]) -> Result<i32, Reject<i32>> {
    match text {
        b"infinity" => return Err(Reject::beyond(DATE_INFINITE, i32::MAX)),
        b"-infinity" => return Err(Reject::beyond(DATE_INFINITE, -i32::MAX)),
        _ => {}
    }
    let mut scan = Scan(text);
    scan.date()
        .zip(scan.era_is_bc())
        .and_then(|((year, month, day), bc)| checked_days(year, month, day, bc))
        .and_then(|days| i32::try_from(days).ok())
        .ok_or(Reject::Malformed(MALFORMED_DATE))
}

/// `date_send`: days since 2000-01-01.
pub(crate) fn date_binary(bytes: &[u8]) -> Result<i32, Reject<i32>> {
    let Ok(bytes) = <[u8; 4]>::try_from(bytes) else {
        return Err(Reject::Malformed(MALFORMED_DATE));
    };
    match i32::from_be_bytes(bytes) {
        i32::MAX => Err(Reject::beyond(DATE_INFINITE, i32::MAX)),
        i32::MIN => Err(Reject::beyond(DATE_INFINITE, -i32::MAX)),
        days => days
            .checked_add(EPOCH_DAYS)
            .ok_or(Reject::Malformed(MALFORMED_DATE)),
    }
}

/// `timestamp_out`, or with `zoned` `timestamptz_out`: microseconds since 1970.
pub(crate) fn timestamp(text: &[u8], zoned: bool) -> Result<i64, Reject<i64>> {
    match text {
        b"infinity" => return Err(Reject::beyond(TIMESTAMP_INFINITE, i64::MAX)),
        b"-infinity" => return Err(Reject::beyond(TIMESTAMP_INFINITE, -i64::MAX)),
        _ => {}
    }
    let (days, micros) =
        timestamp_parts(text, zoned).ok_or(Reject::Malformed(MALFORMED_TIMESTAMP))?;
    days.checked_mul(MICROS_PER_DAY)
        .and_then(|start| start.checked_add(micros))
        .ok_or(Reject::beyond(
            TIMESTAMP_BEYOND,
            if days < 0 { -i64::MAX } else { i64::MAX },
        ))
}

/// Days since 1970, and microseconds since that midnight in UTC (before or after that day, with a
/// zone).
fn timestamp_parts(text: &[u8], zoned: bool) -> Option<(i64, i64)> {
    let mut scan = Scan(text);
    let (year, month, day) = scan.date()?;
    if !scan.eat(b' ') {
        return None;
    }
    let micros = scan.time()?;
    let east_secs = if zoned { scan.zone()? } else { 0 };
    let days = checked_days(year, month, day, scan.era_is_bc()?)?;
    Some((days, micros - east_secs * MICROS_PER_SEC))
}

/// `timestamp_send`, `timestamptz_send`: microseconds since 2000.
pub(crate) fn timestamp_binary(bytes: &[u8]) -> Result<i64, Reject<i64>> {
    let Ok(bytes) = <[u8; 8]>::try_from(bytes) else {
        return Err(Reject::Malformed(MALFORMED_TIMESTAMP));
    };
    match i64::from_be_bytes(bytes) {
        i64::MAX => Err(Reject::beyond(TIMESTAMP_INFINITE, i64::MAX)),
        i64::MIN => Err(Reject::beyond(TIMESTAMP_INFINITE, -i64::MAX)),
        micros => micros
            .checked_add(EPOCH_MICROS)
            .ok_or(Reject::beyond(TIMESTAMP_BEYOND, i64::MAX)),
    }
}

/// `time_out`: microseconds since midnight.
pub(crate) fn time_of_day(text: &[u8]) -> Option<i64> {
    let mut scan = Scan(text);
    let micros = scan.time()?;
    scan.0.is_empty().then_some(micros)
}

/// A refused binary date as people know it.
pub(crate) fn describe_date(bytes: &[u8]) -> Option<Vec<u8>> {
    match i32::from_be_bytes(bytes.try_into().ok()?) {
        i32::MAX => Some(b"infinity".to_vec()),
        i32::MIN => Some(b"-infinity".to_vec()),
        days => Some(format!("{days} days after 2000-01-01").into_bytes()),
    }
}

/// A refused binary timestamp as people know it.
pub(crate) fn describe_timestamp(bytes: &[u8]) -> Option<Vec<u8>> {
    match i64::from_be_bytes(bytes.try_into().ok()?) {
        i64::MAX => Some(b"infinity".to_vec()),
        i64::MIN => Some(b"-infinity".to_vec()),
        micros => Some(format!("{micros} microseconds after 2000-01-01 00:00:00").into_bytes()),
    }
}
