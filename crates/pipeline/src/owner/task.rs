//! The task in which an owner lives: commands, catching up, Delta checkpoints.

use std::sync::Arc;

use alluvium_change::{Error, Result};
use alluvium_lake::{CheckpointDone, CheckpointJob, Silver};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::ahead::Ahead;
use super::{Command, Event, TableOwner};
use crate::status::Phase;

/// Which of a table's two Delta tables.
#[derive(Debug, Clone, Copy)]
enum Layer {
    Bronze,
    Silver,
}

/// What an owner does next.
enum Task {
    Command(Box<Command>),
    CatchUp,
    Adopt(Layer, Result<CheckpointDone>),
}

impl TableOwner {
    fn do_task(&mut self, task: Task) -> Vec<Event> {
        match task {
            Task::Command(command) => self.perform(*command),
            Task::CatchUp => {
                let events = match self.catch_up() {
                    Ok(()) if self.phase == Phase::Live => vec![Event::PhaseChanged],
                    Ok(()) => Vec::new(),
                    Err(error) => self.failed(error),
                };
                self.tell_status();
                events
            }
            Task::Adopt(layer, done) => {
                let adopted = done.and_then(|done| match (layer, &mut self.silver) {
                    (Layer::Bronze, _) => self.bronze.adopt_checkpoint(done),
                    (Layer::Silver, Some(silver)) => silver.adopt_checkpoint(done),
                    (Layer::Silver, None) => Ok(()),
                });
                if let Err(error) = adopted {
                    tracing::warn!(table = %self.table.schema.id, error = %error, "no delta checkpoint was written, the next one will be");
                }
                Vec::new()
            }
        }
    }

    fn checkpoint_jobs(&mut self) -> Vec<(Layer, CheckpointJob)> {
        let bronze = self
            .bronze
            .take_checkpoint_job()
            .map(|job| (Layer::Bronze, job));
        let silver = self.silver.as_mut().and_then(Silver::take_checkpoint_job);
        bronze
            .into_iter()
            .chain(silver.map(|job| (Layer::Silver, job)))
            .collect()
    }
}

/// The owner's task: commands first, catching up in between, Delta checkpoints beside.
pub(super) async fn work(mut owner: TableOwner, commands: mpsc::Receiver<Command>) {
    let context = owner.context.clone();
    let mut commands = Ahead::new(
        commands,
        Arc::clone(owner.bronze.encoder()),
        Arc::clone(&context.cpu),
        context.lake.settings().staging_bytes,
    );
    let mut checkpoints: JoinSet<(Layer, Result<CheckpointDone>)> = JoinSet::new();
    loop {
        let task = tokio::select! {
            biased;
            Some(done) = checkpoints.join_next() => match done {
                Ok((layer, done)) => Task::Adopt(layer, done),
                Err(_) => continue,
            },
            command = commands.next() => match command {
                Some(Ok(command)) => Task::Command(Box::new(command)),
                Some(Err(error)) => {
                    let _ = context.events.send(Event::Fatal(error)).await;
                    return;
                }
                None => break,
            },
            () = std::future::ready(()), if owner.can_catch_up() => Task::CatchUp,
        };
        let Ok(cpu) = context.cpu.acquire().await else {
            return;
        };
        let mut doing = tokio::task::spawn_blocking(move || {
            let events = owner.do_task(task);
            let jobs = owner.checkpoint_jobs();
            (owner, events, jobs)
        });
        let done = tokio::select! {
            done = &mut doing => done,
            never = commands.look_ahead() => match never {},
        };
        drop(cpu);
        let (back, events, jobs) = match done {
            Ok(done) => done,
            Err(panicked) => {
                let error = Error::bug("a table's owner panicked").with_source(panicked);
                let _ = context.events.send(Event::Fatal(error)).await;
                return;
            }
        };
        owner = back;
        commands.encode_for(owner.bronze.encoder());
        for (layer, job) in jobs {
            checkpoints.spawn_blocking(move || (layer, job.run()));
        }
        for event in events {
            if context.events.send(event).await.is_err() {
                return;
            }
        }
    }
    while checkpoints.join_next().await.is_some() {}
    if let Ok(_cpu) = context.cpu.acquire().await {
        // Its end is waited for; how it ends is logged.
        let _ = tokio::task::spawn_blocking(move || owner.close()).await;
    }
}
