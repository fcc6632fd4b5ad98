//! Faults that the test kit plants, to prove that its simulation finds them. Without the feature
//! `simulation` there are none: every question is answered with a constant.

#[cfg(feature = "simulation")]
use std::borrow::Cow;

use taskhub_core::HistoryEvent;
#[cfg(feature = "simulation")]
use taskhub_core::{EventKind, TaskMessage};

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
    /// Requests to entities have no stamps: whatever comes twice is done twice.
    UnstampedRequests,
    /// Locks of entities are not given back.
    KeepLocks,
}

impl Planted {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::DeleteBeforeCommit,
        Self::CommitWithoutEtag,
        Self::ReceiveAfterLease,
        Self::DiscardBeforeStart,
        Self::RowWithoutEtag,
        Self::SendAfterCommit,
        Self::KeepReceived,
        Self::RequestBeforeReply,
        Self::BlobsBeforeCommit,
        Self::RepliesInAnyOrder,
        Self::AnyStart,
        Self::OldRows,
        Self::NoRepair,
        Self::IgnoreFailedSend,
        Self::UnstampedRequests,
        Self::KeepLocks,
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

impl Planted {
    /// What a message to an entity becomes; `None`: it is not sent.
    #[cfg(feature = "simulation")]
    pub(crate) fn in_message(planted: Option<Self>, message: &TaskMessage) -> Option<Cow<'_, TaskMessage>> {
        let mut message = Cow::Borrowed(message);
        if !message.target.instance_id.is_entity() {
            return Some(message);
        }
        let EventKind::EventRaised { name, input, .. } = &message.event.kind else { return Some(message) };
        match planted {
            Some(Self::KeepLocks) if name.as_deref() == Some("release") => return None,
            Some(Self::UnstampedRequests) => {
                let mut text = input.clone().unwrap_or_default();
                for stamp in ["\"Timestamp\":\"", "\"Predecessor\":\""] {
                    if let Some((before, after)) = text.split_once(stamp)
                        && let Some((_, after)) = after.split_once('"')
                    {
                        text = format!("{before}{stamp}0001-01-01T00:00:00\"{after}");
                    }
                }
                if let EventKind::EventRaised { input, .. } = &mut message.to_mut().event.kind {
                    *input = Some(text);
                }
            }
            _ => {}
        }
        Some(message)
    }
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

    /// Most rows in one transaction besides the sentinel, for an episode with these events.
    ///
    /// What a generation takes over from the one before is not cut: no message brings it again. A transaction
    /// of the real size holds 98 such events.
    #[cfg(feature = "simulation")]
    pub(crate) fn max_batch_rows(&self, of_the_service: usize, events: &[HistoryEvent]) -> usize {
        let is_taken_over = |event: &&HistoryEvent| {
            use EventKind::{EventRaised, ExecutionStarted, OrchestratorStarted};
            matches!(event.kind, OrchestratorStarted | ExecutionStarted(_) | EventRaised { .. })
        };
        let least = events.iter().take_while(is_taken_over).count().max(1);
        self.sabotage.max_batch_rows.map_or(of_the_service, |rows| rows.max(least).min(of_the_service))
    }

    /// Most rows in one transaction besides the sentinel.
    #[cfg(not(feature = "simulation"))]
    pub(crate) const fn max_batch_rows(&self, of_the_service: usize, _: &[HistoryEvent]) -> usize {
        of_the_service
    }
}
