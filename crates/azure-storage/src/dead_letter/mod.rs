//! Messages that cannot be processed: looked at, tried again, thrown away.
//!
//! A message that cannot be read, or fails again and again, stays in its queue and gets a dead letter: a blob
//! that tells what is wrong and keeps the message's text. Workers write dead letters, people work with them
//! through [`DeadLetters`], with no worker running.
//!
//! Differs: DTFx only logs such messages. A hub gets the container with its first dead letter; .NET workers
//! do not know it.

pub(crate) mod failure;
mod record;
pub(crate) mod recorder;
pub(crate) mod store;

pub use record::{DeadLetter, DeadLetterState};

use std::time::Duration;

use futures::stream::{self, StreamExt};
use taskhub_core::{ErrorKind as Kind, EventKind, ServiceError};
use taskhub_storage::ErrorKind;

use crate::hub::Hub;
use crate::message::MessageData;
use crate::queue::receive::read_message;
use crate::tracking::store::TrackingStore;
use store::{RecordStore, is_message_id};

/// A held message fails again within this time, or it is held no longer; twice the longest back-off and the
/// longest visibility timeout that settings allow.
const LONGEST_SILENCE: Duration = Duration::from_secs(2 * (600 + 3600));
/// Records read at once while listing.
const READ_CONCURRENCY: usize = 8;

/// The dead letters of a hub.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    hub: Hub,
    store: RecordStore,
}

/// Which dead letters to list.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterQuery {
    /// Only those in this state.
    pub state: Option<DeadLetterState>,
    /// At most this many; 0 counts as 1.
    pub limit: usize,
    /// Where the previous page ended.
    pub continuation: Option<String>,
}

/// Some dead letters, without texts, in order of their ids.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterPage {
    /// The dead letters.
    pub letters: Vec<DeadLetter>,
    /// Blobs of the container that are no dead letters, and why.
    pub unreadable: Vec<String>,
    /// Where the next page begins; `None` at the end.
    pub continuation: Option<String>,
}

/// What became of the message of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked: it is visible in its queue, or thrown away.
    Done,
    /// A held message is not in its queue any more, because it was processed or deleted; the dead letter is
    /// removed.
    Gone,
    /// A worker has received the message since the dead letter was written, or its right to it is not known.
    /// Nothing was changed; it is processed, or comes back by itself.
    Busy,
}

impl DeadLetters {
    /// The dead letters of a hub; nothing is read yet.
    pub fn new(hub: &Hub) -> Self {
        Self { hub: hub.clone(), store: RecordStore::new(hub) }
    }

    /// Lists dead letters, one page at a time. A page holds no texts, so that its size is bounded.
    ///
    /// # Errors
    /// Of storage. `Invalid`: the continuation is not one of this method's.
    pub async fn list(&self, query: &DeadLetterQuery) -> Result<DeadLetterPage, ServiceError> {
        let limit = query.limit.max(1);
        let (mut marker, mut after) = match &query.continuation {
            Some(text) => read_continuation(text)?,
            None => (None, String::new()),
        };
        let mut found = DeadLetterPage::default();
        loop {
            let page = self.store.page("", marker.clone()).await?;
            let mut names: Vec<_> = page.blobs.into_iter().map(|blob| blob.name).collect();
            names.retain(|name| *name > after);
            let mut letters = stream::iter(names)
                .map(|name| async move { (self.store.read_blob(&name).await, name) })
                .buffered(READ_CONCURRENCY);
            while let Some((letter, name)) = letters.next().await {
                match letter {
                    Ok(Some(mut letter)) if query.state.is_none_or(|state| state == letter.state) => {
                        letter.text = None;
                        found.letters.push(letter);
                    }
                    Ok(_) => {}
                    Err(e) if e.kind() == Kind::Data => found.unreadable.push(e.chain()),
                    Err(e) => return Err(e),
                }
                after = name;
                if found.letters.len() + found.unreadable.len() >= limit {
                    found.continuation = Some(write_continuation(marker.as_deref(), &after));
                    return Ok(found);
                }
            }
            drop(letters);
            marker = page.continuation;
            if marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// The dead letter with this id, or the only one whose id begins with it.
    ///
    /// # Errors
    /// `Invalid`: several ids begin so. `Data`: its record cannot be read. Otherwise of storage.
    pub async fn find(&self, id: &str) -> Result<Option<DeadLetter>, ServiceError> {
        if !is_message_id(id) {
            return Ok(None);
        }
        if let Some(letter) = self.store.read(id).await? {
            return Ok(Some(letter));
        }
        let page = self.store.page(id, None).await?;
        match page.blobs.as_slice() {
            [] => Ok(None),
            [blob] => self.store.read_blob(&blob.name).await,
            several => Err(ServiceError::new(
                Kind::Invalid,
                format!("several dead letters begin so. id=`{id}` count=`{}`", several.len()),
            )),
        }
    }

    /// The message itself, if this version can read it now.
    ///
    /// # Errors
    /// `Data`: it cannot. Otherwise of storage.
    pub async fn message(&self, letter: &DeadLetter) -> Result<MessageData, ServiceError> {
        read_message(&self.hub, letter.text.as_deref().unwrap_or_default()).await
    }

    /// Lets the message of a dead letter be processed again: a held one becomes visible now, another one is
    /// put into its queue again as it was, and its dead letter removed. A dropped start gets the Instances
    /// row that it lacked. A crash in between may leave the dead letter beside the message.
    ///
    /// # Errors
    /// `Invalid`: its instance has been started again since, so that the start would be dropped again.
    /// Otherwise of storage.
    pub async fn requeue(&self, letter: &DeadLetter) -> Result<Outcome, ServiceError> {
        let Some(letter) = &self.whole(letter).await? else { return Ok(Outcome::Gone) };
        let text = letter.text.as_deref().unwrap_or_default();
        let queues = &self.hub.account.queues;
        let failed = |e| self.hub.failed(format!("cannot put a message back. queue=`{}`", letter.queue), e);
        if letter.state == DeadLetterState::Held {
            let Some(receipt) = letter.receipt() else { return self.without_receipt(letter).await };
            return match queues.update_message(&letter.queue, &receipt, text, Duration::ZERO).await {
                Ok((receipt, visible_at)) => {
                    let visible_at = Some(visible_at);
                    let seen = DeadLetter { pop_receipt: Some(receipt.token), visible_at, ..letter.clone() };
                    self.store.write(&seen).await?;
                    Ok(Outcome::Done)
                }
                Err(e) if e.kind() == ErrorKind::PopReceiptMismatch => Ok(Outcome::Busy),
                Err(e) if e.kind() == ErrorKind::NotFound => self.gone(letter).await,
                Err(e) => Err(failed(e)),
            };
        }
        let start = match letter.state {
            DeadLetterState::Dropped => self.start_without_row(letter).await?,
            _ => None,
        };
        queues.put_message(&letter.queue, text, Duration::ZERO).await.map_err(failed)?;
        if let Some(data) = start {
            let blob = data.compressed_blob_name.as_deref();
            TrackingStore::new(self.hub.clone()).create_instance(&data.task_message, blob, None).await?;
        }
        self.store.remove(&letter.message_id).await?;
        Ok(Outcome::Done)
    }

    /// Throws the message of a dead letter away, and the dead letter.
    ///
    /// # Errors
    /// Of storage.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<Outcome, ServiceError> {
        if letter.state == DeadLetterState::Held {
            let Some(receipt) = letter.receipt() else { return self.without_receipt(letter).await };
            match self.hub.account.queues.delete_message(&letter.queue, &receipt).await {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::PopReceiptMismatch => return Ok(Outcome::Busy),
                Err(e) if e.kind() == ErrorKind::NotFound => return self.gone(letter).await,
                Err(e) => {
                    let what = format!("cannot delete a message. queue=`{}`", letter.queue);
                    return Err(self.hub.failed(what, e));
                }
            }
        }
        self.store.remove(&letter.message_id).await?;
        Ok(Outcome::Done)
    }

    /// The dead letter with its text, as it is stored now.
    async fn whole(&self, letter: &DeadLetter) -> Result<Option<DeadLetter>, ServiceError> {
        match &letter.text {
            Some(_) => Ok(Some(letter.clone())),
            None => self.store.read(&letter.message_id).await,
        }
    }

    /// Without a right to the message nothing can be learned of it. If it were still in its queue, it would
    /// have failed again within [`LONGEST_SILENCE`], and its record would tell so.
    async fn without_receipt(&self, letter: &DeadLetter) -> Result<Outcome, ServiceError> {
        let silent_for = self.hub.clock.now().saturating_since(letter.last_failed_at);
        if silent_for > LONGEST_SILENCE { self.gone(letter).await } else { Ok(Outcome::Busy) }
    }

    async fn gone(&self, letter: &DeadLetter) -> Result<Outcome, ServiceError> {
        self.store.remove(&letter.message_id).await?;
        Ok(Outcome::Gone)
    }

    /// The start of a dead letter whose Instances row is missing.
    async fn start_without_row(&self, letter: &DeadLetter) -> Result<Option<MessageData>, ServiceError> {
        let data = self.message(letter).await?;
        let EventKind::ExecutionStarted(start) = &data.task_message.event.kind else { return Ok(None) };
        let instance_id = &data.task_message.target.instance_id;
        match TrackingStore::new(self.hub.clone()).instance_row(instance_id).await? {
            None => Ok(Some(data)),
            Some(row) if row.state.instance.execution_id == start.instance.execution_id => Ok(None),
            Some(_) => Err(ServiceError::new(
                Kind::Invalid,
                format!(
                    "the instance has been started again since; this start would be dropped again. \
                     hub=`{}` instance=`{instance_id}`",
                    self.hub.name()
                ),
            )),
        }
    }
}

/// A continuation is the place in the service's list and the last name seen.
fn write_continuation(marker: Option<&str>, after: &str) -> String {
    format!("{after}|{}", marker.unwrap_or_default())
}

fn read_continuation(text: &str) -> Result<(Option<String>, String), ServiceError> {
    match text.split_once('|') {
        Some((after, marker)) => Ok((Some(marker.to_owned()).filter(|m| !m.is_empty()), after.to_owned())),
        None => Err(ServiceError::new(Kind::Invalid, "not a continuation of a list of dead letters")),
    }
}
