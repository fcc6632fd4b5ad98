//! Several workers of one hub, also as processes of their own that are killed.

use std::process::{Child, Command, Stdio};

use anyhow::Result;
use azurite_tests::{connection, on_a_hub};
use taskhub_client::Start;
use taskhub_testkit::contract::workers;
use taskhub_testkit::golden::{Ending, WorkerFlags};
use taskhub_testkit::{TestHub, eventually};

#[tokio::test]
async fn two_workers_share_the_partitions_and_hand_them_over() -> Result<()> {
    on_a_hub(workers::share_the_partitions_and_hand_them_over).await
}

#[tokio::test]
async fn a_successor_completes_what_a_stopped_worker_began() -> Result<()> {
    on_a_hub(workers::a_successor_completes_what_a_stopped_worker_began).await
}

/// The worker does not hand anything back: its leases run out.
#[tokio::test]
async fn a_killed_worker_is_replaced() -> Result<()> {
    on_a_hub(async |hub| {
        let client = hub.client()?;
        client.start(Start::new("Approval").instance_id("orphan")).await?;
        let doomed = Process::worker(hub, "doomed")?;
        hub.until_event("orphan", "TimerCreated").await;
        // At rest: nothing but the timer is left, so no message is lost to a visibility timeout.
        eventually("nothing but the timer", async || {
            let taken = hub.take().await.ok()?;
            let left: u64 = taken.queues.iter().map(|queue| queue.messages.len() as u64 + queue.unseen).sum();
            (left == 1).then_some(())
        })
        .await;
        drop(doomed);
        client.raise_event(&"orphan".into(), "ApprovalEvent", "yes").await?;

        let heir = hub.start_worker("heir", WorkerFlags::default()).await?;
        hub.ends(&[Ending {
            instance: "orphan".into(),
            status: 1,
            output: Some("\"approved:\\\"yes\\\"\"".into()),
            long_output: None,
            custom_status: Some("null".into()),
            entity_state: None,
        }])
        .await?;
        heir.stop().await
    })
    .await
}

/// A worker in a process of its own, which is killed in the end.
struct Process(Child);

impl Process {
    fn worker(hub: &TestHub, worker_id: &str) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_golden-rig"));
        command.args(["worker", &connection(), hub.name().as_str(), "--id", worker_id]);
        Ok(Self(command.stdout(Stdio::null()).spawn()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is as good as killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
