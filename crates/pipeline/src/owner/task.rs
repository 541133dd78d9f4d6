//! The task in which an owner lives: commands, catching up, care of the table's files.

use std::sync::Arc;

use alluvium_change::Error;
use tokio::sync::mpsc;

use super::ahead::Ahead;
use super::care::{Done, Jobs, Layer};
use super::{Command, Event, TableOwner};
use crate::status::Phase;

/// What an owner does next.
pub(super) enum Task {
    Command(Box<Command>),
    CatchUp,
    JobDone(Layer, Box<Done>),
    /// Something of the table's care may be due.
    Look,
}

impl TableOwner {
    pub(super) fn do_task(&mut self, task: Task) -> Vec<Event> {
        let mut events = match task {
            Task::Command(command) => self.perform(*command),
            Task::CatchUp => {
                let mut events = match self.catch_up() {
                    Ok(()) if self.phase == Phase::Live => vec![Event::PhaseChanged],
                    Ok(()) => Vec::new(),
                    Err(error) => self.failed(error),
                };
                if let Err(error) = self.catch_up_beside() {
                    events.extend(self.beside_failed(error));
                }
                self.tell_status();
                events
            }
            Task::JobDone(layer, done) => {
                self.job_done(layer, *done);
                Vec::new()
            }
            Task::Look if self.is_due() => {
                let held = self.commit_held();
                self.tell_status();
                held.map_or_else(|error| self.failed(error), |()| Vec::new())
            }
            Task::Look => Vec::new(),
        };
        events.extend(self.adopt_compacted());
        events.extend(self.forget_old_changes());
        events
    }
}

/// The owner's task: commands first, catching up in between, care of the files beside.
pub(super) async fn work(mut owner: TableOwner, commands: mpsc::Receiver<Command>) {
    let context = owner.context.clone();
    let mut commands = Ahead::new(
        commands,
        Arc::clone(owner.bronze.encoder()),
        Arc::clone(&context.cpu),
        context.lake.settings().staging_bytes,
    );
    let mut jobs = Jobs::default();
    loop {
        let look = owner.next_look();
        let task = tokio::select! {
            biased;
            Some((layer, done)) = jobs.next() => Task::JobDone(layer, Box::new(done)),
            command = commands.next() => match command {
                Some(Ok(command)) => Task::Command(Box::new(command)),
                Some(Err(error)) => {
                    let _ = context.events.send(Event::Fatal(error)).await;
                    return;
                }
                None => break,
            },
            () = std::future::ready(()), if owner.can_catch_up() => Task::CatchUp,
            () = sleep_until(look) => Task::Look,
        };
        let Ok(cpu) = context.cpu.acquire().await else {
            return;
        };
        let mut doing = tokio::task::spawn_blocking(move || {
            let mut events = owner.do_task(task);
            let due = owner.due_jobs().unwrap_or_else(|error| {
                events.push(Event::Fatal(error));
                Vec::new()
            });
            (owner, events, due)
        });
        let done = tokio::select! {
            done = &mut doing => done,
            never = commands.look_ahead() => match never {},
        };
        drop(cpu);
        let (back, events, due) = match done {
            Ok(done) => done,
            Err(panicked) => {
                let error = Error::bug("a table's owner panicked").with_source(panicked);
                let _ = context.events.send(Event::Fatal(error)).await;
                return;
            }
        };
        owner = back;
        commands.encode_for(owner.bronze.encoder());
        jobs.start(due, &owner.care);
        for event in events {
            if context.events.send(event).await.is_err() {
                return;
            }
        }
    }
    owner.care.end();
    while jobs.next().await.is_some() {}
    if let Ok(_cpu) = context.cpu.acquire().await {
        // Its end is waited for; how it ends is logged.
        let _ = tokio::task::spawn_blocking(move || owner.close()).await;
    }
}

async fn sleep_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
