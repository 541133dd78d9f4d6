//! Rows of the lake for the pipeline, which knows no SQL.

use std::sync::Arc;

use alluvium_pipeline::project::Project;
use alluvium_pipeline::run::{FindRows, RowQuery};
use alluvium_query::{QuerySettings, Session, decode_table_name};

/// Finds rows of the project's lake.
pub(crate) fn find_rows(project: &Project) -> FindRows {
    let lake = project.lake_path.clone();
    Arc::new(move |query| {
        let lake = lake.clone();
        Box::pin(async move {
            let settings = QuerySettings {
                memory_bytes: query.most_bytes,
                threads: threads(),
            };
            let session = Session::open(&lake, &settings)?;
            let rows = session.sql(&sql_of(&query)).await?;
            rows.collect_within(query.most_bytes).await
        })
    })
}

/// Threads of a query.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn sql_of(query: &RowQuery) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = query.columns.iter().map(|name| quoted(name)).collect();
    // On a line of its own: it may end in a comment.
    format!(
        "SELECT {} FROM silver.{} AS t WHERE (\n{}\n)",
        columns.join(", "),
        quoted(&decode_table_name(&query.lake_name)),
        query.predicate
    )
}
