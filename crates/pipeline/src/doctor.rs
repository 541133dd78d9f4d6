//! `alluvium doctor`: one list of checks over source and lake, also made before every run.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use alluvium_change::{Error, code};
use alluvium_source_postgres::connect::ConnectOptions;
use alluvium_source_postgres::preflight::{self, Check, CheckStatus};

use crate::project::Project;
use crate::tables::selection;

/// Above this, each commit to the lake waits noticeably for the disk.
const SLOW_SYNC: Duration = Duration::from_millis(50);
const LITTLE_SPACE_BYTES: u64 = 1 << 30;

/// All checks, of the source first. Never fails: what cannot be checked is a failed check.
pub async fn check_all(project: &Project, options: &ConnectOptions) -> Vec<Check> {
    let source = &project.source;
    let selection = selection(project);
    let mut checks =
        preflight::check_source(options, &selection, &source.slot, &source.publication).await;
    checks.extend(preflight::check_tuples(options, &selection, source.tuples).await);
    checks.extend(preflight::check_two_phase(options, &source.slot, source.two_phase).await);
    checks.push(lake_writable(&project.lake_path));
    checks.extend(free_space(&project.lake_path));
    checks
}

fn lake_writable(lake: &Path) -> Check {
    const MEANING: &str = "each commit writes and syncs a few small files; the time of a sync is \
                           the least time a change takes to be durable";
    let check = |status, finding: String, fix: Option<String>| Check {
        name: "lake",
        status,
        finding,
        meaning: MEANING.to_owned(),
        fix,
        code: (status == CheckStatus::Fail).then_some(&code::LAKE_READ_ONLY),
    };
    match time_sync(lake) {
        Ok(took) if took > SLOW_SYNC => check(
            CheckStatus::Warn,
            format!("\"{}\" is writable, but a sync takes {} ms", lake.display(), took.as_millis()),
            Some("use a disk with a quicker fsync, or raise [commit] min_interval_ms".to_owned()),
        ),
        Ok(took) => check(
            CheckStatus::Ok,
            format!("\"{}\" is writable, a sync takes {:.1} ms", lake.display(), took.as_secs_f64() * 1e3),
            None,
        ),
        Err(error) => check(
            CheckStatus::Fail,
            format!("cannot write to lake \"{}\": {error}", lake.display()),
            Some("check that the directory exists, who owns it, and that the disk is not full or read-only".to_owned()),
        ),
    }
}

/// The median of a few syncs of a small new file.
fn time_sync(lake: &Path) -> std::io::Result<Duration> {
    std::fs::create_dir_all(lake)?;
    let path = lake.join(format!(".alluvium-doctor-{}", std::process::id()));
    let mut times = Vec::new();
    let outcome = (0..5).try_for_each(|_| {
        let mut file = std::fs::File::create(&path)?;
        file.write_all(&[0; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed());
        Ok(())
    });
    let _ = std::fs::remove_file(&path);
    times.sort_unstable();
    outcome.map(|()| times.get(times.len() / 2).copied().unwrap_or_default())
}

fn free_space(lake: &Path) -> Option<Check> {
    let free_bytes = free_bytes(lake).ok()?;
    let little = free_bytes < LITTLE_SPACE_BYTES;
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let free_gib = free_bytes as f64 / f64::from(1 << 30);
    Some(Check {
        name: "disk",
        status: if little {
            CheckStatus::Warn
        } else {
            CheckStatus::Ok
        },
        finding: format!("{free_gib:.1} GiB free for the lake"),
        meaning: "when the disk is full the pipeline stops; nothing is lost, but the source keeps \
                  its WAL until the pipeline goes on"
            .to_owned(),
        fix: little.then(|| format!("make room on the disk of \"{}\"", lake.display())),
        code: None,
    })
}

/// Free bytes of the file system that holds `path`.
fn free_bytes(path: &Path) -> Result<u64, Error> {
    fs4::available_space(path).map_err(|error| {
        Error::new(
            &code::LAKE_IO,
            format!("cannot read the free space of \"{}\"", path.display()),
        )
        .with_source(error)
    })
}
