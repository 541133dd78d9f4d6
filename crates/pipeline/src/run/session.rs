//! While connected: one task that reads, cuts, listens to owners and looks after tables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alluvium_change::{Error, Lsn, Result, TableId, code};
use alluvium_source_postgres::capture::Relation;
use alluvium_source_postgres::catalog::{self, SourceTable};
use alluvium_source_postgres::connect;
use alluvium_source_postgres::replication::ReplicationConnection;
use tokio::sync::mpsc;

use super::watcher::{CatalogNews, watch_catalog};
use super::{Pipeline, prepare};
use crate::copy::{self, CopyTarget, RepairTarget};
use crate::owner::{Command, Event, OwnerHandle, TableOwner, is_of_lake};
use crate::project::assign_names;
use crate::requests::{self, Pending};
use crate::status::TableStatus;
use crate::stream::Need;
use crate::tables::{ShapeStep, another_table, selection, shape_step, silver_settings};

const TICK: Duration = Duration::from_millis(20);
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(1);

impl Pipeline {
    /// Follows the stream until it breaks, shutdown is asked, or all is caught up. Also says whether
    /// anything was received.
    pub(super) async fn follow(
        &mut self,
        connection: &mut ReplicationConnection,
    ) -> (bool, Result<()>) {
        let (catalog_sender, mut catalog_news) = mpsc::channel(1);
        let watcher = tokio::spawn(watch_catalog(
            self.options.clone(),
            selection(&self.project),
            self.board.clone(),
            catalog_sender,
        ));
        let before = self.stream.received();
        let outcome = self.follow_until(connection, &mut catalog_news).await;
        watcher.abort();
        (self.stream.received() > before, outcome)
    }

    async fn follow_until(
        &mut self,
        connection: &mut ReplicationConnection,
        catalog_news: &mut mpsc::Receiver<CatalogNews>,
    ) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_EVERY);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while let Some(need) = self.stream.take_frames(connection)? {
                self.help(need).await?;
            }
            self.stream.cut_if_due()?;
            self.stream.show_asked()?;
            let behind = self
                .stream
                .target
                .is_some_and(|target| self.stream.flushed() < target);
            self.stream.tell_server(connection, false).await?;
            if self.is_finished() {
                return Ok(());
            }
            tokio::select! {
                biased;
                changed = self.shutdown.changed() => {
                    if changed.is_err() || *self.shutdown.borrow() {
                        return Ok(());
                    }
                }
                event = self.events.recv() => match event {
                    Some(event) => self.heed(event)?,
                    None => return Err(Error::bug("all owners have ended")),
                },
                Some(ended) = self.copy_jobs.join_next() => self.copy_ended(ended)?,
                Some(news) = catalog_news.recv() => self.catalog_changed(news).await?,
                Some(request) = self.view_requests.recv() => {
                    self.stream.show(request, &self.names)?;
                }
                _ = housekeeping.tick() => {
                    self.report_status();
                    self.heed_requests().await?;
                    self.tell_passed();
                    if behind && self.stream.is_settled() {
                        self.stream.tell_server(connection, true).await?;
                    }
                }
                () = tokio::task::yield_now(), if self.stream.has_work() => {}
                filled = connection.fill(), if self.stream.has_room() && !self.stream.has_work() => {
                    filled?;
                }
                _ = tick.tick() => self.stream.hand_over_waiting(),
            }
        }
    }

    fn is_finished(&self) -> bool {
        let Some(target) = self.stream.target else {
            return false;
        };
        if self.stream.flushed() < target
            || !self.stream.is_settled()
            || !self.copy_queue.is_empty()
            || !self.copy_jobs.is_empty()
            || !self.requests_heeded
        {
            return false;
        }
        self.board.all_tables(TableStatus::is_level)
    }

    fn heed(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Durable { cut, took } => self.stream.durable(cut, took),
            Event::Fatal(error) => return Err(error),
            Event::PhaseChanged => {}
            Event::NeedsCopy(id) => {
                if let Some(table) = self.known.get(&id) {
                    let owner = self.stream.owner(&id)?.clone();
                    let table = Arc::clone(table);
                    self.copy_queue.push(CopyTarget {
                        table,
                        owner,
                        afresh: true,
                        request: None,
                    });
                    self.start_copy_job(None);
                }
            }
        }
        Ok(())
    }

    fn copy_ended(
        &mut self,
        ended: std::result::Result<Result<()>, tokio::task::JoinError>,
    ) -> Result<()> {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_of_lake(&error) => return Err(error),
            // Told per table already; the stream goes on.
            Ok(Err(error)) if self.stream.target.is_none() => {
                tracing::error!(error = %error, hint = error.hint(), "copying stopped");
            }
            Ok(Err(error)) => return Err(error),
            Err(panicked) => {
                return Err(Error::bug("the copying task panicked").with_source(panicked));
            }
        }
        self.start_copy_job(None);
        Ok(())
    }

    async fn help(&mut self, need: Need) -> Result<()> {
        match need {
            Need::Failed(failure) => {
                self.break_table(&failure.table, failure.at, failure.error)
                    .await
            }
            Need::Catalog(relation) => self.learn(relation).await,
        }
    }

    /// Stops a table whose changes cannot be decoded from `at` on, after what was decoded before.
    async fn break_table(&mut self, id: &TableId, at: Lsn, error: Error) -> Result<()> {
        self.stream.flush_parts().await?;
        let ended = self.stream.complete_through();
        self.stream
            .owner(id)?
            .clone()
            .send(Command::Broken { at, ended, error })
            .await
    }

    /// The stream spoke of a relation, or of columns, that are not known yet.
    async fn learn(&mut self, relation: Relation) -> Result<()> {
        let client = connect::connect(&self.options).await?;
        let table = catalog::load_table(&client, &relation.id, &selection(&self.project)).await?;
        let table = table
            .filter(|table| table.refused.is_none() && table.schema.relation_oid == relation.oid)
            .map(Arc::new);
        if let Some(table) = &table
            && !self.take_in(Arc::clone(table)).await?
        {
            return Ok(());
        }
        let step = self.stream.assembler.resolve(&relation, table)?;
        match self.stream.step(step)? {
            Some(Need::Failed(failure)) => {
                self.break_table(&failure.table, failure.at, failure.error)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// A table as the catalog has it now: new, or perhaps changed. False when it cannot be followed
    /// any more.
    async fn take_in(&mut self, table: Arc<SourceTable>) -> Result<bool> {
        let id = table.schema.id.clone();
        let Some(known) = self.known.get(&id).cloned() else {
            let added = self.add_table(table).await?;
            self.start_copy_job(None);
            return Ok(added);
        };
        if known.schema == table.schema {
            return Ok(true);
        }
        let step = if known.schema.relation_oid == table.schema.relation_oid
            && known.schema.identity == table.schema.identity
        {
            shape_step(known.schema.arrow(), &table)
        } else {
            Err(another_table(&id))
        };
        match step {
            Ok(ShapeStep::Same) => Ok(true),
            Ok(step) => {
                self.stream.flush_parts().await?;
                let ended = self.stream.complete_through();
                let shape = Command::Shape {
                    table: Arc::clone(&table),
                    step,
                    ended,
                };
                self.stream.owner(&id)?.clone().send(shape).await?;
                self.stream.assembler.know(Arc::clone(&table))?;
                self.known.insert(id, table);
                Ok(true)
            }
            Err(error) => {
                self.stream.flush_parts().await?;
                self.stream.assembler.ignore(known.schema.relation_oid);
                self.stream.assembler.ignore(table.schema.relation_oid);
                self.break_table(&id, self.stream.received(), error).await?;
                Ok(false)
            }
        }
    }

    /// Opens a new table and queues its copy. False when its name in the lake is taken.
    async fn add_table(&mut self, table: Arc<SourceTable>) -> Result<bool> {
        let id = table.schema.id.clone();
        let mut ids: Vec<_> = self.known.keys().cloned().collect();
        ids.push(id.clone());
        match assign_names(&self.project, &ids) {
            Ok(names) => self.names = names,
            Err(error) => {
                tracing::error!(table = %id, error = %error, hint = error.hint(), "table left out");
                return Ok(false);
            }
        }
        tracing::info!(table = %id, "new table");
        self.known.insert(id.clone(), Arc::clone(&table));
        let identity = self.identity(&id)?;
        let settings = silver_settings(&self.project, &id.to_string());
        let context = self.owner_context.clone();
        let owner = tokio::task::spawn_blocking(move || {
            TableOwner::open(identity, settings, table, context, false)
        })
        .await
        .map_err(|error| Error::bug("opening a table panicked").with_source(error))??;
        self.take_owner(owner, &BTreeMap::new())?;
        Ok(true)
    }

    /// News from the catalog: new tables join; new columns are added. What cannot be followed waits
    /// until the stream comes to it.
    async fn catalog_changed(&mut self, news: CatalogNews) -> Result<()> {
        let (mut joined, mut settled) = (false, true);
        for table in news.tables {
            if table.refused.is_some() {
                continue;
            }
            let table = Arc::new(table);
            match self.known.get(&table.schema.id) {
                None => joined |= self.add_table(table).await?,
                Some(known) if known.schema.relation_oid == table.schema.relation_oid => {
                    if known.schema == table.schema {
                        continue;
                    }
                    // In the middle of a transaction the stream itself may tell.
                    if self.stream.assembler.in_transaction() {
                        settled = false;
                    } else if shape_step(known.schema.arrow(), &table).is_ok() {
                        self.take_in(table).await?;
                    }
                }
                Some(_) => {}
            }
        }
        if joined {
            self.publish_new_tables().await?;
        }
        if settled {
            // The watcher may have ended meanwhile.
            let _ = news.settled.send(());
        }
        Ok(())
    }

    /// Publishes tables whose owners are ready, then copies them: in this order no change is missed.
    async fn publish_new_tables(&mut self) -> Result<()> {
        let client = connect::connect(&self.options).await?;
        match prepare::ensure_publication(&self.project, &client, &self.known).await {
            Ok(publications) if publications == self.publications => {
                self.start_copy_job(None);
                Ok(())
            }
            Ok(publications) => {
                self.publications = publications;
                Err(Error::new(
                    &code::PG_CONNECTION_LOST,
                    "the stream starts again with one more publication",
                ))
            }
            Err(error) => {
                tracing::error!(
                    error = %error,
                    detail = error.detail().unwrap_or(""),
                    hint = error.hint(),
                    "a new table cannot be published"
                );
                Ok(())
            }
        }
    }

    /// Gives care that was asked for to the tables' owners, once.
    async fn heed_care(&mut self) -> Result<()> {
        let asked = requests::pending_care(&self.project.state_dir());
        self.care_asked
            .retain(|file| asked.iter().any(|request| request.file == *file));
        for request in asked {
            if !self.care_asked.insert(request.file.clone()) {
                continue;
            }
            match self.stream.owners.get(&request.table).cloned() {
                Some(owner) => owner.send(Command::Care(request)).await?,
                None => request.finish(),
            }
        }
        Ok(())
    }

    /// Tells owners whose tables are copied beside up to where all is in bronze.
    fn tell_passed(&self) {
        let flushed = self.stream.flushed();
        for (id, owner) in &self.stream.owners {
            let is_resyncing = |status: &TableStatus| status.resyncing;
            if self.board.of_table(&id.to_string(), is_resyncing) == Some(true)
                && let Some(room) = owner.try_reserve()
            {
                let _ = room.send(Command::Passed(flushed));
            }
        }
    }

    /// Has some rows of a table compared with the source.
    fn start_repair(&mut self, table: Arc<SourceTable>, owner: OwnerHandle, request: Pending) {
        let Some(predicate) = request.predicate.clone() else {
            return;
        };
        let id = table.id();
        tracing::info!(table = %id, predicate, "comparing rows, as asked");
        let target = RepairTarget {
            lake_name: self.names.get(id).cloned().unwrap_or_default(),
            predicate,
            target: CopyTarget {
                owner,
                table,
                afresh: false,
                request: Some(Arc::new(request)),
            },
        };
        let (find, shutdown) = (Arc::clone(&self.find_rows), self.shutdown.clone());
        let context = self.copy_context.clone();
        self.copy_jobs
            .spawn(copy::repair(context, target, find, shutdown));
    }

    async fn heed_requests(&mut self) -> Result<()> {
        self.heed_care().await?;
        let pending = requests::pending(&self.project.state_dir());
        self.requests_heeded = pending.is_empty() || self.copy_jobs.is_empty();
        if pending.is_empty() || !self.copy_jobs.is_empty() {
            return Ok(());
        }
        let client = connect::connect(&self.options).await?;
        for request in pending {
            let id = request.table.clone();
            let loaded = catalog::load_table(&client, &id, &selection(&self.project)).await?;
            match (loaded, self.stream.owners.get(&id).cloned()) {
                (Some(table), Some(owner))
                    if table.refused.is_none() && request.predicate.is_some() =>
                {
                    self.start_repair(Arc::new(table), owner, request);
                    // The others wait for it.
                    self.requests_heeded = false;
                    return Ok(());
                }
                (Some(table), Some(owner)) if table.refused.is_none() => {
                    tracing::info!(table = %id, "copying afresh, as asked");
                    let table = Arc::new(table);
                    self.stream.flush_parts().await?;
                    let mut target = CopyTarget {
                        table: Arc::clone(&table),
                        owner,
                        afresh: true,
                        request: Some(Arc::new(request)),
                    };
                    crate::copy::prepare(&mut target).await?;
                    self.stream.assembler.know(Arc::clone(&table))?;
                    self.known.insert(id, table);
                    self.copy_queue.push(target);
                }
                _ => {
                    tracing::error!(table = %id, "cannot copy afresh: no such table is followed");
                    request.finish();
                }
            }
        }
        self.start_copy_job(None);
        Ok(())
    }
}
