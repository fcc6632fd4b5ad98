//! Rewind: a failed instance goes on from before its failure.
//!
//! Source: Azure/durabletask, `AzureTableTrackingStore.RewindHistoryAsync` and
//! `AzureStorageOrchestrationService.RewindTaskOrchestrationAsync`.
//!
//! Everything is read and decided first ([`plan`]), then written: sub-orchestrations before who waits for
//! them, the rows of one instance in transactions that are chained by the sentinel's version, its end last,
//! then the Instances row. Messages go out when all of that is stored. Cut off anywhere, the next rewind of the
//! same instance goes on.

mod load;
mod plan;

use std::collections::HashSet;

use taskhub_core::{
    ErrorKind, EventKind, HistoryEvent, InstanceFetch, InstanceId, OrchestrationInstance,
    OrchestrationStatus, RewindOutcome, RewindRequest, Rewound, ServiceError, TaskMessage,
};
use taskhub_storage as storage;
use taskhub_storage::{Condition, ETag, Entity, TableOperation};

use self::load::Loaded;
use self::plan::{Child, Edit};
use crate::tracking::store::TrackingStore;
use crate::tracking::{instance_row, key, sentinel};

/// How often a rewind begins again when somebody else has changed a row.
const ATTEMPTS: u32 = 5;
/// Rows of one transaction besides the sentinel.
const MAX_BATCH_ROWS: usize = 99;

/// A rewind whose rows are stored.
#[derive(Debug)]
pub(crate) struct Rewinding {
    pub(crate) outcome: RewindOutcome,
    /// Messages that have to follow.
    pub(crate) messages: Vec<TaskMessage>,
}

impl Rewinding {
    fn nothing(outcome: RewindOutcome) -> Self {
        Self { outcome, messages: Vec::new() }
    }
}

/// One instance of the tree.
#[derive(Debug)]
struct Node {
    loaded: Loaded,
    /// Version of its Instances row, `None` when there is nothing to change in it.
    row: Option<ETag>,
    /// Results that have been lost, to be sent again.
    lost_results: Vec<EventKind>,
    waits_for_child: bool,
}

impl TrackingStore {
    /// Stores what a rewind changes.
    ///
    /// Differs: .NET rewrites rows one by one and looks neither at the status nor at the sentinel.
    pub(crate) async fn rewind(&self, request: &RewindRequest) -> Result<Rewinding, ServiceError> {
        let mut attempt = 0;
        let mut touched = Rewound::default();
        loop {
            attempt += 1;
            match self.rewind_once(request, &mut touched).await {
                Err(e) if e.kind() == ErrorKind::SessionAborted && attempt < ATTEMPTS => {
                    tracing::info!(hub = %self.hub.name(), error = e.chain(), "rewinding again");
                }
                other => return other,
            }
        }
    }

    async fn rewind_once(
        &self,
        request: &RewindRequest,
        touched: &mut Rewound,
    ) -> Result<Rewinding, ServiceError> {
        let nodes = match self.plan_tree(request).await? {
            Ok(nodes) => nodes,
            Err(outcome) => return Ok(Rewinding::nothing(outcome)),
        };
        let mut messages = Vec::new();
        let mut woken = Vec::new();
        for node in nodes.iter().rev() {
            touched.rows += self.rewrite(&node.loaded).await?;
            self.set_pending(node).await?;
            let id = &node.loaded.instance.instance_id;
            if !touched.instances.contains(id) {
                touched.instances.push(id.clone());
            }
        }
        for node in nodes.iter().rev() {
            let sent = self.messages_of(node, request);
            if !sent.is_empty() {
                woken.push(node.loaded.instance.instance_id.clone());
            }
            messages.extend(sent);
        }
        let rewound = Rewound { woken, ..std::mem::take(touched) };
        Ok(Rewinding { outcome: RewindOutcome::Rewound(rewound), messages })
    }

    /// Reads the instance and all that have to be rewound with it, the instance first; or why not.
    async fn plan_tree(
        &self,
        request: &RewindRequest,
    ) -> Result<Result<Vec<Node>, RewindOutcome>, ServiceError> {
        let root = request.instance_id.clone();
        let Some(row) = self.instance_row(&root).await? else { return Ok(Err(RewindOutcome::NotFound)) };
        let status = row.state.status;
        if !matches!(status, Some(OrchestrationStatus::Failed | OrchestrationStatus::Pending)) {
            return Ok(Err(RewindOutcome::WrongStatus { status }));
        }
        let Some(loaded) = self.load_for_rewind(&root).await? else {
            return Ok(Err(match status {
                Some(OrchestrationStatus::Pending) => RewindOutcome::WrongStatus { status },
                _ => RewindOutcome::NoHistory { instance: root },
            }));
        };
        // An earlier rewind got no further than this.
        if status == Some(OrchestrationStatus::Pending) && !loaded.plan.is_waiting {
            return Ok(Err(RewindOutcome::WrongStatus { status }));
        }
        let mut seen = HashSet::from([root]);
        let mut nodes = vec![Node::new(loaded, row.etag)];
        let mut next = 0;
        while next < nodes.len() {
            if nodes[next].loaded.plan.has_timers && !request.allow_timers {
                let instance = nodes[next].loaded.instance.instance_id.clone();
                return Ok(Err(RewindOutcome::HasTimers { instance }));
            }
            for child in nodes[next].loaded.plan.children.clone() {
                let parent = nodes[next].loaded.instance.clone();
                let resolved = match seen.contains(&child.instance_id) {
                    true => Resolved::Waits,
                    false => self.resolve(&parent, &child).await?,
                };
                match resolved {
                    Resolved::Waits => nodes[next].waits_for_child = true,
                    Resolved::Rewind(found) => {
                        nodes[next].waits_for_child = true;
                        seen.insert(child.instance_id);
                        nodes.push(*found);
                    }
                    Resolved::Reported(event) => nodes[next].lost_results.push(event),
                    Resolved::StartAgain => {
                        nodes[next].loaded.plan.edits.insert(child.at, Edit::Rewound);
                        nodes[next].loaded.plan.has_own_work = true;
                    }
                }
            }
            next += 1;
        }
        Ok(Ok(nodes))
    }

    /// What has to happen so that a sub-orchestration reports to its parent.
    async fn resolve(&self, parent: &OrchestrationInstance, child: &Child) -> Result<Resolved, ServiceError> {
        let fetch = InstanceFetch { input: false, output: true };
        let Some(row) = self.instance_row(&child.instance_id).await? else {
            return Ok(Resolved::StartAgain);
        };
        let Some(loaded) = self.load_for_rewind(&child.instance_id).await? else {
            return Ok(match row.state.status {
                Some(status) if !status.is_terminal() => Resolved::Waits,
                _ => Resolved::StartAgain,
            });
        };
        let reports_here = loaded.plan.parent.as_ref().is_some_and(|p| {
            p.instance.instance_id == parent.instance_id
                && p.instance.execution_id == parent.execution_id
                && p.task_schedule_id == child.task_id
        });
        Ok(match row.state.status {
            _ if !reports_here => Resolved::StartAgain,
            Some(OrchestrationStatus::Failed) => Resolved::Rewind(Box::new(Node::new(loaded, row.etag))),
            Some(OrchestrationStatus::Pending) if loaded.plan.is_waiting => {
                Resolved::Rewind(Box::new(Node::new(loaded, None)))
            }
            Some(OrchestrationStatus::Completed) => {
                let state = self.instance_state(&child.instance_id, fetch).await?;
                Resolved::Reported(EventKind::SubOrchestrationInstanceCompleted {
                    task_scheduled_id: child.task_id,
                    result: state.and_then(|s| s.output),
                })
            }
            Some(status) if status.is_terminal() => Resolved::StartAgain,
            _ => Resolved::Waits,
        })
    }

    /// Rewrites rows: all of an instance or, where they do not fit one transaction, its end last.
    async fn rewrite(&self, loaded: &Loaded) -> Result<u64, ServiceError> {
        let id = &loaded.instance.instance_id;
        let mut operations = Vec::with_capacity(loaded.plan.edits.len());
        let in_order = loaded.plan.edits.iter().filter(|(at, _)| Some(**at) != loaded.plan.completion);
        let last = loaded.plan.completion.and_then(|at| loaded.plan.edits.get_key_value(&at));
        for (at, edit) in in_order.chain(last) {
            let Some(row) = loaded.rows.get(*at) else { continue };
            let note = if *edit == Edit::Undone { "Undone" } else { "Rewound" };
            let mut changed = Entity::new(key::escape(id.as_str()), row.row_key.as_str())
                .with("Reason", format!("{note}: {}", row.event_type));
            if *edit != Edit::Noted {
                changed.set("EventType", "GenericEvent");
            }
            let condition = row.etag.clone().map_or(Condition::Any, Condition::Matches);
            operations.push(TableOperation::Merge(changed, condition));
        }
        let mut etag = loaded.sentinel.clone();
        let table = self.hub.names.history_table();
        for batch in operations.chunks(MAX_BATCH_ROWS) {
            let mut batch = batch.to_vec();
            if let (Some(version), Some(execution_id)) = (etag.take(), &loaded.instance.execution_id) {
                // Changes nothing but the version: who has read the history before must read it again.
                let guard = Entity::new(key::escape(id.as_str()), sentinel::SENTINEL_ROW_KEY)
                    .with("ExecutionId", execution_id.as_str());
                batch.push(TableOperation::Merge(guard, Condition::Matches(version)));
            }
            let written = self.hub.account.tables.transaction(&table, &batch).await;
            let written = written.map_err(|e| self.changed(id, "cannot rewind the history", e))?;
            etag = written.into_iter().next_back().flatten();
        }
        Ok(loaded.plan.edits.len() as u64)
    }

    async fn set_pending(&self, node: &Node) -> Result<(), ServiceError> {
        let Some(etag) = &node.row else { return Ok(()) };
        let id = &node.loaded.instance.instance_id;
        let row = instance_row::rewind(id, self.hub.clock.now());
        let merge = TableOperation::Merge(row, Condition::Matches(etag.clone()));
        let written = self.hub.account.tables.execute(&self.hub.names.instances_table(), merge).await;
        self.etags.set(id, None);
        written.map(drop).map_err(|e| self.changed(id, "cannot write the Instances row", e))
    }

    fn changed(&self, id: &InstanceId, what: &str, error: storage::Error) -> ServiceError {
        match error.kind() {
            storage::ErrorKind::NotFound | storage::ErrorKind::Conflict => ServiceError::with_source(
                ErrorKind::SessionAborted,
                format!("{what}: somebody else has changed it. hub=`{}` instance=`{id}`", self.hub.name()),
                error,
            ),
            _ => self.hub.failed(format!("{what}. instance=`{id}`"), error),
        }
    }

    /// Lost results, timers that are due or will be, and what wakes the instance.
    ///
    /// Differs: .NET wakes only instances without failed sub-orchestrations, so that a failed activity beside
    /// one is called only when that has ended.
    fn messages_of(&self, node: &Node, request: &RewindRequest) -> Vec<TaskMessage> {
        let (plan, now) = (&node.loaded.plan, self.hub.clock.now());
        let timers = plan
            .unfired
            .iter()
            .map(|(timer_id, fire_at)| EventKind::TimerFired { timer_id: *timer_id, fire_at: *fire_at });
        let mut messages: Vec<_> = node
            .lost_results
            .iter()
            .cloned()
            .chain(timers)
            .map(|kind| TaskMessage::new(HistoryEvent::message(now, kind), node.loaded.instance.clone()))
            .collect();
        if !node.waits_for_child || plan.has_own_work || plan.is_waiting {
            let wake = EventKind::GenericEvent { data: request.reason.clone() };
            let target = OrchestrationInstance::current(node.loaded.instance.instance_id.clone());
            messages.push(TaskMessage::new(HistoryEvent::message(now, wake), target));
        }
        messages
    }
}

enum Resolved {
    /// It will report by itself.
    Waits,
    /// It has to be rewound, or woken.
    Rewind(Box<Node>),
    /// It has reported while the parent was failed.
    Reported(EventKind),
    /// It is gone, or will never report here.
    StartAgain,
}

impl Node {
    fn new(loaded: Loaded, row: Option<ETag>) -> Self {
        Self { loaded, row, lost_results: Vec::new(), waits_for_child: false }
    }
}
