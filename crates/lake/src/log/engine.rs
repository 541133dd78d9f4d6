//! The kernel's engine: how it reads logs and writes Delta checkpoints.
//!
//! One for the process. The kernel drives it through a small runtime of its own, so that callers
//! stay synchronous; it must not be called from an asynchronous task.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use alluvium_change::{Error, Result, code};
use delta_kernel::KernelError;
use delta_kernel_default_engine::executor::tokio::TokioMultiThreadExecutor;
use delta_kernel_default_engine::{DefaultEngine, DefaultEngineBuilder};
use url::Url;

use super::store::DurableStore;
use crate::fs::io_error;

pub(super) type Engine = DefaultEngine<TokioMultiThreadExecutor>;

static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();

/// The engine, started at first use.
pub(super) fn engine() -> Result<Arc<Engine>> {
    if let Some(engine) = ENGINE.get() {
        return Ok(Arc::clone(engine));
    }
    // The kernel writes checkpoints only with a multi-threaded executor.
    // Each of its nested waits takes a further thread; idle ones end by themselves.
    let executor = TokioMultiThreadExecutor::new_owned_runtime(Some(2), Some(64)).map_err(|e| {
        Error::new(&code::LAKE_IO, "could not start threads for the lake").with_source(e)
    })?;
    let engine = Arc::new(
        DefaultEngineBuilder::new(Arc::new(DurableStore::new()))
            .with_task_executor(Arc::new(executor))
            .build(),
    );
    // Of two threads that come here at once, one keeps its engine and the other's is dropped.
    Ok(Arc::clone(ENGINE.get_or_init(|| engine)))
}

/// The URL of a table's directory.
pub(super) fn table_url(dir: &Path) -> Result<Url> {
    let absolute = std::path::absolute(dir).map_err(|e| io_error("resolve", dir, e))?;
    Url::from_directory_path(&absolute)
        .map_err(|()| Error::bug(format!("\"{}\" is no absolute path", absolute.display())))
}

/// An error of the kernel while doing `action` to the table in `dir`.
pub(super) fn kernel_error(action: &str, dir: &Path, error: KernelError) -> Error {
    // Where RUST_BACKTRACE is set, the kernel wraps its errors and prints the backtrace with them.
    if let KernelError::Backtraced { source, .. } = error {
        return kernel_error(action, dir, *source);
    }
    let text = error.to_string();
    let code = match &error {
        KernelError::IOError(e) => return io_error_of(action, dir, e),
        KernelError::ObjectStore(object_store::Error::NotFound { .. })
        | KernelError::FileNotFound(_)
        | KernelError::MissingVersion(_)
        | KernelError::EmptyLog
        | KernelError::MalformedJson(_)
        | KernelError::Parquet(_)
        | KernelError::Arrow(_)
        | KernelError::MissingData(_)
        | KernelError::DeletionVector(_)
        | KernelError::MissingMetadata
        | KernelError::MissingProtocol
        | KernelError::MissingMetadataAndProtocol
        | KernelError::InvalidCheckpoint(_)
        | KernelError::InvalidLogSegment(_)
        | KernelError::InvalidLogPath(_) => &code::LAKE_CORRUPT,
        KernelError::ObjectStore(_) => &code::LAKE_IO,
        KernelError::Unsupported(_) => &code::LAKE_FOREIGN,
        // The kernel wraps most reading errors without a kind of their own.
        _ if text.contains("not found") || text.contains("No such file") => &code::LAKE_CORRUPT,
        _ => &code::LAKE_IO,
    };
    Error::new(
        code,
        format!("could not {action} the lake's table \"{}\"", dir.display()),
    )
    .with_detail(text)
    .with_source(error)
}

fn io_error_of(action: &str, dir: &Path, error: &std::io::Error) -> Error {
    let copy = error.raw_os_error().map_or_else(
        || std::io::Error::new(error.kind(), error.to_string()),
        std::io::Error::from_raw_os_error,
    );
    io_error(action, dir, copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_neither_hides_the_kind_nor_shows() {
        let error = KernelError::Backtraced {
            source: Box::new(KernelError::MissingVersion(7)),
            backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
        };
        let error = kernel_error("open", Path::new("/lake"), error);
        assert!(error.is(&code::LAKE_CORRUPT), "{error}");
        let lines = error.detail().map(|detail| detail.lines().count());
        assert_eq!(lines, Some(1), "{error}");
    }
}
