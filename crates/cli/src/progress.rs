//! What a person sees of a running pipeline: each table's copy as it goes, on stderr.

use std::time::Duration;

use alluvium_pipeline::status::{Phase, StatusBoard, TableStatus};

use crate::print;

const EVERY_ON_TERMINAL: Duration = Duration::from_secs(2);
const EVERY_IN_LOG: Duration = Duration::from_secs(30);

/// Tells of the copies in progress until dropped.
pub(crate) async fn follow(board: StatusBoard) {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let every = if terminal {
        EVERY_ON_TERMINAL
    } else {
        EVERY_IN_LOG
    };
    let mut was_copying = std::collections::BTreeSet::new();
    loop {
        tokio::time::sleep(every).await;
        let status = board.read();
        for (name, table) in &status.tables {
            if table.phase == Phase::Copying || table.resyncing {
                was_copying.insert(name.clone());
                tracing::info!("copying {name}: {}", describe(table));
            } else if was_copying.remove(name) {
                tracing::info!("copied {name}: {} rows", print::count(table.copied_rows));
            }
        }
    }
}

fn describe(table: &TableStatus) -> String {
    let rows = print::count(table.copied_rows);
    let bytes = print::bytes(table.copied_bytes);
    let rate = print::count(table.copied_rows_per_sec);
    let left = table.estimated_rows.saturating_sub(table.copied_rows);
    let estimate = match (table.estimated_rows, table.copied_rows_per_sec) {
        (0, _) | (_, 0) => String::new(),
        (all, rate) => format!(
            " of about {} ({} %), about {} s left",
            print::count(all),
            (table.copied_rows * 100 / all).min(100),
            left / rate
        ),
    };
    format!("{rows} rows{estimate}, {bytes}, {rate} rows/s")
}
