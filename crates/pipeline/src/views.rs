//! The running pipeline's tables as they are now, for queries in the same process.
//!
//! ```text
//! query ─► Views ─► the main task: hands over all whole transactions ─► owners ─► views
//! ```
//!
//! A view is made when it is asked for: a pipeline that nobody queries does nothing for it. Invariant:
//! the views of one request are all at one position, the last transaction that was received whole.

use std::collections::BTreeMap;
use std::time::Duration;

use alluvium_change::{Lsn, TableId};
use alluvium_lake::SilverView;
use tokio::sync::{mpsc, oneshot};

use crate::owner::{Command, OwnerHandle};

/// Requests that may wait for the main task.
const QUEUE: usize = 64;
/// How long a query waits for views before it reads what is committed: a large transaction may be
/// arriving, or an owner be busy.
const PATIENCE: Duration = Duration::from_secs(1);

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
    reply: oneshot::Sender<BTreeMap<String, oneshot::Receiver<Option<SilverView>>>>,
}

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
        let asked = tokio::time::timeout(PATIENCE, self.ask(lake_names)).await;
        asked.ok().flatten().unwrap_or_default()
    }

    async fn ask(&self, lake_names: Vec<String>) -> Option<BTreeMap<String, SilverView>> {
        let (reply, answer) = oneshot::channel();
        let request = ViewRequest { lake_names, reply };
        self.0.send(request).await.ok()?;
        let mut views = BTreeMap::new();
        for (name, view) in answer.await.ok()? {
            if let Some(view) = view.await.ok()? {
                views.insert(name, view);
            }
        }
        Some(views)
    }
}

impl ViewRequests {
    pub(crate) async fn recv(&mut self) -> Option<ViewRequest> {
        self.0.recv().await
    }
}

impl ViewRequest {
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

    /// Asks the owners for their tables, which have every transaction up to `through` now. Gives the
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
