//! What requests cost: by meter of the service's bill, operation, and orchestration that caused them.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::operation::{self as op, Operation, Service};

tokio::task_local! {
    /// Requests that the attempt under way has sent.
    static SENT: Arc<AtomicU64>;
    /// For whom this task works.
    static NAME: Arc<str>;
}

/// A line of the service's bill. Prices are per 10,000 requests of one of these.
/// Source: Azure's price lists of queues, tables and blobs (standard, general purpose v2), and "Map each REST
/// operation to a price" for blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meter {
    /// Queues: what changes something. A receive that brings messages counts, too.
    QueueClass1,
    /// Queues: what reads, and receives that bring nothing.
    QueueClass2,
    /// Tables: everything, a group transaction once.
    Table,
    /// Blobs: writes.
    BlobWrite,
    /// Blobs: reads of content.
    BlobRead,
    /// Blobs: lists, and new containers.
    BlobList,
    /// Blobs: leases and properties.
    BlobOther,
    /// Blobs: deletions, which cost nothing.
    BlobFree,
}

impl Meter {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::QueueClass1,
        Self::QueueClass2,
        Self::Table,
        Self::BlobWrite,
        Self::BlobRead,
        Self::BlobList,
        Self::BlobOther,
        Self::BlobFree,
    ];

    /// Its name in metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueClass1 => "queue class 1",
            Self::QueueClass2 => "queue class 2",
            Self::Table => "table",
            Self::BlobWrite => "blob write",
            Self::BlobRead => "blob read",
            Self::BlobList => "blob list",
            Self::BlobOther => "blob other",
            Self::BlobFree => "blob free",
        }
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Operation {
    /// The meter that a request counts on; a receive that brings messages on [`Meter::QueueClass1`] instead.
    pub fn meter(&self) -> Meter {
        match self.service {
            Service::Table => Meter::Table,
            Service::Queue if self.writes && *self != op::GET_MESSAGES || *self == op::LIST_QUEUES => {
                Meter::QueueClass1
            }
            Service::Queue => Meter::QueueClass2,
            Service::Blob if *self == op::PUT_BLOB => Meter::BlobWrite,
            Service::Blob if *self == op::GET_BLOB => Meter::BlobRead,
            Service::Blob if self.is_list() || *self == op::CREATE_CONTAINER => Meter::BlobList,
            Service::Blob if *self == op::DELETE_BLOB || *self == op::DELETE_CONTAINER => Meter::BlobFree,
            Service::Blob => Meter::BlobOther,
        }
    }
}

/// Requests of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// On whose account: name of an orchestration; `None` for what serves all of them, such as polling and
    /// leases, or cannot be told.
    pub orchestration: Option<Arc<str>>,
    /// Line of the bill.
    pub meter: Meter,
    /// The service's name of the operation.
    pub operation: &'static str,
    /// How many, as they went over the wire.
    pub requests: u64,
}

/// Counts the requests of a future on the account of an orchestration, by its name; `None` changes nothing.
/// Tasks that it spawns do not count.
pub async fn on_behalf_of<F: Future>(orchestration: Option<Arc<str>>, work: F) -> F::Output {
    match orchestration {
        Some(name) => NAME.scope(name, work).await,
        None => work.await,
    }
}

/// For whom this task works.
pub(super) fn name() -> Option<Arc<str>> {
    NAME.try_with(Clone::clone).ok()
}

/// A request goes over the wire.
pub(crate) fn one_more_is_sent() {
    let _ = SENT.try_with(|sent| sent.fetch_add(1, Ordering::Relaxed));
}

/// Runs an attempt; `sent` tells how many requests it takes: more than one for a list of several pages.
pub(super) async fn counting<F: Future>(sent: Arc<AtomicU64>, attempt: F) -> F::Output {
    SENT.scope(sent, attempt).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OPERATIONS;

    #[test]
    fn every_operation_is_on_the_meter_of_the_price_list() {
        let on = |meter: Meter| -> Vec<_> {
            OPERATIONS.iter().filter(|o| o.meter() == meter).map(|o| o.name).collect()
        };
        assert_eq!(
            on(Meter::QueueClass1),
            ["CreateQueue", "DeleteQueue", "ListQueues", "PutMessage", "UpdateMessage", "DeleteMessage"]
        );
        assert_eq!(on(Meter::QueueClass2), ["GetQueueMetadata", "GetMessages", "PeekMessages"]);
        assert_eq!(on(Meter::BlobWrite), ["PutBlob"]);
        assert_eq!(on(Meter::BlobRead), ["GetBlob"]);
        assert_eq!(on(Meter::BlobList), ["CreateContainer", "ListContainers", "ListBlobs"]);
        assert_eq!(on(Meter::BlobFree), ["DeleteContainer", "DeleteBlob"]);
        assert_eq!(on(Meter::BlobOther).len(), 6, "properties and leases");
        assert_eq!(on(Meter::Table).len(), 12);
    }
}
