//! `[maintain]`: how tables are kept small and quick to open.

use std::path::Path;
use std::time::Duration;

use alluvium_change::Result;
use alluvium_lake::{CompactionSettings, ForeignWriters, RetentionSettings};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::load::{parse_bytes, value_error};

/// Care of tables' files while the pipeline runs.
#[derive(Debug, Clone, Copy)]
pub struct MaintainSettings {
    pub enabled: bool,
    /// Of one core, for writing files anew, of all tables together.
    pub cpu_percent: u8,
    /// Read and written for that, of all tables together; none: as much as the CPU's share makes.
    pub io_bytes_per_sec: Option<u64>,
    /// When writing files anew and removing them may begin; none: always.
    pub window: Option<Window>,
    pub compaction: CompactionSettings,
    pub retention: RetentionSettings,
    /// How long bronze keeps changes; none: for ever.
    pub bronze_changes: Option<Duration>,
    pub foreign: ForeignWriters,
}

impl Default for MaintainSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            cpu_percent: 50,
            io_bytes_per_sec: None,
            window: None,
            compaction: CompactionSettings::default(),
            retention: RetentionSettings::default(),
            bronze_changes: None,
            foreign: ForeignWriters::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MaintainFile {
    enabled: Option<bool>,
    cpu_percent: Option<u8>,
    io_per_second: Option<String>,
    window: Option<String>,
    small_files: Option<usize>,
    deleted_percent: Option<u8>,
    kept_percent: Option<u32>,
    all_versions: Option<String>,
    removed_files: Option<String>,
    old_versions: Option<String>,
    old_versions_every: Option<String>,
    #[serde(deserialize_with = "duration")]
    bronze_changes: Option<Duration>,
    foreign: Option<ForeignFile>,
}

/// `foreign` as it is written.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ForeignFile {
    Follow,
    Repair,
    Refuse,
}

impl From<ForeignFile> for ForeignWriters {
    fn from(written: ForeignFile) -> Self {
        match written {
            ForeignFile::Follow => Self::Follow,
            ForeignFile::Repair => Self::Repair,
            ForeignFile::Refuse => Self::Refuse,
        }
    }
}

impl MaintainFile {
    pub(super) fn settings(&self, file: &Path) -> Result<MaintainSettings> {
        let defaults = MaintainSettings::default();
        let duration = |key: &str, written: &Option<String>, default: Duration| match written {
            None => Ok(default),
            Some(text) => parse_duration(text).ok_or_else(|| {
                value_error(
                    file,
                    &format!("[maintain] {key} = \"{text}\" is not a duration"),
                    "write a number with a unit, such as \"30min\", \"1h\" or \"7d\"",
                )
            }),
        };
        let percent = |key: &str, written: Option<u8>, default: u8| match written {
            None => Ok(default),
            Some(percent @ 1..=100) => Ok(percent),
            Some(_) => Err(value_error(
                file,
                &format!("[maintain] {key} cannot be"),
                "choose 1 to 100",
            )),
        };
        let kept = defaults.retention;
        let retention = RetentionSettings {
            all_versions: duration("all_versions", &self.all_versions, kept.all_versions)?,
            removed_files: duration("removed_files", &self.removed_files, kept.removed_files)?,
            old_versions: duration("old_versions", &self.old_versions, kept.old_versions)?,
            old_versions_every: duration(
                "old_versions_every",
                &self.old_versions_every,
                kept.old_versions_every,
            )?,
        };
        let written = defaults.compaction;
        let small_files = self.small_files.unwrap_or(written.small_files);
        if !(2..=1000).contains(&small_files) {
            return Err(value_error(
                file,
                "[maintain] small_files cannot be",
                "choose 2 to 1000",
            ));
        }
        Ok(MaintainSettings {
            enabled: self.enabled.unwrap_or(defaults.enabled),
            cpu_percent: percent("cpu_percent", self.cpu_percent, defaults.cpu_percent)?,
            io_bytes_per_sec: self.io_bytes_per_sec(file)?,
            window: self.window(file)?,
            compaction: CompactionSettings {
                small_files,
                deleted_percent: percent(
                    "deleted_percent",
                    self.deleted_percent,
                    written.deleted_percent,
                )?,
                kept_percent: self.kept_percent.unwrap_or(written.kept_percent),
                ..written
            },
            retention,
            bronze_changes: self.bronze_changes,
            foreign: self.foreign.map_or(defaults.foreign, ForeignWriters::from),
        })
    }
}

impl MaintainFile {
    fn io_bytes_per_sec(&self, file: &Path) -> Result<Option<u64>> {
        let Some(text) = &self.io_per_second else {
            return Ok(None);
        };
        let bytes = parse_bytes(text)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| {
                value_error(
                    file,
                    &format!("[maintain] io_per_second = \"{text}\" is not a size"),
                    "write a number with a unit, such as \"50MiB\"",
                )
            })?;
        Ok(Some(bytes))
    }

    fn window(&self, file: &Path) -> Result<Option<Window>> {
        let Some(text) = &self.window else {
            return Ok(None);
        };
        let window = Window::parse(text).ok_or_else(|| {
            value_error(
                file,
                &format!("[maintain] window = \"{text}\" is no time of the day"),
                "write from and to, in UTC, such as \"22:00-06:00\"",
            )
        })?;
        Ok(Some(window))
    }
}

/// Hours of each day, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from_minute: u32,
    /// Not in it any more. Where it is not after `from_minute`: of the next day.
    to_minute: u32,
}

const DAY_MINUTES: u32 = 24 * 60;
const MINUTE_MS: i64 = 60_000;

impl Window {
    fn parse(text: &str) -> Option<Self> {
        let minute = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let two_digits = |text: &str| (text.len() == 2).then(|| text.parse::<u32>().ok())?;
            let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let (from, to) = text.split_once('-')?;
        let window = Self {
            from_minute: minute(from)?,
            to_minute: minute(to)?,
        };
        (window.from_minute != window.to_minute).then_some(window)
    }

    /// How long after a moment, in milliseconds since 1970, it opens: nothing while it is open.
    #[must_use]
    pub fn opens_in(&self, now_ms: i64) -> Duration {
        let of_day = now_ms.rem_euclid(i64::from(DAY_MINUTES) * MINUTE_MS);
        let minute = u32::try_from(of_day / MINUTE_MS).unwrap_or_default();
        let since = |from: u32| (minute + DAY_MINUTES - from) % DAY_MINUTES;
        let length = (self.to_minute + DAY_MINUTES - self.from_minute) % DAY_MINUTES;
        if since(self.from_minute) < length {
            return Duration::ZERO;
        }
        let minutes = DAY_MINUTES - since(self.from_minute);
        let ms = i64::from(minutes) * MINUTE_MS - of_day % MINUTE_MS;
        Duration::from_millis(u64::try_from(ms).unwrap_or_default())
    }
}

/// A duration as the file has it.
pub(super) fn duration<'de, D: Deserializer<'de>>(
    written: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(written)?;
    let hint = "write a number with a unit, such as \"10s\", \"5min\" or \"1h\"";
    let wrong = || D::Error::custom(format!("\"{text}\" is not a duration: {hint}"));
    parse_duration(&text).ok_or_else(wrong).map(Some)
}

/// `"30s"`, `"10min"`, `"1h"`, `"7d"`.
fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds: u64 = match unit.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    // Beyond a thousand years it cannot be added to a time.
    let seconds = number.parse::<u64>().ok()?.checked_mul(seconds)?;
    (seconds < 86_400 * 365_000).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn read(text: &str) -> Result<MaintainSettings> {
        let written: MaintainFile = toml::from_str(text).unwrap();
        written.settings(Path::new("/p/alluvium.toml"))
    }

    #[test]
    fn durations_have_units() {
        let settings = read("all_versions = \"90s\"\nold_versions = \"30 d\"").unwrap();
        assert_eq!(settings.retention.all_versions, Duration::from_secs(90));
        assert_eq!(
            settings.retention.old_versions,
            Duration::from_secs(30 * 86_400)
        );
        assert_eq!(settings.retention.removed_files, Duration::from_secs(3600));
        assert_eq!(parse_duration("10min"), Some(Duration::from_secs(600)));
        assert_eq!(parse_duration("2h"), Some(Duration::from_secs(7200)));
    }

    #[test]
    fn a_window_opens_once_a_day() {
        let opens_in = |window: &str, hour: i64, minute: i64| {
            let settings = read(&format!("window = \"{window}\"")).unwrap();
            // Of some day, and half a minute.
            let now_ms = (20_000 * 24 + hour) * 3_600_000 + minute * 60_000 + 30_000;
            settings.window.unwrap().opens_in(now_ms).as_secs()
        };
        assert_eq!(opens_in("22:00-06:00", 21, 59), 30);
        assert_eq!(opens_in("22:00-06:00", 22, 0), 0);
        assert_eq!(opens_in("22:00-06:00", 5, 59), 0);
        assert_eq!(opens_in("22:00-06:00", 6, 0), 16 * 3600 - 30);
        assert_eq!(opens_in("01:30-02:00", 1, 45), 0);
        assert_eq!(opens_in("01:30-02:00", 2, 0), 24 * 3600 - 1800 - 30);
        assert_eq!(
            read("io_per_second = \"50 MiB\"").unwrap().io_bytes_per_sec,
            Some(50 << 20)
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for wrong in [
            "all_versions = \"1 week\"",
            "removed_files = \"h\"",
            "old_versions = \"99999999999999999999d\"",
            "old_versions_every = \"9999999d\"",
            "cpu_percent = 0",
            "deleted_percent = 101",
            "small_files = 1",
            "io_per_second = \"fast\"",
            "io_per_second = \"0\"",
            "window = \"22:00\"",
            "window = \"22:00-24:00\"",
            "window = \"6:00-7:00\"",
            "window = \"06:00-06:00\"",
        ] {
            let error = read(wrong).unwrap_err();
            let key = wrong.split(' ').next().unwrap();
            assert!(error.message().contains(key), "{error}");
        }
    }
}
