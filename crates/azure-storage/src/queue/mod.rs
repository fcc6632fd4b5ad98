//! Control queues and the work-item queue: sending, receiving, back-off.

pub(crate) mod backoff;
pub(crate) mod control;
pub(crate) mod held;
pub(crate) mod outbox;
pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod timers;
pub(crate) mod work_item;
