//! What keeps a table's two Delta tables small and quick to open, beside the stream: Delta
//! checkpoints, files written anew as one, and removing what nobody needs.
//!
//! ```text
//! owner, after each task: what is due? ─► jobs, on threads of their own ─► owner: adopts what came of them
//! ```
//!
//! One Delta checkpoint at a time is made in the whole pipeline, and one compaction or cleaning; the latter
//! rest in between, so that they take no more than their share of a core. Their threads give way to others
//! where there are more than cores: who waits for rows does not wait for care.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alluvium_change::{Error, Lsn, Result, surroundings};
use alluvium_lake::{
    CheckpointDone, CheckpointJob, Cleaned, CleaningJob, Compacted, CompactionJob,
    CompactionSettings, RetentionSettings, Silver, Worked,
};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::{Event, TableOwner, is_of_lake};
use crate::project::MaintainSettings;
use crate::requests::{CareKind, PendingCare};
use crate::status::{Phase, TableStatus};

/// After a job that failed, the next of its kind waits so long.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// A table that rests is cleaned so often.
const RESTING_EVERY: Duration = Duration::from_secs(6 * 3600);
const CLEANING_EVERY: Duration = Duration::from_secs(600);
/// While something is asked for by hand, it is looked so often whether it can be begun.
const ASKED_EVERY: Duration = Duration::from_millis(100);

/// Which of a table's two Delta tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Bronze,
    Silver,
}

/// What all tables' care shares.
#[derive(Debug, Clone)]
pub(crate) struct CareShare {
    settings: MaintainSettings,
    checkpoints: Arc<Semaphore>,
    /// Compactions and cleanings.
    files: Arc<Semaphore>,
}

impl CareShare {
    pub(crate) fn new(settings: MaintainSettings) -> Self {
        Self {
            settings,
            checkpoints: Arc::new(Semaphore::new(1)),
            files: Arc::new(Semaphore::new(1)),
        }
    }

    /// After so much work: sleeps as the share of a core, and of the disk, asks for.
    fn rest(&self, worked: Worked) {
        let share = f64::from(self.settings.cpu_percent.clamp(1, 100)) / 100.0;
        let of_disk = self
            .settings
            .io_bytes_per_sec
            .map_or(Duration::ZERO, |rate| {
                let micros = u128::from(worked.bytes) * 1_000_000 / u128::from(rate.max(1));
                Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            });
        let whole = worked.took.mul_f64(1.0 / share).max(of_disk);
        std::thread::sleep(whole.saturating_sub(worked.took));
    }

    /// How long it is until care may begin: nothing while it may.
    fn opens_in(&self) -> Duration {
        let window = self.settings.window;
        window.map_or(Duration::ZERO, |window| {
            window.opens_in(surroundings::now_ms())
        })
    }
}

/// Work beside the owner.
enum Job {
    Checkpoint(CheckpointJob),
    Compaction(CompactionJob),
    Cleaning(CleaningJob),
}

/// What came of it.
pub(super) enum Done {
    Checkpoint(Result<CheckpointDone>),
    /// None: it was given up.
    Compaction(Result<Option<Compacted>>),
    Cleaning(Result<Cleaned>),
}

/// Of one Delta table.
#[derive(Debug)]
struct Kept {
    checkpointing: bool,
    compacting: bool,
    cleaning: bool,
    not_before: Instant,
    /// A file that waits for a moment at which nothing is staged.
    pending: Option<Compacted>,
    cleaned: Option<Cleaned>,
    clean_at: Instant,
    /// Of the last cleaning, or when the table was opened.
    cleaned_version: u64,
    /// When it was last seen that it had changed since.
    last_change: Option<Instant>,
    /// The version at which it has been for so long that all before it are too old.
    rests_at: Option<u64>,
}

impl Kept {
    fn new(retention: &RetentionSettings, version: u64) -> Self {
        let now = surroundings::instant();
        Self {
            checkpointing: false,
            compacting: false,
            cleaning: false,
            not_before: now,
            pending: None,
            cleaned: None,
            clean_at: now + cleaning_every(retention),
            cleaned_version: version,
            last_change: None,
            rests_at: None,
        }
    }
}

/// The care of one table.
pub(super) struct Care {
    share: CareShare,
    /// Set when the owner ends: what is under way is given up.
    ends: Arc<AtomicBool>,
    retention: RetentionSettings,
    bronze: Kept,
    silver: Kept,
    /// When to look for changes that are too old.
    forget_at: Instant,
    asked: Vec<Asked>,
}

/// Care that was asked for by hand.
#[derive(Debug)]
struct Asked {
    request: PendingCare,
    /// Where it is not done yet.
    left: Vec<Layer>,
    /// Compactions that may still begin: a table that changes all the time never comes to an end.
    jobs_left: usize,
}

/// Often enough that what is too old does not become much older.
fn cleaning_every(retention: &RetentionSettings) -> Duration {
    let shortest = retention.all_versions.max(retention.removed_files);
    (shortest / 6).clamp(Duration::from_secs(1), CLEANING_EVERY)
}

impl Care {
    /// Of a table with its two Delta tables at these versions.
    pub(super) fn new(
        share: CareShare,
        retention: RetentionSettings,
        (bronze, silver): (u64, u64),
    ) -> Self {
        Self {
            share,
            ends: Arc::default(),
            bronze: Kept::new(&retention, bronze),
            silver: Kept::new(&retention, silver),
            forget_at: surroundings::instant(),
            asked: Vec::new(),
            retention,
        }
    }

    fn of(&mut self, layer: Layer) -> &mut Kept {
        match layer {
            Layer::Bronze => &mut self.bronze,
            Layer::Silver => &mut self.silver,
        }
    }

    /// Care asked for by hand, of a table with so many files.
    pub(super) fn ask(&mut self, request: PendingCare, files: usize) {
        self.asked.push(Asked {
            request,
            left: vec![Layer::Bronze, Layer::Silver],
            jobs_left: 2 * files + 1,
        });
    }

    fn asked_for(&self, kind: CareKind, layer: Layer) -> bool {
        let of = |asked: &Asked| asked.request.kind == kind && asked.left.contains(&layer);
        self.asked.iter().any(of)
    }

    /// What was asked for is done there.
    fn answer(&mut self, kind: CareKind, layer: Layer) {
        for asked in self.asked.iter_mut().filter(|a| a.request.kind == kind) {
            asked.left.retain(|left| *left != layer);
        }
        self.asked.retain(|asked| {
            let is_done = asked.left.is_empty();
            if is_done {
                asked.request.finish();
            }
            !is_done
        });
    }

    /// Nothing new is begun, and what is under way is given up.
    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    /// When to look again, though nothing happened.
    pub(super) fn next_look(&self) -> Option<Instant> {
        if !self.asked.is_empty() {
            return Some(surroundings::instant() + ASKED_EVERY);
        }
        self.share
            .settings
            .enabled
            .then(|| self.bronze.clean_at.min(self.silver.clean_at))
    }
}

/// Jobs under way.
#[derive(Default)]
pub(super) struct Jobs(JoinSet<(Layer, Done)>);

impl Jobs {
    /// The next that ends; none when there is none.
    pub(super) async fn next(&mut self) -> Option<(Layer, Done)> {
        while let Some(ended) = self.0.join_next().await {
            if let Ok(done) = ended {
                return Some(done);
            }
        }
        None
    }

    pub(super) fn start(&mut self, due: Vec<(Layer, DueJob)>, care: &Care) {
        for (layer, DueJob(job)) in due {
            let (share, ends) = (care.share.clone(), Arc::clone(&care.ends));
            self.0
                .spawn(async move { (layer, job.run_beside(share, ends).await) });
        }
    }
}

/// A job that is due.
pub(super) struct DueJob(Job);

impl DueJob {
    /// Does it at once, on this thread.
    #[cfg(test)]
    pub(super) fn run(self) -> Done {
        self.0.run(&|_| true)
    }
}

impl Job {
    /// Does the work. After each part of it `rest` is told what that took, and says whether the rest of
    /// it is wanted.
    fn run(self, rest: &dyn Fn(Worked) -> bool) -> Done {
        match self {
            Self::Checkpoint(job) => Done::Checkpoint(job.run()),
            Self::Compaction(job) => Done::Compaction(if rest(Worked::default()) {
                job.run(rest)
            } else {
                Ok(None)
            }),
            Self::Cleaning(job) => Done::Cleaning(if rest(Worked::default()) {
                job.run()
            } else {
                Ok(Cleaned::default())
            }),
        }
    }

    /// Runs on a thread of its own, in its turn.
    async fn run_beside(self, share: CareShare, ends: Arc<AtomicBool>) -> Done {
        let failed: fn(Error) -> Done = match &self {
            Self::Checkpoint(_) => |error| Done::Checkpoint(Err(error)),
            Self::Compaction(_) => |error| Done::Compaction(Err(error)),
            Self::Cleaning(_) => |error| Done::Cleaning(Err(error)),
        };
        let turns = match &self {
            Self::Checkpoint(_) => &share.checkpoints,
            Self::Compaction(_) | Self::Cleaning(_) => &share.files,
        };
        let turn = Arc::clone(turns).acquire_owned().await.ok();
        let (send, done) = oneshot::channel();
        let work = move || {
            give_way();
            let done = self.run(&|worked| {
                share.rest(worked);
                !ends.load(Ordering::Relaxed)
            });
            drop(turn);
            let _ = send.send(done);
        };
        let begun = std::thread::Builder::new()
            .name("alluvium-care".to_owned())
            .spawn(work);
        if let Err(e) = begun {
            return failed(Error::bug("no thread for the care of a table").with_source(e));
        }
        let done = done.await;
        done.unwrap_or_else(|e| failed(Error::bug("care of a table panicked").with_source(e)))
    }
}

/// From here on, this thread runs where others leave a core idle, and gets a small part of one where not.
fn give_way() {
    /// A tenth of the time that another thread gets (sched(7), "The nice value").
    #[cfg(target_os = "linux")]
    const NICE: i32 = 10;
    // Elsewhere priorities are those of processes.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "care does not give way");
    }
}

impl TableOwner {
    /// What is to be done beside the owner now.
    pub(super) fn due_jobs(&mut self) -> Result<Vec<(Layer, DueJob)>> {
        let mut due = Vec::new();
        for layer in [Layer::Bronze, Layer::Silver] {
            let jobs = self.checkpoint(layer).map(Job::Checkpoint);
            due.extend(jobs.map(|job| (layer, DueJob(job))));
            if self.care.ends.load(Ordering::Relaxed) {
                continue;
            }
            let compaction = self.compaction(layer)?.map(Job::Compaction);
            let cleaning = self.cleaning(layer).map(Job::Cleaning);
            let jobs = compaction.into_iter().chain(cleaning);
            due.extend(jobs.map(|job| (layer, DueJob(job))));
        }
        Ok(due)
    }

    fn checkpoint(&mut self, layer: Layer) -> Option<CheckpointJob> {
        let by_hand = self.care.asked_for(CareKind::Checkpoint, layer);
        // Versions before the last checkpoint alone can go: a table that rests would keep those after it.
        let rests_at = self.care.of(layer).rests_at;
        let at_once = |version: u64| by_hand || rests_at == Some(version);
        let silver = self.silver.as_mut();
        let job = match layer {
            Layer::Bronze => self
                .bronze
                .take_checkpoint_job(at_once(self.bronze.version())),
            Layer::Silver => {
                silver.and_then(|silver| silver.take_checkpoint_job(at_once(silver.version())))
            }
        };
        let kept = self.care.of(layer);
        kept.checkpointing |= job.is_some();
        if by_hand && !kept.checkpointing {
            self.care.answer(CareKind::Checkpoint, layer);
        }
        job
    }

    fn compaction(&mut self, layer: Layer) -> Result<Option<CompactionJob>> {
        let by_hand = self.care.asked_for(CareKind::Optimize, layer);
        let settings = self.care.share.settings;
        let is_closed = !self.care.share.opens_in().is_zero();
        let kept = self.care.of(layer);
        let is_early = surroundings::instant() < kept.not_before || !settings.enabled || is_closed;
        if kept.compacting || (is_early && !by_hand) {
            return Ok(None);
        }
        let settings = if by_hand {
            CompactionSettings::by_hand()
        } else {
            settings.compaction
        };
        let job = match (layer, &mut self.silver) {
            (Layer::Bronze, _) => self.bronze.take_compaction_job(&settings),
            // What is staged comes first.
            (Layer::Silver, Some(silver)) if silver.has_staged() => return Ok(None),
            (Layer::Silver, Some(silver)) => silver.take_compaction_job(&settings)?,
            (Layer::Silver, None) => None,
        };
        self.care.of(layer).compacting = job.is_some();
        if by_hand {
            let asked = self.care.asked.iter_mut();
            let asked = asked.filter(|a| a.request.kind == CareKind::Optimize);
            for asked in asked {
                asked.jobs_left = asked.jobs_left.saturating_sub(1);
            }
            let is_over = |a: &Asked| a.request.kind == CareKind::Optimize && a.jobs_left == 0;
            if job.is_none() || self.care.asked.iter().any(is_over) {
                self.care.answer(CareKind::Optimize, layer);
            }
        }
        Ok(job)
    }

    fn cleaning(&mut self, layer: Layer) -> Option<CleaningJob> {
        let version = match layer {
            // A reader of bronze may have files before it that are no longer current.
            Layer::Bronze => (!self.reads_bronze()).then(|| self.bronze.version()),
            Layer::Silver => self.silver.as_ref().map(Silver::version),
        };
        let by_hand = self.care.asked_for(CareKind::Vacuum, layer);
        let (retention, settings) = (self.care.retention, self.care.share.settings);
        let opens_in = self.care.share.opens_in();
        let kept = self.care.of(layer);
        let now = surroundings::instant();
        if !by_hand && !opens_in.is_zero() {
            kept.clean_at = kept.clean_at.max(now + opens_in);
            return None;
        }
        if !by_hand && (now < kept.clean_at || !settings.enabled) {
            return None;
        }
        kept.clean_at = now + cleaning_every(&retention);
        if layer == Layer::Silver && version.is_none() {
            self.care.answer(CareKind::Vacuum, layer);
            return None;
        }
        let version = version.filter(|_| !kept.cleaning)?;
        if version != kept.cleaned_version {
            kept.cleaned_version = version;
            kept.last_change = Some(now);
        }
        kept.cleaning = true;
        let rests = |age: Duration| {
            let last = kept.last_change;
            last.is_none_or(|last| now.duration_since(last) > age)
        };
        let rested_at = kept.rests_at;
        kept.rests_at = rests(retention.all_versions).then_some(version);
        // What was current until the last change is too old so much later.
        let settled = retention.all_versions.max(retention.removed_files) + CLEANING_EVERY;
        if rested_at == Some(version) && rests(settled) {
            kept.clean_at = now + RESTING_EVERY;
        }
        let before = kept.cleaned.take();
        match layer {
            Layer::Bronze => Some(self.bronze.cleaning_job(before)),
            Layer::Silver => Some(self.silver.as_ref()?.cleaning_job(before)),
        }
    }

    /// Takes in what came of a job.
    pub(super) fn job_done(&mut self, layer: Layer, done: Done) {
        match done {
            Done::Checkpoint(done) => {
                self.care.of(layer).checkpointing = false;
                self.care.answer(CareKind::Checkpoint, layer);
                let adopted = match (layer, &mut self.silver) {
                    (Layer::Bronze, _) => self.bronze.adopt_checkpoint(done),
                    (Layer::Silver, Some(silver)) => silver.adopt_checkpoint(done),
                    (Layer::Silver, None) => Ok(()),
                };
                if let Err(error) = adopted {
                    tracing::warn!(table = %self.table.schema.id, error = %error, detail = error.detail().unwrap_or(""), "no delta checkpoint was written, the next one will be");
                }
            }
            Done::Compaction(Ok(compacted)) => {
                let kept = self.care.of(layer);
                kept.compacting = compacted.is_some();
                kept.pending = compacted;
            }
            Done::Compaction(Err(error)) => {
                tracing::warn!(
                    table = %self.table.schema.id, ?layer, error = %error, detail = error.detail().unwrap_or(""),
                    "files could not be written anew as one, the stream goes on"
                );
                let kept = self.care.of(layer);
                kept.compacting = false;
                kept.not_before = surroundings::instant() + RETRY_AFTER;
            }
            Done::Cleaning(cleaned) => {
                self.care.answer(CareKind::Vacuum, layer);
                let kept = self.care.of(layer);
                kept.cleaning = false;
                match cleaned {
                    Ok(cleaned) => {
                        tracing::debug!(
                            table = %self.table.schema.id, ?layer,
                            data_files = cleaned.data_files.len(), data_bytes = cleaned.data_bytes,
                            log_files = cleaned.log_files.len(), "cleaned"
                        );
                        let files = cleaned.data_files.len() + cleaned.log_files.len();
                        let bytes = cleaned.data_bytes + cleaned.log_bytes;
                        kept.cleaned = Some(cleaned);
                        self.note(|status| {
                            status.removed_files += files as u64;
                            status.removed_bytes += bytes;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(
                            table = %self.table.schema.id, ?layer, error = %error, detail = error.detail().unwrap_or(""),
                            "what nobody needs could not be removed, the stream goes on"
                        );
                    }
                }
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut TableStatus)) {
        let table = self.table.schema.id.to_string();
        self.context.board.table(&table, change);
    }

    fn bronze_failed(&mut self, error: Error) -> Vec<Event> {
        if is_of_lake(&error) {
            return vec![Event::Fatal(error)];
        }
        let at = self.position();
        match self.break_at(at, Lsn::ZERO, &error) {
            Ok(()) => vec![Event::PhaseChanged],
            Err(error) => vec![Event::Fatal(error)],
        }
    }

    /// Forgets changes that are older than bronze is to keep them, and that are in silver.
    pub(super) fn forget_old_changes(&mut self) -> Vec<Event> {
        let Some(kept) = self.care.share.settings.bronze_changes else {
            return Vec::new();
        };
        let now = surroundings::instant();
        let is_settled = self.phase == Phase::Live && self.beside.is_none();
        if !is_settled || now < self.care.forget_at {
            return Vec::new();
        }
        self.care.forget_at = now + (kept / 6).clamp(Duration::from_secs(1), CLEANING_EVERY);
        let through = self.silver.as_ref().map(Silver::committed_position);
        let kept_micros = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
        let before = surroundings::now_ms()
            .saturating_mul(1000)
            .saturating_sub(kept_micros);
        match self.bronze.forget(before, through.unwrap_or_default()) {
            Ok(0) => Vec::new(),
            Ok(files) => {
                tracing::debug!(table = %self.table.schema.id, files, "old changes forgotten");
                self.tell_status();
                Vec::new()
            }
            Err(error) => self.bronze_failed(error),
        }
    }

    /// Puts files that were written anew in their place, where nothing is staged at the moment.
    pub(super) fn adopt_compacted(&mut self) -> Vec<Event> {
        for layer in [Layer::Bronze, Layer::Silver] {
            let staged = self.silver.as_ref().is_some_and(Silver::has_staged);
            if layer == Layer::Silver && staged {
                continue;
            }
            let kept = self.care.of(layer);
            let Some(compacted) = kept.pending.take() else {
                continue;
            };
            kept.compacting = false;
            let adopted = match (layer, &mut self.silver) {
                (Layer::Bronze, _) => self.bronze.adopt_compaction(compacted),
                (Layer::Silver, Some(silver)) => silver.adopt_compaction(compacted),
                (Layer::Silver, None) => Ok(None),
            };
            match adopted {
                Ok(version) => {
                    tracing::debug!(table = %self.table.schema.id, ?layer, ?version, "compacted");
                    self.note(|status| status.compactions += u64::from(version.is_some()));
                    self.tell_status();
                }
                Err(error) if layer == Layer::Silver => return self.failed(error),
                Err(error) => return self.bronze_failed(error),
            }
        }
        Vec::new()
    }
}
