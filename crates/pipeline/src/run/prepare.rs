//! Before the stream: locks, checks, tables, publication, slot, owners; in an order that writes
//! nothing until everything that can be known beforehand is known to be right.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Error, Lsn, Result, TableId, code};
use alluvium_lake::{IndexSettings, Lake, LakeSettings};
use alluvium_source_postgres::catalog::{self, SourceTable};
use alluvium_source_postgres::connect::{self, ConnectOptions};
use alluvium_source_postgres::replication::{
    ReplicationConnection, SlotKind, StreamOptions, SystemIdentity,
};
use alluvium_source_postgres::slot::{self, SlotState};
use alluvium_source_postgres::{preflight, publication, tuples};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use super::{Pipeline, RunOptions, Shared, history, measure};
use crate::copy::{self, CopyContext, CopySessions, CopyTarget, ExportedSnapshot};
use crate::owner::{CareShare, OwnerContext, TableOwner};
use crate::project::{Project, assign_names};
use crate::requests::Pending;
use crate::status::now_micros;
use crate::stream::{Stream, StreamLimits};
use crate::tables::{ShapeStep, another_table, selection, shape_step, silver_settings};
use crate::{LakeLock, doctor, requests, told};

/// Events of owners that may wait for the main task.
const EVENT_QUEUE: usize = 1024;

/// Everything up to the running stream: the pipeline, its connection, and the sessions of the
/// first copy when the slot is new.
pub(super) async fn prepare(
    project: Project,
    run: RunOptions,
    shared: Shared,
) -> Result<(Pipeline, ReplicationConnection, Option<CopySessions>)> {
    let lock = LakeLock::take(&project.lake_path, &project.file)?;
    let options =
        ConnectOptions::parse(&project.source.url, project.source.password_file.as_deref())?;
    let client = connect::connect(&options).await?;
    check(&project, &options).await?;
    let (known, names) = load_tables(&project, &client).await?;
    let lake = open_lake(&project)?;
    let mut connection = ReplicationConnection::connect(&options).await?;
    let system = connection.identify_system().await?;
    let publications = ensure_publication(&project, &client, &known).await?;
    shared.board.update(|status| {
        status.process_id = std::process::id();
        status.started_micros = now_micros();
        status.source.clone_from(&project.source.name);
        status.slot.clone_from(&project.source.slot);
        status.server_lsn = system.flush_lsn;
        status.complete_until_micros = complete_before(&project);
        status.tables.clear();
    });
    let found = Found {
        known,
        names,
        publications,
        system_identifier: system.system_identifier.clone(),
    };
    let mut pipeline = assemble(project, run, options, shared, (lock, lake), found);
    let resync = pending_resync(&pipeline.project);
    let mut owners = open_owners(&pipeline, &resync).await?;
    let slot = finished_slot(&pipeline, &client).await?;
    let gaps_known = owners.iter().all(|owner| {
        owner.position() == Lsn::ZERO || resync.contains_key(&owner.table().schema.id)
    });
    let slot = usable_slot(&pipeline, &client, slot, gaps_known).await?;
    let at_server = (slot.as_ref(), &system);
    check_history(&pipeline, &mut owners, &mut connection, at_server, &resync).await?;
    if slot.is_none() {
        for owner in &mut owners {
            owner.lose_the_stream("the replication slot is a new one")?;
        }
    }
    take_owners(&mut pipeline, owners, &resync)?;
    let created = match &slot {
        Some(_) => None,
        None => {
            let name = pipeline.project.source.slot.clone();
            let kind = SlotKind {
                temporary: false,
                two_phase: pipeline.project.source.two_phase,
            };
            tracing::info!(slot = %name, "creating the replication slot");
            told::forget(&pipeline.project.state_dir(), &name);
            Some(connection.create_slot(&name, kind).await?)
        }
    };
    copy::slot_created();
    prepare_queued(&mut pipeline).await?;
    let mut sessions = None;
    let mut start = slot
        .and_then(|slot| slot.confirmed_flush_lsn)
        .unwrap_or_default();
    if let Some(created) = created {
        start = created.consistent_point;
        let snapshot = ExportedSnapshot::of_slot(&created);
        let context = &pipeline.copy_context;
        match CopySessions::enter(context, &mut pipeline.copy_queue, snapshot).await {
            Ok(entered) => sessions = Some(entered),
            // A table was rewritten meanwhile: a later snapshot shows it.
            Err(error) if error.is(&code::COPY_AGAIN) => {}
            Err(error) => return Err(error),
        }
    }
    if pipeline.run.until_caught_up {
        pipeline.stream.target = Some(slot::current_lsn(&client).await?);
    }
    pipeline.stream.restart(start).await?;
    start_stream(&pipeline, &mut connection, start).await?;
    Ok((pipeline, connection, sessions))
}

/// Up to which moment an earlier run of this project had made the lake complete.
fn complete_before(project: &Project) -> Option<i64> {
    let before = crate::status::load(&project.state_dir())?;
    let same = before.source == project.source.name && before.slot == project.source.slot;
    before.complete_until_micros.filter(|_| same)
}

/// What is known of the source before anything is written.
struct Found {
    known: BTreeMap<TableId, Arc<SourceTable>>,
    names: BTreeMap<TableId, String>,
    publications: Vec<String>,
    system_identifier: String,
}

fn assemble(
    project: Project,
    run: RunOptions,
    options: ConnectOptions,
    shared: Shared,
    (lock, lake): (LakeLock, Lake),
    found: Found,
) -> Pipeline {
    let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let memory_bytes = project.limits.memory_bytes;
    let share = |part: u64| usize::try_from(memory_bytes / part).unwrap_or(usize::MAX);
    let limits = StreamLimits {
        cut_bytes: share(32),
        handed_over_bytes: share(4),
        streamed_bytes: share(32),
    };
    Pipeline {
        owner_context: OwnerContext {
            lake,
            board: shared.board.clone(),
            events: event_sender,
            cpu: Arc::new(Semaphore::new(cores)),
            care: CareShare::new(project.maintain),
        },
        stream: Stream::new(
            limits,
            project.commit,
            (project.state_dir(), project.source.slot.clone()),
        ),
        copy_context: CopyContext {
            options: options.clone(),
            workers: project.limits.copy_workers,
            range_bytes: (memory_bytes / 32).max(4 << 20),
            board: shared.board.clone(),
            selection: selection(&project),
        },
        system_identifier: found.system_identifier,
        known: found.known,
        names: found.names,
        publications: found.publications,
        tuples: project.source.tuples,
        project,
        run,
        options,
        board: shared.board,
        shutdown: shared.shutdown,
        view_requests: shared.view_requests,
        find_rows: shared.find_rows,
        requests_heeded: false,
        events,
        owner_tasks: JoinSet::new(),
        copy_queue: Vec::new(),
        care_asked: HashSet::new(),
        copy_jobs: JoinSet::new(),
        rates: measure::Rates::default(),
        _lock: lock,
    }
}

/// The checks of `doctor`: what fails there fails here, with the same words.
async fn check(project: &Project, options: &ConnectOptions) -> Result<()> {
    let checks = doctor::check_all(project, options).await;
    for check in checks {
        match check.status {
            preflight::CheckStatus::Ok => {}
            preflight::CheckStatus::Warn => tracing::warn!(
                check = check.name,
                finding = %check.finding,
                fix = check.fix.as_deref().unwrap_or(""),
                "doctor"
            ),
            // A table that is left out, and a slot that is lost, are dealt with where they are met.
            preflight::CheckStatus::Fail
                if check.name == "table" || check.code == Some(&code::PG_SLOT_LOST) => {}
            preflight::CheckStatus::Fail => {
                let error = Error::new(check.code.unwrap_or(&code::USAGE), check.finding)
                    .with_detail(check.meaning);
                return Err(match check.fix {
                    Some(fix) => error.with_hint(fix),
                    None => error,
                });
            }
        }
    }
    Ok(())
}

type Tables = (
    BTreeMap<TableId, Arc<SourceTable>>,
    BTreeMap<TableId, String>,
);

async fn load_tables(project: &Project, client: &Client) -> Result<Tables> {
    let mut tables = catalog::load_tables(client, &selection(project)).await?;
    tables.retain(|table| match &table.refused {
        Some(why) => {
            tracing::error!(
                table = %table.schema.id,
                error = %why.message,
                hint = why.hint.as_deref().unwrap_or(""),
                "table left out"
            );
            false
        }
        None => true,
    });
    if tables.is_empty() {
        let patterns = project.source.tables.join(", ");
        return Err(
            Error::new(&code::PG_NO_TABLES, "no table of the source matches")
                .with_detail(format!("tables = [{patterns}]")),
        );
    }
    for table in &tables {
        for note in &table.notes {
            tracing::info!(table = %table.schema.id, note = %note, "note");
        }
    }
    let ids: Vec<TableId> = tables.iter().map(|table| table.schema.id.clone()).collect();
    let names = assign_names(project, &ids)?;
    let known = tables
        .into_iter()
        .map(|table| (table.schema.id.clone(), Arc::new(table)));
    Ok((known.collect(), names))
}

pub(super) async fn ensure_publication(
    project: &Project,
    client: &Client,
    known: &BTreeMap<TableId, Arc<SourceTable>>,
) -> Result<Vec<String>> {
    let tables: Vec<&SourceTable> = known.values().map(AsRef::as_ref).collect();
    publication::ensure(client, &project.source.publication, &tables).await
}

fn open_lake(project: &Project) -> Result<Lake> {
    Lake::open(&project.lake_path, lake_settings(project))
}

/// What the project says of its lake.
#[must_use]
pub fn lake_settings(project: &Project) -> LakeSettings {
    let defaults = LakeSettings::default();
    // Rows are kept for queries only where there may be some.
    let recent_bytes = match project.serve.answers_queries() {
        true => usize::try_from(project.limits.memory_bytes / 16).unwrap_or_default(),
        false => 0,
    };
    LakeSettings {
        compression: project.compression,
        recent_bytes,
        compaction: project.maintain.compaction,
        retention: project.maintain.retention,
        foreign: project.maintain.foreign,
        delta_checkpoint_every_commits: project.commit.delta_checkpoint_every_commits,
        staging_bytes: usize::try_from(project.limits.memory_bytes / 32)
            .unwrap_or(defaults.staging_bytes),
        index: IndexSettings {
            dir: Some(project.state_dir().join("index")),
            memory_bytes: usize::try_from(project.limits.index_memory_bytes).unwrap_or(usize::MAX),
            ..IndexSettings::default()
        },
        ..defaults
    }
}

/// Tables to be copied afresh; each request is done with when its copy has begun.
fn pending_resync(project: &Project) -> BTreeMap<TableId, Arc<Pending>> {
    let pending = requests::pending(&project.state_dir()).into_iter();
    pending
        .filter(|request| request.predicate.is_none())
        .map(|request| (request.table.clone(), Arc::new(request)))
        .collect()
}

/// Opens all tables' bronze and silver, a few at a time.
async fn open_owners(
    pipeline: &Pipeline,
    resync: &BTreeMap<TableId, Arc<Pending>>,
) -> Result<Vec<TableOwner>> {
    let mut opening = JoinSet::new();
    for (id, table) in &pipeline.known {
        let identity = pipeline.identity(id)?;
        let settings = silver_settings(&pipeline.project, &id.to_string());
        let (table, context) = (Arc::clone(table), pipeline.owner_context.clone());
        let afresh = resync.contains_key(id);
        let cpu = Arc::clone(&pipeline.owner_context.cpu);
        opening.spawn(async move {
            let _cpu = cpu.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                TableOwner::open(identity, settings, table, context, afresh)
            })
            .await
            .map_err(|error| Error::bug("opening a table panicked").with_source(error))?
        });
    }
    let mut owners = Vec::new();
    while let Some(opened) = opening.join_next().await {
        let opened =
            opened.map_err(|error| Error::bug("opening a table panicked").with_source(error))?;
        owners.push(opened?);
    }
    Ok(owners)
}

/// The slot as it is, or will be: one that is still being made has no position yet, and goes away
/// when its maker was killed.
async fn finished_slot(pipeline: &Pipeline, client: &Client) -> Result<Option<SlotState>> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let name = &pipeline.project.source.slot;
    let since = std::time::Instant::now();
    loop {
        let slot = slot::state(client, name).await?;
        let Some(pid) = slot
            .as_ref()
            .filter(|slot| slot.confirmed_flush_lsn.is_none() && slot.plugin.is_some())
            .map(|slot| slot.active_pid)
        else {
            return Ok(slot);
        };
        if since.elapsed() > PATIENCE {
            let maker = pid.map_or_else(
                || "another process".to_owned(),
                |pid| format!("process {pid}"),
            );
            return Err(Error::new(
                &code::PG_SLOT_ACTIVE,
                format!("replication slot \"{name}\" is still being made"),
            )
            .with_detail(format!(
                "by {maker}; it waits until open transactions have ended"
            )));
        }
        tracing::info!(slot = %name, "waiting for the slot that is being made");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The slot, if it is there and can go on from where the lake is.
async fn usable_slot(
    pipeline: &Pipeline,
    client: &Client,
    slot: Option<SlotState>,
    may_start_anew: bool,
) -> Result<Option<SlotState>> {
    let name = &pipeline.project.source.slot;
    let lost = |what: String| {
        Error::new(&code::PG_SLOT_LOST, what)
            .with_detail(
                "changes made since the lake was last brought up to date can no longer be read \
                 from the server",
            )
            .with_hint("copy all tables afresh with: alluvium resync --all, then: alluvium run")
    };
    let Some(slot) = slot else {
        if may_start_anew {
            return Ok(None);
        }
        return Err(lost(format!(
            "replication slot \"{name}\" does not exist any more"
        )));
    };
    if slot.plugin.as_deref() != Some("pgoutput")
        || slot.database.as_deref() != Some(pipeline.options.database.as_str())
    {
        return Err(Error::new(
            &code::CONFIG_VALUE,
            format!("replication slot \"{name}\" is of another kind"),
        )
        .with_detail(format!(
            "plugin {}, database {}",
            slot.plugin.as_deref().unwrap_or("none"),
            slot.database.as_deref().unwrap_or("none")
        ))
        .with_hint("choose another name: [source.<name>] slot = \"...\""));
    }
    if let Some(reason) = &slot.invalidation {
        if may_start_anew {
            slot::drop_slot(client, name).await?;
            return Ok(None);
        }
        return Err(lost(format!(
            "replication slot \"{name}\" was invalidated: {reason}"
        )));
    }
    let told = told::recall(&pipeline.project.state_dir(), name);
    if let (Some(told), Some(confirmed)) = (told, slot.confirmed_flush_lsn)
        && let told = told.acknowledged
        && confirmed > told
    {
        if may_start_anew {
            slot::drop_slot(client, name).await?;
            return Ok(None);
        }
        return Err(lost(format!(
            "replication slot \"{name}\" starts at {confirmed}, but the lake is complete only up to \
             {told}: it was made again, or moved"
        )));
    }
    Ok(Some(slot))
}

/// A server that lost what the lake has can be followed only by tables that are copied afresh:
/// they forget it too.
async fn check_history(
    pipeline: &Pipeline,
    owners: &mut [TableOwner],
    connection: &mut ReplicationConnection,
    (slot, system): (Option<&SlotState>, &SystemIdentity),
    resync: &BTreeMap<TableId, Arc<Pending>>,
) -> Result<()> {
    let state_dir = pipeline.project.state_dir();
    let name = &pipeline.project.source.slot;
    let furthest = owners.iter().map(TableOwner::position).max();
    let confirmed = slot.and_then(|slot| slot.confirmed_flush_lsn);
    let known = furthest.max(confirmed).unwrap_or_default();
    let followed = history::followed_timeline(&state_dir, name);
    if let Some(fork) = history::fork(connection, system, followed, known).await? {
        for owner in owners {
            if owner.position() > fork && !resync.contains_key(&owner.table().schema.id) {
                return Err(history::behind(fork, known));
            }
            owner.forget_beyond(fork)?;
        }
        told::forget(&state_dir, name);
    }
    history::follow_timeline(&state_dir, name, system.timeline)
}

/// Starts the owners, and queues the tables that must be copied.
fn take_owners(
    pipeline: &mut Pipeline,
    owners: Vec<TableOwner>,
    resync: &BTreeMap<TableId, Arc<Pending>>,
) -> Result<()> {
    for owner in owners {
        pipeline.take_owner(owner, resync)?;
    }
    Ok(())
}

async fn prepare_queued(pipeline: &mut Pipeline) -> Result<()> {
    for target in &mut pipeline.copy_queue {
        crate::copy::prepare(target).await?;
    }
    Ok(())
}

impl Pipeline {
    pub(super) fn identity(&self, id: &TableId) -> Result<alluvium_lake::Owner> {
        let name = self
            .names
            .get(id)
            .ok_or_else(|| Error::bug("a table has no lake name"))?;
        Ok(alluvium_lake::Owner {
            pipeline: self.project.pipeline.clone(),
            source: self.project.source.name.clone(),
            system_identifier: self.system_identifier.clone(),
            table: id.clone(),
            name: name.clone(),
        })
    }

    /// Starts an owner's task and makes its table known to the stream.
    pub(super) fn take_owner(
        &mut self,
        mut owner: TableOwner,
        resync: &BTreeMap<TableId, Arc<Pending>>,
    ) -> Result<()> {
        let table = Arc::clone(owner.table());
        let id = table.schema.id.clone();
        let request = resync.get(&id).cloned();
        let mut needs_copy = request.is_some() || owner.needs_copy();
        if !needs_copy {
            let step = if owner.is_copy_of_its_table() {
                shape_step(owner.lake_columns(), &table)
            } else {
                Err(another_table(&id))
            };
            match step {
                Ok(ShapeStep::Same) => {}
                Ok(step) => {
                    owner.reshape_now(Arc::clone(&table), &step)?;
                    needs_copy = owner.needs_copy();
                }
                Err(error) => owner.stop_now(&error)?,
            }
        }
        let (handle, task) = owner.start();
        self.owner_tasks.spawn(task);
        self.stream.assembler.know(Arc::clone(&table))?;
        if needs_copy {
            self.copy_queue.push(CopyTarget {
                table,
                owner: handle.clone(),
                afresh: request.is_some(),
                request,
            });
        }
        self.stream.owners.insert(id, handle);
        Ok(())
    }
}

/// Starts streaming; a slot still held by a process that has just died is waited for.
async fn start_stream(
    pipeline: &Pipeline,
    connection: &mut ReplicationConnection,
    start: Lsn,
) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(15);
    let source = &pipeline.project.source;
    let name = &source.slot;
    let tables = pipeline.known.values().map(AsRef::as_ref);
    let version = connection.server_version().await?;
    let tuples = tuples::choose(pipeline.tuples, version, tables)?;
    let options = StreamOptions {
        protocol: source.protocol,
        tuples: tuples.form,
        two_phase: source.two_phase,
    };
    let since = std::time::Instant::now();
    loop {
        match connection
            .start(name, start, &pipeline.publications, options)
            .await
        {
            Err(error) if error.is(&code::PG_SLOT_ACTIVE) && since.elapsed() < PATIENCE => {
                tracing::info!(
                    detail = error.detail().unwrap_or(""),
                    "waiting for the slot"
                );
                tokio::time::sleep(Duration::from_millis(300)).await;
                *connection = ReplicationConnection::connect(&pipeline.options).await?;
            }
            Ok(()) => break,
            Err(error) => return Err(error),
        }
    }
    tracing::info!(
        slot = %name,
        start = %start,
        tuples = %tuples.form.name(),
        because = %tuples.why,
        "streaming"
    );
    pipeline.board.update(|status| {
        status.connected = true;
        status.error = None;
    });
    Ok(())
}

/// A new connection for a pipeline that lost its own.
pub(super) async fn connect_again(pipeline: &mut Pipeline) -> Result<ReplicationConnection> {
    let mut connection = ReplicationConnection::connect(&pipeline.options).await?;
    let system = connection.identify_system().await?;
    if system.system_identifier != pipeline.system_identifier {
        return Err(Error::new(
            &code::PG_OTHER_SYSTEM,
            "another server answers now than at the start",
        )
        .with_detail(format!(
            "system identifier {} became {}",
            pipeline.system_identifier, system.system_identifier
        )));
    }
    // A promoted standby may be behind the server that was.
    pipeline.board.update(|status| {
        status.server_lsn = system.flush_lsn;
        status.server_asked_micros = None;
    });
    let client = connect::connect(&pipeline.options).await?;
    let slot = finished_slot(pipeline, &client).await?;
    let Some(slot) = usable_slot(pipeline, &client, slot, false).await? else {
        return Err(Error::bug("a slot that is gone was taken for usable"));
    };
    let (state_dir, name) = (pipeline.project.state_dir(), &pipeline.project.source.slot);
    let followed = history::followed_timeline(&state_dir, name);
    let known = pipeline.stream.flushed();
    if let Some(fork) = history::fork(&mut connection, &system, followed, known).await? {
        return Err(history::behind(fork, known));
    }
    history::follow_timeline(&state_dir, name, system.timeline)?;
    let start = slot.confirmed_flush_lsn.unwrap_or_default();
    pipeline.stream.restart(start).await?;
    start_stream(pipeline, &mut connection, start).await?;
    Ok(connection)
}
