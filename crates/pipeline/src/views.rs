//! The running pipeline's tables as they are now, for queries in the same process.
//!
//! ```text
//! query ─► Views ─► the main task: hands over all whole transactions ─► owners ─► views
//! ```
//!
//! A view is made when it is asked for: a pipeline that nobody queries does nothing for it. Invariant:
//! the views of one request are all at one position, up to which everything was received whole.

use std::collections::BTreeMap;
use std::time::Duration;

use alluvium_change::{Lsn, TableId};
use alluvium_lake::SilverView;
use tokio::sync::{mpsc, oneshot};

use crate::owner::{Command, OwnerHandle, Shown};

/// Requests that may wait for the main task.
const QUEUE: usize = 64;
/// How long a query waits for views before it reads what is committed: a large transaction may be
/// arriving, or an owner be busy.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for a query of several tables: what they have committed is not of one position.
const PATIENCE_FOR_SEVERAL: Duration = Duration::from_secs(10);
/// How soon it asks again when a table is ahead of the stream.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Asks the pipeline; cheap to clone.
#[derive(Debug, Clone)]
pub struct Views(mpsc::Sender<ViewRequest>);

/// The pipeline's end of [`Views`].
#[derive(Debug)]
pub struct ViewRequests(mpsc::Receiver<ViewRequest>);

/// Tables by their directory in the lake, and where the answer goes.
#[derive(Debug)]
pub(crate) struct ViewRequest {
    pub(crate) lake_names: Vec<String>,
    reply: oneshot::Sender<Answers>,
}

type Answers = BTreeMap<String, oneshot::Receiver<Shown>>;

impl Views {
    /// Two ends that belong together.
    #[must_use]
    pub fn new() -> (Self, ViewRequests) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), ViewRequests(receiver))
    }

    /// Views of silver tables, by their directories in the lake. None of them when not all can be had
    /// soon: then what is committed is the newest there is. Tables that the pipeline does not follow,
    /// or that are not live, are left out.
    pub async fn of(&self, lake_names: Vec<String>) -> BTreeMap<String, SilverView> {
        if lake_names.is_empty() {
            return BTreeMap::new();
        }
        let patience = match lake_names.len() {
            1 => PATIENCE,
            _ => PATIENCE_FOR_SEVERAL,
        };
        let asked = tokio::time::timeout(patience, self.at_one_position(lake_names)).await;
        asked.ok().flatten().unwrap_or_default()
    }

    async fn at_one_position(
        &self,
        lake_names: Vec<String>,
    ) -> Option<BTreeMap<String, SilverView>> {
        loop {
            let mut views = BTreeMap::new();
            let mut is_ahead = false;
            for (name, shown) in self.ask(lake_names.clone()).await? {
                match shown.await.ok()? {
                    Shown::Table(view) => {
                        views.insert(name, view);
                    }
                    Shown::Ahead => is_ahead = true,
                    Shown::No => {}
                }
            }
            if !is_ahead {
                return Some(views);
            }
            drop(views);
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn ask(&self, lake_names: Vec<String>) -> Option<Answers> {
        let (reply, answer) = oneshot::channel();
        self.0.send(ViewRequest { lake_names, reply }).await.ok()?;
        answer.await.ok()
    }
}

impl ViewRequests {
    pub(crate) async fn recv(&mut self) -> Option<ViewRequest> {
        self.0.recv().await
    }
}

impl ViewRequest {
    /// Who asked has lost patience.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// The owners of the tables asked for, by the names they were asked for with.
    pub(crate) fn owners(
        &self,
        names: &BTreeMap<TableId, String>,
        owners: &BTreeMap<TableId, OwnerHandle>,
    ) -> Vec<(String, OwnerHandle)> {
        let followed = names
            .iter()
            .filter(|(_, name)| self.lake_names.contains(name));
        followed
            .filter_map(|(id, name)| Some((name.clone(), owners.get(id)?.clone())))
            .collect()
    }

    /// Asks the owners for their tables, which have been given every transaction up to `through` now and
    /// none beyond. Gives the
    /// request back when one of them has no room for it.
    pub(crate) fn pass_on(
        self,
        owners: Vec<(String, OwnerHandle)>,
        through: Lsn,
    ) -> Result<(), Self> {
        let places: Option<Vec<_>> = owners
            .into_iter()
            .map(|(name, owner)| Some((name, owner.try_reserve()?)))
            .collect();
        let Some(places) = places else {
            return Err(self);
        };
        let mut answers = BTreeMap::new();
        for (name, place) in places {
            let (reply, answer) = oneshot::channel();
            place.send(Command::View { through, reply });
            answers.insert(name, answer);
        }
        // Who asked may have lost patience.
        let _ = self.reply.send(answers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
    use super::*;
    use arrow::datatypes::Schema;
    use std::sync::Arc;

    fn table(name: &str) -> TableId {
        TableId {
            schema: "public".to_owned(),
            name: name.to_owned(),
        }
    }

    fn view(position: Lsn) -> Shown {
        Shown::Table(SilverView {
            schema: Arc::new(Schema::empty()),
            version: 0,
            position,
            files: Vec::new(),
            rows: Vec::new(),
        })
    }

    /// An owner whose table was committed up to `committed`.
    fn owner(name: &str, committed: Lsn) -> OwnerHandle {
        let (handle, mut commands) = OwnerHandle::of(table(name));
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                let Command::View { through, reply } = command else {
                    panic!("only views are asked for");
                };
                let shown = match committed > through {
                    true => Shown::Ahead,
                    false => view(through),
                };
                reply.send(shown).unwrap();
            }
        });
        handle
    }

    #[tokio::test]
    async fn a_table_that_is_ahead_is_waited_for() {
        let (views, mut requests) = Views::new();
        let names: BTreeMap<_, _> = ["a", "b", "c"]
            .map(|name| (table(name), name.to_owned()))
            .into();
        let owners = [("a", Lsn(100)), ("b", Lsn(50)), ("c", Lsn(0))]
            .map(|(name, committed)| (table(name), owner(name, committed)))
            .into();
        let asked = vec!["a".to_owned(), "b".to_owned()];
        let query = tokio::spawn(async move { views.of(asked).await });
        // The stream began again at 40, and comes to a transaction each time it is asked.
        for through in [40, 60, 99, 100] {
            let request = requests.recv().await.unwrap();
            assert!(!request.is_abandoned());
            let asked = request.owners(&names, &owners);
            request.pass_on(asked, Lsn(through)).unwrap();
        }
        let seen = query.await.unwrap();
        let positions: Vec<_> = seen
            .iter()
            .map(|(name, view)| (name.as_str(), view.position))
            .collect();
        assert_eq!(positions, [("a", Lsn(100)), ("b", Lsn(100))]);
    }

    #[tokio::test]
    async fn a_stream_that_does_not_come_that_far_soon_is_not_waited_for() {
        let (views, mut requests) = Views::new();
        let names = [(table("a"), "a".to_owned())].into();
        let owners = [(table("a"), owner("a", Lsn(100)))].into();
        let query = tokio::spawn(async move { views.of(vec!["a".to_owned()]).await });
        while let Some(request) = requests.recv().await {
            let asked = request.owners(&names, &owners);
            request.pass_on(asked, Lsn(99)).unwrap();
        }
        assert!(query.await.unwrap().is_empty());
    }
}
