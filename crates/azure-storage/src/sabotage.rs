//! Faults that the test kit plants, to prove that its simulation finds them. Without the feature
//! `simulation` there are none: every question is answered with a constant.

use crate::settings::AzureStorageSettings;

/// A fault in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// The messages that caused an episode are deleted before it is stored.
    DeleteBeforeCommit,
    /// A history is written whatever its version is.
    CommitWithoutEtag,
    /// Receiving goes on after the lease has run out.
    ReceiveAfterLease,
    /// Messages for an instance whose start has not come are discarded (hazard H37 of the .NET provider).
    DiscardBeforeStart,
    /// An Instances row is written whatever its version is.
    RowWithoutEtag,
    /// An episode's messages are sent after it is stored.
    SendAfterCommit,
    /// A worker that stops, or hands a partition over, keeps the messages it has received.
    KeepReceived,
    /// An activity request is deleted before its reply is sent.
    RequestBeforeReply,
    /// The blobs of a replaced execution are deleted before the new one is stored.
    BlobsBeforeCommit,
    /// Replies are taken before what they answer is stored.
    RepliesInAnyOrder,
    /// A start is run although the Instances row is about another execution.
    AnyStart,
    /// Rows that a longer, older execution has left are read as part of the current one.
    OldRows,
    /// The row of an instance that has finished is never corrected.
    NoRepair,
    /// A message counts as sent although its request has failed.
    IgnoreFailedSend,
}

impl Planted {
    /// Those that a few hundred runs find.
    pub const ALL: [Self; 12] = [
        Self::DeleteBeforeCommit,
        Self::ReceiveAfterLease,
        Self::DiscardBeforeStart,
        Self::RowWithoutEtag,
        Self::SendAfterCommit,
        Self::KeepReceived,
        Self::RequestBeforeReply,
        Self::RepliesInAnyOrder,
        Self::AnyStart,
        Self::OldRows,
        Self::NoRepair,
        Self::IgnoreFailedSend,
    ];
}

/// What the test kit does to a process of its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sabotage {
    /// The fault that is planted.
    pub planted: Option<Planted>,
    /// Most rows in one transaction besides the sentinel, if fewer than the service takes.
    pub max_batch_rows: Option<usize>,
}

impl AzureStorageSettings {
    /// Whether this fault is planted.
    #[cfg(feature = "simulation")]
    pub(crate) fn planted(&self, fault: Planted) -> bool {
        self.sabotage.planted == Some(fault)
    }

    /// Whether this fault is planted: never.
    #[cfg(not(feature = "simulation"))]
    pub(crate) const fn planted(&self, _: Planted) -> bool {
        false
    }

    /// Most rows in one transaction besides the sentinel.
    #[cfg(feature = "simulation")]
    pub(crate) fn max_batch_rows(&self, of_the_service: usize) -> usize {
        self.sabotage.max_batch_rows.map_or(of_the_service, |rows| rows.clamp(1, of_the_service))
    }

    /// Most rows in one transaction besides the sentinel.
    #[cfg(not(feature = "simulation"))]
    pub(crate) const fn max_batch_rows(&self, of_the_service: usize) -> usize {
        of_the_service
    }
}
