use std::fmt;

/// One of the three services of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Queues.
    Queue,
    /// Tables.
    Table,
    /// Blobs.
    Blob,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Table => "table",
            Self::Blob => "blob",
        })
    }
}

/// What a repetition means when the reply to the first request may have been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repetition {
    /// Nothing was changed, or the repetition leads to the same state and answer.
    Harmless,
    /// The repetition finds nothing to delete, which is what was asked for.
    FindsNothing,
    /// The repetition fails although the first request succeeded; the error says so
    /// ([`crate::Error::maybe_applied`]).
    FailsAfterSuccess,
    /// The repetition does it a second time.
    Repeats,
}

/// A kind of request: the service's name of it and what repeating it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// Which service.
    pub service: Service,
    /// The service's name, as in [`crate::Error::operation`] and in the counts.
    pub name: &'static str,
    /// What a repetition means.
    pub repetition: Repetition,
    /// Whether it changes anything.
    pub writes: bool,
}

const fn read(service: Service, name: &'static str) -> Operation {
    Operation { service, name, repetition: Repetition::Harmless, writes: false }
}

const fn write(service: Service, name: &'static str, repetition: Repetition) -> Operation {
    Operation { service, name, repetition, writes: true }
}

macro_rules! operations {
    ($($constant:ident = $operation:expr;)*) => {
        $(pub(crate) const $constant: Operation = $operation;)*
        /// All operations that the three traits can send.
        pub const OPERATIONS: &[Operation] = &[$($constant),*];
    };
}

operations! {
    CREATE_QUEUE = write(Service::Queue, "CreateQueue", Repetition::Harmless);
    DELETE_QUEUE = write(Service::Queue, "DeleteQueue", Repetition::FindsNothing);
    LIST_QUEUES = read(Service::Queue, "ListQueues");
    GET_QUEUE_METADATA = read(Service::Queue, "GetQueueMetadata");
    PUT_MESSAGE = write(Service::Queue, "PutMessage", Repetition::Repeats);
    // Messages of a lost reply are hidden for their timeout, then come back.
    GET_MESSAGES = write(Service::Queue, "GetMessages", Repetition::Harmless);
    PEEK_MESSAGES = read(Service::Queue, "PeekMessages");
    UPDATE_MESSAGE = write(Service::Queue, "UpdateMessage", Repetition::FailsAfterSuccess);
    DELETE_MESSAGE = write(Service::Queue, "DeleteMessage", Repetition::FindsNothing);
    CREATE_TABLE = write(Service::Table, "CreateTable", Repetition::Harmless);
    DELETE_TABLE = write(Service::Table, "DeleteTable", Repetition::FindsNothing);
    LIST_TABLES = read(Service::Table, "ListTables");
    GET_ENTITY = read(Service::Table, "GetEntity");
    QUERY_ENTITIES = read(Service::Table, "QueryEntities");
    INSERT_ENTITY = write(Service::Table, "InsertEntity", Repetition::FailsAfterSuccess);
    UPDATE_ENTITY = write(Service::Table, "UpdateEntity", Repetition::FailsAfterSuccess);
    MERGE_ENTITY = write(Service::Table, "MergeEntity", Repetition::FailsAfterSuccess);
    INSERT_OR_REPLACE_ENTITY = write(Service::Table, "InsertOrReplaceEntity", Repetition::Harmless);
    INSERT_OR_MERGE_ENTITY = write(Service::Table, "InsertOrMergeEntity", Repetition::Harmless);
    DELETE_ENTITY = write(Service::Table, "DeleteEntity", Repetition::FindsNothing);
    ENTITY_GROUP_TRANSACTION = write(Service::Table, "EntityGroupTransaction", Repetition::FailsAfterSuccess);
    CREATE_CONTAINER = write(Service::Blob, "CreateContainer", Repetition::Harmless);
    DELETE_CONTAINER = write(Service::Blob, "DeleteContainer", Repetition::FindsNothing);
    LIST_CONTAINERS = read(Service::Blob, "ListContainers");
    PUT_BLOB = write(Service::Blob, "PutBlob", Repetition::FailsAfterSuccess);
    GET_BLOB = read(Service::Blob, "GetBlob");
    GET_BLOB_PROPERTIES = read(Service::Blob, "GetBlobProperties");
    DELETE_BLOB = write(Service::Blob, "DeleteBlob", Repetition::FindsNothing);
    LIST_BLOBS = read(Service::Blob, "ListBlobs");
    // The caller names the lease, and holding it already is a success.
    ACQUIRE_LEASE = write(Service::Blob, "AcquireLease", Repetition::Harmless);
    RENEW_LEASE = write(Service::Blob, "RenewLease", Repetition::Harmless);
    CHANGE_LEASE = write(Service::Blob, "ChangeLease", Repetition::Harmless);
    RELEASE_LEASE = write(Service::Blob, "ReleaseLease", Repetition::FailsAfterSuccess);
    BREAK_LEASE = write(Service::Blob, "BreakLease", Repetition::Harmless);
}

impl Operation {
    /// The operation that carries out one table operation.
    pub fn of(operation: &crate::TableOperation) -> Self {
        use crate::TableOperation as T;
        match operation {
            T::Insert(_) => INSERT_ENTITY,
            T::Replace(..) => UPDATE_ENTITY,
            T::Merge(..) => MERGE_ENTITY,
            T::InsertOrReplace(_) => INSERT_OR_REPLACE_ENTITY,
            T::InsertOrMerge(_) => INSERT_OR_MERGE_ENTITY,
            T::Delete { .. } => DELETE_ENTITY,
        }
    }

    /// Whether it concerns a lease, which does not wait for ever.
    pub(crate) fn is_lease(&self) -> bool {
        self.name.ends_with("Lease")
    }

    /// Whether it may take several requests, one per page.
    pub(crate) fn is_list(&self) -> bool {
        self.name.starts_with("List")
    }
}
