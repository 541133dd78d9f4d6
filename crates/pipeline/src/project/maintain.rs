//! `[maintain]`: how tables are kept small and quick to open.

use std::path::Path;
use std::time::Duration;

use alluvium_change::Result;
use alluvium_lake::{CompactionSettings, ForeignWriters, RetentionSettings};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::load::value_error;

/// Care of tables' files while the pipeline runs.
#[derive(Debug, Clone, Copy)]
pub struct MaintainSettings {
    pub enabled: bool,
    /// Of one core, for writing files anew, of all tables together.
    pub cpu_percent: u8,
    pub compaction: CompactionSettings,
    pub retention: RetentionSettings,
    pub foreign: ForeignWriters,
}

impl Default for MaintainSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            cpu_percent: 50,
            compaction: CompactionSettings::default(),
            retention: RetentionSettings::default(),
            foreign: ForeignWriters::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MaintainFile {
    enabled: Option<bool>,
    cpu_percent: Option<u8>,
    small_files: Option<usize>,
    deleted_percent: Option<u8>,
    all_versions: Option<String>,
    removed_files: Option<String>,
    old_versions: Option<String>,
    old_versions_every: Option<String>,
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
            compaction: CompactionSettings {
                small_files,
                deleted_percent: percent(
                    "deleted_percent",
                    self.deleted_percent,
                    written.deleted_percent,
                )?,
                ..written
            },
            retention,
            foreign: self.foreign.map_or(defaults.foreign, ForeignWriters::from),
        })
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
    fn what_cannot_be_is_refused() {
        for wrong in [
            "all_versions = \"1 week\"",
            "removed_files = \"h\"",
            "old_versions = \"99999999999999999999d\"",
            "old_versions_every = \"9999999d\"",
            "cpu_percent = 0",
            "deleted_percent = 101",
            "small_files = 1",
        ] {
            let error = read(wrong).unwrap_err();
            let key = wrong.split(' ').next().unwrap();
            assert!(error.message().contains(key), "{error}");
        }
    }
}
