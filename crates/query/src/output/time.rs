//! Dates, times and intervals as ISO-8601 text.
//!
//! Own calendar arithmetic: a Delta timestamp reaches the years ±292 000, beyond what common date
//! libraries print. Years outside 0 to 9999 get a sign, as ISO-8601 asks; year 0 is 1 BC.

use std::fmt::Write;

const SECONDS_PER_DAY: i64 = 86_400;

/// Writing to memory cannot fail, so the result of `write!` is dropped in this module.
fn push(out: &mut impl Write, arguments: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(arguments);
}

/// `2024-02-29`, from days since 1970-01-01.
pub(super) fn date(days: i64, out: &mut String) {
    let (year, month, day) = civil(days);
    match year {
        0..=9999 => push(out, format_args!("{year:04}-{month:02}-{day:02}")),
        10_000.. => push(out, format_args!("+{year}-{month:02}-{day:02}")),
        _ => push(
            out,
            format_args!("-{:04}-{month:02}-{day:02}", year.unsigned_abs()),
        ),
    }
}

/// Year, month, day of a day since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Counts in eras of 400 years that start on a 1 March, so that the leap day is a year's last.
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    const EPOCH_SHIFT: i64 = 719_468;
    // Only days near the ends of i64 saturate, which no Arrow type holds.
    let shifted = days.saturating_add(EPOCH_SHIFT);
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// `2024-02-29T23:59:59.5`, from units since 1970-01-01, `per_second` of them in a second.
/// `zone` ends it with `Z`.
pub(super) fn timestamp(value: i64, per_second: i64, zone: bool, out: &mut String) {
    let seconds = value.div_euclid(per_second);
    date(seconds.div_euclid(SECONDS_PER_DAY), out);
    out.push('T');
    clock(
        seconds.rem_euclid(SECONDS_PER_DAY),
        value.rem_euclid(per_second),
        per_second,
        out,
    );
    if zone {
        out.push('Z');
    }
}

/// `23:59:59.5`, from units since midnight.
pub(super) fn time(value: i64, per_second: i64, out: &mut String) {
    let magnitude = value.unsigned_abs();
    let unit = per_second.unsigned_abs().max(1);
    if value < 0 {
        out.push('-');
    }
    let whole = i64::try_from(magnitude / unit).unwrap_or(i64::MAX);
    let rest = i64::try_from(magnitude % unit).unwrap_or(0);
    clock(whole, rest, per_second, out);
}

/// `23:59:59.5`, from seconds since midnight and units of the next, `per_second` of them in one.
pub(crate) fn clock(seconds: i64, fraction: i64, per_second: i64, out: &mut impl Write) {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    push(
        out,
        format_args!("{hours:02}:{minutes:02}:{:02}", seconds % 60),
    );
    push_fraction(fraction, per_second, out);
}

/// `.5`: the digits a value has and no more; nothing for a whole second.
fn push_fraction(fraction: i64, per_second: i64, out: &mut impl Write) {
    if fraction == 0 {
        return;
    }
    let digits = per_second.max(1).ilog10() as usize;
    let text = format!("{fraction:0digits$}");
    push(out, format_args!(".{}", text.trim_end_matches('0')));
}

/// ISO-8601 duration of months, days and a time: `P1Y2M3DT4H5M6.5S`. Parts keep their own signs;
/// nothing at all is `PT0S`.
pub(super) fn interval(months: i64, days: i64, time: i64, per_second: i64, out: &mut String) {
    let start = out.len();
    out.push('P');
    for (amount, unit) in [(months / 12, 'Y'), (months % 12, 'M'), (days, 'D')] {
        if amount != 0 {
            push(out, format_args!("{amount}{unit}"));
        }
    }
    let seconds = time / per_second;
    let fraction = time % per_second;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if time != 0 || out.len() == start + 1 {
        out.push('T');
    }
    for (amount, unit) in [(hours, 'H'), (minutes, 'M')] {
        if amount != 0 {
            push(out, format_args!("{amount}{unit}"));
        }
    }
    if seconds != 0 || fraction != 0 || out.len() == start + 2 {
        if seconds < 0 || fraction < 0 {
            out.push('-');
        }
        push(out, format_args!("{}", seconds.unsigned_abs()));
        push_fraction(fraction.saturating_abs(), per_second, out);
        out.push('S');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl Fn(&mut String)) -> String {
        let mut out = String::new();
        write(&mut out);
        out
    }

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        let at = |days| text(|out| date(days, out));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(-1), "1969-12-31");
        assert_eq!(at(11_016), "2000-02-29");
        assert_eq!(at(11_017), "2000-03-01");
        assert_eq!(at(-719_528), "0000-01-01");
        assert_eq!(at(-719_529), "-0001-12-31");
        assert_eq!(at(2_932_896), "9999-12-31");
        assert_eq!(at(2_932_897), "+10000-01-01");
        assert_eq!(at(i64::from(i32::MAX)), "+5881580-07-11");
        assert_eq!(at(i64::from(i32::MIN)), "-5877641-06-23");
        let _ = (at(i64::MAX), at(i64::MIN));
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let mut expected = (1601, 1, 1);
        for days in -134_774..158_000 {
            assert_eq!(civil(days), expected, "day {days}");
            let (year, month, day) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = if day < length {
                (year, month, day + 1)
            } else if month < 12 {
                (year, month + 1, 1)
            } else {
                (year + 1, 1, 1)
            };
        }
    }

    #[test]
    fn timestamps_keep_every_digit_they_have() {
        let at = |value, zone| text(|out| timestamp(value, 1_000_000, zone, out));
        assert_eq!(at(0, true), "1970-01-01T00:00:00Z");
        assert_eq!(at(-1, true), "1969-12-31T23:59:59.999999Z");
        assert_eq!(at(1_500_000, false), "1970-01-01T00:00:01.5");
        assert_eq!(at(i64::MAX, true), "+294247-01-10T04:00:54.775807Z");
        assert_eq!(at(i64::MIN, true), "-290308-12-21T19:59:05.224192Z");
        assert_eq!(
            text(|out| timestamp(7, 1_000_000_000, false, out)),
            "1970-01-01T00:00:00.000000007"
        );
        assert_eq!(
            text(|out| timestamp(-1, 1, false, out)),
            "1969-12-31T23:59:59"
        );
        assert_eq!(text(|out| time(86_400_000_000, 1_000_000, out)), "24:00:00");
    }

    #[test]
    fn intervals_name_only_the_parts_they_have() {
        let at = |months, days, time| text(|out| interval(months, days, time, 1000, out));
        assert_eq!(at(0, 0, 0), "PT0S");
        assert_eq!(at(14, 3, 14_706_500), "P1Y2M3DT4H5M6.5S");
        assert_eq!(at(-1, 0, 0), "P-1M");
        assert_eq!(at(0, -2, -500), "P-2DT-0.5S");
        assert_eq!(at(0, 0, 3_600_000), "PT1H");
        let _ = at(i64::MIN, i64::MIN, i64::MIN);
    }
}
