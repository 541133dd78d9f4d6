//! A source, a disk, a clock and the owner of one table, of which a list of steps becomes a history.

mod columns;
mod copies;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{ChangeBatch, Error, Identity, Lsn, code, surroundings};
use alluvium_lake::{ClusterBy, Lake, LakeSettings, MergeMode, Repair, SilverSettings, disk};
use alluvium_source_postgres::catalog::SourceTable;
use alluvium_testkit::history::{Change, Random, Row, Source};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, oneshot};

use columns::{Coming, added_columns, rows_at, source_table};
use copies::{Copying, Prepared};

use super::super::care::{Done, DueJob, Layer};
use super::super::command::{Command, CutEnd, Event};
use super::super::task::Task;
use super::super::{CareShare, OwnerContext, TableOwner, is_of_lake};
use super::disk::SimDisk;
use super::laws::Laws;
use super::plan::{Step, settings};
use crate::acknowledge::Acknowledger;
use crate::project::MaintainSettings;
use crate::status::{Phase, StatusBoard};
use crate::tables::{ShapeStep, shape_step};

/// What must not be, in words.
pub(super) type Law = Result<(), String>;

/// So many keys the source uses, from 1 on.
const KEYS: i64 = 24;

/// A transaction of the source.
pub(super) struct Transaction {
    pub(super) lsn: u64,
    pub(super) changes: Vec<Change>,
    /// The first change after a column was added, and how many had been added before it.
    added: (usize, usize),
    /// The rows there are after it.
    pub(super) rows: Vec<Row>,
}

/// The process: what is lost when it ends.
struct Process {
    owner: TableOwner,
    /// The table as it last heard of it.
    known: Arc<SourceTable>,
    jobs: Vec<(Layer, DueJob)>,
    done: Vec<(Layer, Done)>,
    prepared: Option<Prepared>,
    copying: Option<Copying>,
    /// Rows as they were, to be set right.
    repair: Option<Repair>,
    acknowledger: Acknowledger,
    /// Transactions that were sent to it, of all.
    sent: usize,
}

pub(super) struct World {
    root: PathBuf,
    pub(super) disk: Arc<SimDisk>,
    settings: LakeSettings,
    silver: SilverSettings,
    identity: alluvium_lake::Owner,
    /// The table as the source has it now.
    catalog: Arc<SourceTable>,
    random: Random,
    source: Source,
    log: Vec<Transaction>,
    process: Option<Process>,
    /// A copy went on under a later snapshot, so that a value may be missing, or another program wrote.
    may_need_copy: bool,
    /// What the source was told: it need not send it again.
    told: Lsn,
    laws: Laws,
    _dir: TempDir,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        surroundings::simulate(seed);
        let memory = std::path::Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("alluvium-simulation-");
        let dir = if memory.is_dir() {
            builder.tempdir_in(memory)
        } else {
            builder.tempdir()
        };
        let dir = dir.unwrap();
        let mut random = Random(seed ^ 0x51D);
        let settings = settings(&mut random, &dir);
        let identity = if random.chance(80) {
            Identity::Key(vec![0])
        } else {
            Identity::WholeRow
        };
        let mut catalog = source_table(&identity, &[]);
        catalog.is_key_enforced = random.chance(80);
        let root = dir.path().join("lake");
        let disk = Arc::new(SimDisk::new(&root, &dir.path().join("graves")));
        disk.set_now(surroundings::now_ms());
        disk::register(&root, Arc::clone(&disk) as Arc<dyn disk::Disk>);
        let identity_of_owner = alluvium_lake::Owner {
            pipeline: "default".to_owned(),
            source: "test".to_owned(),
            system_identifier: "1".to_owned(),
            table: catalog.schema.id.clone(),
            name: "items".to_owned(),
        };
        let mut source = Source::new(random.draw(), identity.clone(), KEYS);
        source.direct_exchanges = !catalog.is_key_enforced;
        let silver = SilverSettings {
            merge_mode: if random.chance(25) {
                let commit_every = Duration::from_secs([0, 60][random.below(2) as usize]);
                MergeMode::CopyOnWrite { commit_every }
            } else {
                MergeMode::DeletionVectors
            },
            change_data_feed: random.chance(25),
            longest_pause: Duration::from_secs(if random.chance(25) { 5 } else { 0 }),
            cluster_by: match random.below(4) {
                0 => ClusterBy::Columns(vec!["small".to_owned(), "id".to_owned()]),
                _ => ClusterBy::Nothing,
            },
            ..SilverSettings::default()
        };
        Self {
            may_need_copy: matches!(identity, Identity::Key(_)),
            laws: Laws::new(&root, &identity_of_owner, &settings, &silver),
            root,
            disk,
            settings,
            silver,
            identity: identity_of_owner,
            catalog: Arc::new(catalog),
            source,
            random,
            log: Vec::new(),
            process: None,
            told: Lsn::ZERO,
            _dir: dir,
        }
    }

    /// What the program does at its start. Where the disk fails, it starts again.
    fn start(&mut self) -> Law {
        loop {
            match self.open() {
                Ok(owner) => return self.begin(owner),
                Err(error) if self.disk.take_failed() && is_of_lake(&error) => {
                    self.disk.note(format!("  start failed: {error}"));
                    self.recover();
                }
                Err(error) => return Err(format!("it does not start: {}", shown(&error))),
            }
        }
    }

    fn open(&self) -> alluvium_change::Result<TableOwner> {
        let lake = Lake::open(&self.root, self.settings.clone())?;
        let context = OwnerContext {
            lake,
            board: StatusBoard::default(),
            events: mpsc::channel(1).0,
            cpu: Arc::new(Semaphore::new(1)),
            care: CareShare::new(MaintainSettings {
                compaction: self.settings.compaction,
                retention: self.settings.retention,
                ..MaintainSettings::default()
            }),
        };
        let (identity, table) = (self.identity.clone(), Arc::clone(&self.catalog));
        let silver = self.silver.clone();
        let mut owner = TableOwner::open(identity, silver, Arc::clone(&table), context, false)?;
        if !owner.needs_copy() {
            match shape_step(owner.lake_columns(), &table)? {
                ShapeStep::Same => {}
                step => owner.reshape_now(table, &step)?,
            }
        }
        Ok(owner)
    }

    fn begin(&mut self, owner: TableOwner) -> Law {
        let position = owner.bronze.position();
        self.laws.kept(position)?;
        let mut acknowledger = Acknowledger::default();
        acknowledger.restart(self.told, position);
        let sent = self.log.partition_point(|tx| tx.lsn <= self.told.0);
        self.laws
            .started(owner.silver.as_ref().map_or(0, |silver| silver.version()));
        self.process = Some(Process {
            owner,
            known: Arc::clone(&self.catalog),
            jobs: Vec::new(),
            done: Vec::new(),
            prepared: None,
            copying: None,
            repair: None,
            acknowledger,
            sent,
        });
        self.prepare_copy_if_needed()
    }

    /// After the process ended by what failed: the power is there again, and space.
    fn recover(&mut self) {
        if self.disk.is_off() {
            self.disk.restore_power(&mut self.random);
            // The key index is beside the lake, and may be lost whole.
            if self.random.chance(30)
                && let Some(index) = &self.settings.index.dir
            {
                let _ = std::fs::remove_dir_all(index);
            }
        }
        self.disk.heal();
    }

    fn end_process(&mut self) -> Law {
        self.process = None;
        self.recover();
        self.start()
    }

    /// Does one step, and checks that all is as it must be.
    pub(super) fn step(&mut self, step: Step) -> Law {
        self.disk.note(format!("{step:?}"));
        if self.process.is_none() {
            self.start()?;
        }
        match step {
            Step::Write(changes) => self.write(changes),
            Step::AddColumn {
                before,
                has_default,
            } => self.add_column(before, has_default),
            Step::LookAtCatalog => self.look_at_catalog()?,
            Step::Pass { seconds } => {
                surroundings::advance(Duration::from_secs(seconds));
                self.disk.set_now(surroundings::now_ms());
                self.run(Task::Look)?;
            }
            Step::Fault { after, fault } => self.disk.plan(after, fault),
            Step::PowerCut => self.disk.cut_power(),
            Step::Restart { in_order } => {
                if let Some(process) = &mut self.process
                    && in_order
                {
                    process.owner.close();
                }
                self.end_process()?;
            }
            Step::Acknowledge => {
                self.acknowledge();
                self.command(Command::Passed(self.passed()))?;
            }
            Step::Deliver {
                transactions,
                parts,
            } => self.deliver(transactions, parts, true)?,
            Step::Reconnect { transactions } => {
                self.deliver(transactions, 2, false)?;
                self.restart_stream()?;
            }
            Step::CatchUp => {
                if self
                    .process
                    .as_ref()
                    .is_some_and(|p| p.owner.can_catch_up())
                {
                    self.run(Task::CatchUp)?;
                }
            }
            Step::Copy(pages) => self.copy(pages)?,
            Step::Resync => self.resync()?,
            Step::Compare(third) => self.compare(third),
            Step::Repair => self.repair()?,
            Step::Foreign(deed) => {
                self.may_need_copy = true;
                let name = format!("foreign-{:016x}.parquet", self.random.draw());
                let now_ms = surroundings::now_ms();
                let added = &self.source.added[..self.laws.columns()];
                let table = source_table(&self.catalog.schema.identity, added);
                self.laws.foreign(deed, &table.schema, &name, now_ms)?;
                self.disk.was_synced(&self.laws.silver().join("_delta_log"));
            }
            Step::RunJob(nth) => {
                self.run_job(nth);
                self.laws.check_files(surroundings::now_ms())?;
            }
            Step::FinishJob(nth) => self.finish_job(nth)?,
            Step::View => self.view()?,
            Step::Read(nth) => {
                let (log, added) = (&self.log, &self.source.added);
                let rows_at = |lsn, columns: usize| rows_at(log, &added[..columns], lsn);
                self.laws.read_old(nth, surroundings::now_ms(), rows_at)?;
            }
        }
        if self.disk.is_off() {
            self.end_process()?;
        }
        self.check()
    }

    fn check(&mut self) -> Law {
        let Some(process) = &self.process else {
            return Ok(());
        };
        if process.owner.phase == Phase::Stopped {
            let status = process.owner.context.board.read();
            let errors = status.tables.values().map(|table| &table.error);
            return Err(format!(
                "the table stopped: {:?}",
                errors.collect::<Vec<_>>()
            ));
        }
        let Some(silver) = &process.owner.silver else {
            return Ok(());
        };
        if process.owner.context.lake.recent_bytes() > self.settings.recent_bytes {
            return Err("rows kept in memory are beyond their budget".to_owned());
        }
        let (log, added) = (&self.log, &self.source.added);
        let rows_at = |lsn, columns: usize| rows_at(log, &added[..columns], lsn);
        self.laws.check_versions(silver.version(), rows_at)
    }

    fn write(&mut self, changes: usize) {
        let changes = self.source.transaction(changes);
        self.record(changes, (usize::MAX, self.source.added.len()));
    }

    fn record(&mut self, changes: Vec<Change>, added: (usize, usize)) {
        for change in &changes {
            let Change {
                op,
                lsn,
                new,
                old,
                unchanged,
            } = change;
            let unsent = if *unchanged { " unsent" } else { "" };
            self.disk
                .note(format!("  {lsn} {op:?} {new:?}{unsent} old {old:?}"));
        }
        self.log.push(Transaction {
            lsn: self.source.lsn,
            changes,
            added,
            rows: self.source.heap.rows(),
        });
    }

    /// Does a task of the owner, and what comes of it.
    fn run(&mut self, task: Task) -> Law {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let events = process.owner.do_task(task);
        let mut fatal = None;
        for event in events {
            match event {
                Event::Durable { cut, .. } => process.acknowledger.done(cut),
                Event::PhaseChanged => {}
                // Of a copy that went on under a later snapshot, a value may be missing.
                Event::NeedsCopy(_) if self.may_need_copy => process.copying = None,
                Event::NeedsCopy(_) => return Err("it asks for a copy".to_owned()),
                Event::Fatal(error) => fatal = Some(error),
            }
        }
        match fatal {
            Some(error) => self.failed(&error),
            None => self.due(),
        }
    }

    /// An error that ends the process: is there a reason for it?
    fn failed(&mut self, error: &Error) -> Law {
        if self.disk.take_failed() && is_of_lake(error) {
            self.disk.note(format!("  ended by: {error}"));
            return self.end_process();
        }
        Err(format!("it ended without a reason: {}", shown(error)))
    }

    fn due(&mut self) -> Law {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        match process.owner.due_jobs() {
            Ok(due) => {
                process.jobs.extend(due);
                self.laws.durable(process.acknowledger.flushed());
                Ok(())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn acknowledge(&mut self) {
        if let Some(process) = &mut self.process {
            self.told = process.acknowledger.acknowledge(None);
            self.laws.durable(self.told);
        }
    }

    /// Up to where all is in bronze: the source tells how far it is when it has nothing more to send.
    fn passed(&self) -> Lsn {
        match self.log.last() {
            Some(last) if last.lsn <= self.told.0 => Lsn(self.source.lsn + 1),
            _ => self.told,
        }
    }

    /// Sends transactions to the owner, in parts.
    fn deliver(&mut self, transactions: usize, parts: usize, ends: bool) -> Law {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let from = process.sent;
        let to = (from + transactions).min(self.log.len());
        let coming = self.log.get(from..to).unwrap_or_default();
        let Some(last) = coming.last() else {
            return Ok(());
        };
        let position = Lsn(last.lsn);
        let coming = Coming::of(coming, to);
        // Of two rows with one key, no part may be without the other.
        let parts = if self.source.direct_exchanges {
            1
        } else {
            parts
        };
        let id = process.acknowledger.open(position, 1);
        process.sent = to;
        let mut pieces = self.pieces(coming.changes.len(), parts);
        if !ends {
            pieces.pop();
        }
        let count = pieces.len();
        for (nth, piece) in pieces.into_iter().enumerate() {
            let is_last = ends && nth + 1 == count;
            let end = is_last.then_some(CutEnd { id, position });
            let goes_on = self.send(&coming, piece, end)?;
            // The source is told whenever it asks.
            self.acknowledge();
            // It ended, and has to be sent all of it again.
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn pieces(&mut self, rows: usize, parts: usize) -> Vec<Range<usize>> {
        let mut ends: Vec<usize> = (1..parts)
            .map(|_| usize::try_from(self.random.below(rows as u64 + 1)).unwrap())
            .collect();
        ends.push(rows);
        ends.sort_unstable();
        let mut from = 0;
        let pieces = ends.into_iter().map(|to| {
            let piece = from..to;
            from = to;
            piece
        });
        pieces.collect()
    }

    fn restart_stream(&mut self) -> Law {
        let told = self.told;
        if let Some(process) = &mut self.process {
            let durable = process.acknowledger.durable();
            process.acknowledger.restart(told, durable);
            process.sent = self.log.partition_point(|tx| tx.lsn <= told.0);
        }
        self.command(Command::Restarted)
    }

    fn command(&mut self, command: Command) -> Law {
        self.run(Task::Command(Box::new(command)))
    }

    /// Asks the owner something. None: the process ended over it.
    fn ask<T>(
        &mut self,
        make: impl FnOnce(oneshot::Sender<alluvium_change::Result<T>>) -> Command,
    ) -> Result<Option<T>, String> {
        let (reply, mut answer) = oneshot::channel();
        self.command(make(reply))?;
        match answer.try_recv() {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(error)) if error.is(&code::COPY_AGAIN) && self.may_need_copy => {
                if let Some(process) = &mut self.process {
                    process.copying = None;
                }
                Ok(None)
            }
            Ok(Err(error)) => self.failed(&error).map(|()| None),
            Err(_) => Ok(None),
        }
    }

    fn run_job(&mut self, nth: usize) {
        if let Some(process) = &mut self.process
            && let Some(at) = nth.checked_rem(process.jobs.len())
        {
            self.disk.age_open_files();
            let (layer, job) = process.jobs.remove(at);
            let done = job.run();
            process.done.push((layer, done));
            // Of a job that fails, the owner hears.
            self.disk.take_failed();
        }
    }

    fn finish_job(&mut self, nth: usize) -> Law {
        if let Some(process) = &mut self.process
            && let Some(at) = nth.checked_rem(process.done.len())
        {
            let (layer, done) = process.done.remove(at);
            return self.run(Task::JobDone(layer, Box::new(done)));
        }
        Ok(())
    }

    fn view(&self) -> Law {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let through = process.sent.checked_sub(1).and_then(|at| self.log.get(at));
        let Some(through) = through else {
            return Ok(());
        };
        let added = &self.source.added[..added_columns(&process.known.schema)];
        let rows = rows_at(&self.log, added, through.lsn);
        super::laws::check_view(process.owner.show(Lsn(through.lsn)), &rows, added.len())
    }

    /// Nothing goes wrong any more: in the end all is there.
    pub(super) fn finish(&mut self) -> Law {
        self.disk.note("finish".to_owned());
        self.disk.heal();
        if self.process.is_none() {
            self.start()?;
        }
        let mut restarted = false;
        for _ in 0..50 {
            self.step(Step::Deliver {
                transactions: 10,
                parts: 1,
            })?;
            self.step(Step::Copy(10))?;
            self.step(Step::Acknowledge)?;
            self.step(Step::CatchUp)?;
            // What waits for its commit gets it.
            self.step(Step::Pass { seconds: 60 })?;
            let is_quiet = self.process.as_ref().is_some_and(|p| {
                let (all, owner) = (p.sent == self.log.len(), &p.owner);
                let waits = owner.held_until().is_some();
                all && owner.phase == Phase::Live && owner.beside.is_none() && !waits
            });
            match (is_quiet, restarted) {
                (true, true) => return self.finished(),
                (true, false) => self.step(Step::Restart { in_order: true })?,
                _ => {}
            }
            restarted |= is_quiet;
        }
        Err("it never comes to an end".to_owned())
    }

    fn finished(&mut self) -> Law {
        let Some(process) = &self.process else {
            return Err("it does not run".to_owned());
        };
        let silver = process.owner.silver.as_ref().ok_or("there is no silver")?;
        silver
            .check_index()
            .map_err(|error| format!("the key index: {}", shown(&error)))?;
        self.laws.finished(&self.log)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What ends orderly removes what it has written for nothing.
        self.process = None;
        disk::unregister(&self.root);
        surroundings::end_simulation();
    }
}

fn cut(part: ChangeBatch, end: Option<CutEnd>) -> Task {
    Task::Command(Box::new(Command::Cut {
        batches: vec![part.into()],
        end,
        permit: None,
    }))
}

pub(super) fn shown(error: &Error) -> String {
    format!("{error}: {}", error.detail().unwrap_or_default())
}
