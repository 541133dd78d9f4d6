#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests fail by panicking"
)]
use std::collections::HashSet;

use alluvium_change::Lsn;

use super::*;

fn status(table: &str) -> PipelineStatus {
    let mut status = PipelineStatus {
        connected: true,
        started_micros: 1_700_000_000_123_456,
        updated_micros: 5_000_000,
        source: "shop".to_owned(),
        server_lsn: Lsn(100),
        acknowledged_lsn: Lsn(60),
        complete_until_micros: Some(3_500_000),
        ..PipelineStatus::default()
    };
    status.memory.resident_bytes = Some(5);
    status.memory.index = Part {
        bytes: 9,
        limit_bytes: 10,
    };
    let live = TableStatus {
        phase: Phase::Live,
        silver_rows: u64::MAX,
        commit_lag_ms: Some(82),
        newest_commit_micros: Some(1),
        commit_micros_total: 1_000_001,
        last_commit_micros: Some(7),
        ..TableStatus::default()
    };
    status.tables.insert(table.to_owned(), live);
    status
}

#[test]
fn every_metric_is_there_once_with_help_and_type_before_it() {
    let text = render(&status("public.t"), 5_000_000);
    for metric in ALL {
        let (name, kind) = (metric.name, metric.kind.name());
        let head = format!("# TYPE {name} {kind}\n{name}");
        assert_eq!(text.matches(&head).count(), 1, "{name} in:\n{text}");
        assert_eq!(text.matches(&format!("# HELP {name} ")).count(), 1);
    }
    assert!(text.ends_with('\n'));
}

#[test]
fn names_follow_the_rules() {
    let mut seen = HashSet::new();
    for metric in ALL {
        let name = metric.name;
        assert!(seen.insert(name), "{name} is there twice");
        let letters = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.starts_with("alluvium_") && name.chars().all(letters));
        let is_counter = metric.kind == Kind::Counter;
        assert_eq!(name.ends_with("_total"), is_counter, "{name}");
        let stem = name.strip_suffix("_total").unwrap_or(name);
        for unit in ["bytes", "seconds"] {
            assert_eq!(stem.ends_with(unit), metric.unit == unit, "{name}");
        }
        assert!(metric.help.ends_with('.'), "{name}");
    }
}

#[test]
fn values_are_exact() {
    let text = render(&status("public.t"), 5_000_000);
    for line in [
        "alluvium_source_lag_bytes 40",
        "alluvium_source_lag_seconds 1.500",
        "alluvium_commit_lag_seconds 0.082",
        "alluvium_freshness_seconds 1.500",
        "alluvium_pipeline_start_time_seconds 1700000000.123456",
        "alluvium_memory_bytes{part=\"index\"} 9",
        "alluvium_memory_limit_bytes{part=\"index\"} 10",
        "alluvium_table_rows{table=\"public.t\"} 18446744073709551615",
        "alluvium_table_commit_seconds_total{table=\"public.t\"} 1.000001",
        "alluvium_table_last_commit_seconds{table=\"public.t\"} 0.000007",
        "alluvium_table_phase{table=\"public.t\",phase=\"live\"} 1",
        "alluvium_table_phase{table=\"public.t\",phase=\"stopped\"} 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} in:\n{text}"
        );
    }
}

#[test]
fn what_is_not_known_has_no_sample() {
    let text = render(&PipelineStatus::default(), 5_000_000);
    for name in [
        "alluvium_source_lag_seconds",
        "alluvium_memory_resident_bytes",
    ] {
        assert!(
            text.contains(&format!("# TYPE {name} gauge\n# HELP")),
            "{name}"
        );
    }
    assert!(!text.contains("table="), "{text}");
}

#[test]
fn labels_and_help_are_escaped() {
    let odd = "public.a\"b\\c\nd{},=é";
    let text = render(&status(odd), 5_000_000);
    let wanted = "alluvium_table_conflicts_total{table=\"public.a\\\"b\\\\c\\nd{},=é\"} 0";
    assert!(text.lines().any(|line| line == wanted), "{text}");
    let mut help = String::new();
    escape("a \\ \"b\"\n", false, &mut help);
    assert_eq!(help, "a \\\\ \"b\"\\n");
}

#[test]
fn phases_are_named_as_in_json() {
    for (phase, name) in Phase::NAMED {
        let json = serde_json::to_value(phase).expect("a phase is a word");
        assert_eq!(json, name);
    }
}
