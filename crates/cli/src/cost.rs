//! `cost`: what the requests of a process cost, and the tables of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taskhub_azure_storage::metrics::REQUESTS_METRIC;
use taskhub_core::WorkerId;
use taskhub_http::fetch;
use taskhub_storage::request::{Cost, OperationCounts};

use crate::Exit;
use crate::args::{CostArgs, OutputForm};
use crate::console::Console;
use crate::table::Table;

/// Requests of one kind; see [`taskhub_storage::request::Cost`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Line {
    /// `None`: what serves all of them, such as polling and leases.
    pub(crate) orchestration: Option<String>,
    pub(crate) meter: String,
    pub(crate) operation: String,
    pub(crate) requests: u64,
}

impl From<Cost> for Line {
    fn from(cost: Cost) -> Self {
        Self {
            orchestration: cost.orchestration.map(|name| name.to_string()),
            meter: cost.meter.name().to_owned(),
            operation: cost.operation.to_owned(),
            requests: cost.requests,
        }
    }
}

/// Asks a worker for its metrics and shows what its requests cost.
pub(crate) async fn run(args: CostArgs, console: &mut Console) -> Result<Exit> {
    let text = fetch(&args.url, args.timeout).await.context("could not read the metrics")?;
    let lines = parse(&text);
    if lines.is_empty() && !text.contains(REQUESTS_METRIC) {
        bail!("these metrics do not tell requests. url=`{}`", args.url);
    }
    if console.form == Some(OutputForm::Json) {
        console.json(&document(&lines))?;
    } else {
        for table in tables(&lines) {
            console.data(&(table.render() + "\n"))?;
        }
    }
    Ok(Exit::Done)
}

fn sums<'a>(lines: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<&'a str, u64> {
    let mut sums = BTreeMap::new();
    lines.for_each(|(name, requests)| *sums.entry(name).or_default() += requests);
    sums
}

/// Who is meant where no orchestration is.
const NOBODY: &str = "(polling, leases, queries)";

/// By meter, by operation, by orchestration.
pub(crate) fn tables(lines: &[Line]) -> [Table; 3] {
    let mut meters = Table::new(["METER", "REQUESTS"]);
    for (meter, requests) in sums(lines.iter().map(|l| (&*l.meter, l.requests))) {
        meters.row([meter.to_owned(), requests.to_string()]);
    }
    let all: u64 = lines.iter().map(|l| l.requests).sum();
    meters.row(["all of these".to_owned(), all.to_string()]);
    let mut operations = Table::new(["OPERATION", "REQUESTS"]);
    for (operation, requests) in sums(lines.iter().map(|l| (&*l.operation, l.requests))) {
        operations.row([operation.to_owned(), requests.to_string()]);
    }
    let mut names = Table::new(["ORCHESTRATION", "REQUESTS"]);
    for (name, requests) in
        sums(lines.iter().map(|l| (l.orchestration.as_deref().unwrap_or(NOBODY), l.requests)))
    {
        names.row([name.to_owned(), requests.to_string()]);
    }
    [meters, operations, names]
}

pub(crate) fn document(lines: &[Line]) -> Value {
    json!({
        "requests": lines.iter().map(|l| l.requests).sum::<u64>(),
        "meters": sums(lines.iter().map(|l| (&*l.meter, l.requests))),
        "lines": lines,
    })
}

/// `worker --cost-log`: appends what a worker that has ended has sent, as one line. Several processes may share the
/// file.
///
/// # Errors
/// It cannot be written.
pub(crate) fn append_to(path: &Path, worker_id: &WorkerId, counts: &OperationCounts) -> Result<()> {
    let lines: Vec<Line> = counts.costs().into_iter().map(Line::from).collect();
    let mut document = document(&lines);
    document["worker"] = json!(worker_id.as_str());
    let write = || {
        File::options().create(true).append(true).open(path)?.write_all(format!("{document}\n").as_bytes())
    };
    write().with_context(|| format!("could not write the cost log. file=`{}`", path.display()))
}

/// The bills in a text of [`append_to`], one for each worker.
///
/// # Errors
/// It is something else.
pub(crate) fn read_log(text: &str) -> Result<Vec<Vec<Line>>> {
    let bill = |line: &str| -> Result<Vec<Line>> {
        let mut document: Value = serde_json::from_str(line)?;
        Ok(serde_json::from_value(document["lines"].take())?)
    };
    text.lines().map(bill).collect()
}

/// The lines of our metric in an OpenMetrics text.
fn parse(text: &str) -> Vec<Line> {
    let prefix = format!("{REQUESTS_METRIC}_total{{");
    let mut lines: Vec<_> = text.lines().filter_map(|line| parse_line(line.strip_prefix(&prefix)?)).collect();
    lines.sort();
    lines
}

fn parse_line(rest: &str) -> Option<Line> {
    let (mut labels, mut rest) = (BTreeMap::new(), rest);
    loop {
        let (name, quoted) = rest.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), quoted.chars());
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        labels.insert(name.to_owned(), value);
        rest = chars.as_str();
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    let requests = rest.strip_prefix("} ")?.split(' ').next()?.parse().ok()?;
    let orchestration = labels.remove("orchestration").filter(|name| !name.is_empty());
    let (meter, operation) = (labels.remove("meter")?, labels.remove("operation")?);
    Some(Line { orchestration, meter, operation, requests })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use taskhub_azure_storage::metrics::register_requests;
    use taskhub_core::SystemClock;
    use taskhub_http::prometheus_client::registry::Registry;
    use taskhub_http::{Health, Server, health};
    use taskhub_storage::memory::MemoryStore;
    use taskhub_storage::request::{RequestSettings, on_behalf_of};

    use super::*;
    use crate::args::Cli;
    use crate::config::Environment;
    use crate::console::captured::console;

    #[tokio::test]
    async fn the_requests_of_a_worker_are_shown_by_meter_operation_and_orchestration() {
        let counts = OperationCounts::default();
        let account =
            MemoryStore::new(Arc::new(SystemClock)).account().layered(RequestSettings::default(), &counts);
        account.queues.create_queue("queue").await.unwrap();
        let odd: Arc<str> = "a \"b\"\\\n,} 7".into();
        let put = || account.queues.put_message("queue", "x", std::time::Duration::ZERO);
        on_behalf_of(Some(odd.clone()), async { (put().await.unwrap(), put().await.unwrap()) }).await;
        account.queues.get_messages("queue", 1, std::time::Duration::from_secs(30)).await.unwrap();

        let hub = taskhub::TaskHub::in_memory("Test", Arc::new(SystemClock)).unwrap();
        let worker = hub.worker().build().unwrap();
        let mut metrics = Registry::default();
        register_requests(&counts, &mut metrics);
        let any = "127.0.0.1:0".parse().unwrap();
        let server =
            Server::start(any, health(Health::of(worker.handle()).with_metrics(metrics))).await.unwrap();
        let url = format!("http://{}/metrics", server.address());
        let ask = async |form: Option<OutputForm>| {
            let cli = Cli::try_parse_from(["taskhub", "cost", &url]).unwrap();
            let (mut console, out, _) = console(form);
            let environment = Environment { variable: Box::new(|_| None), directory: std::env::temp_dir() };
            crate::run(cli, &environment, &mut console).await.unwrap();
            out.take()
        };
        let told: Value = serde_json::from_str(&ask(Some(OutputForm::Json)).await).unwrap();
        assert_eq!(told["requests"], 4);
        assert_eq!(told["meters"], json!({ "queue class 1": 4 }));
        let line = |name: Value, operation: &str, requests: u64| json!({"orchestration": name, "meter": "queue class 1", "operation": operation, "requests": requests});
        assert_eq!(
            told["lines"],
            json!([
                line(Value::Null, "CreateQueue", 1),
                line(Value::Null, "GetMessages", 1),
                line(json!(&*odd), "PutMessage", 2),
            ])
        );
        let text = ask(None).await;
        for line in
            ["queue class 1   4", "all of these    4", "PutMessage   2", "(polling, leases, queries)   2"]
        {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.lines().any(|l| words(l) == words(line)), "{line}: {text}");
        }
        server.stop().await.unwrap();
    }

    #[tokio::test]
    async fn workers_that_share_a_cost_log_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("costs.jsonl");
        let counts = OperationCounts::default();
        let account =
            MemoryStore::new(Arc::new(SystemClock)).account().layered(RequestSettings::default(), &counts);
        append_to(&path, &WorkerId::new("idle"), &counts).unwrap();
        let name: Arc<str> = "a\nb".into();
        on_behalf_of(Some(name), account.queues.create_queue("queue")).await.unwrap();
        append_to(&path, &WorkerId::new("busy"), &counts).unwrap();
        let line = Line {
            orchestration: Some("a\nb".to_owned()),
            meter: "queue class 1".to_owned(),
            operation: "CreateQueue".to_owned(),
            requests: 1,
        };
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(read_log(&text).unwrap(), [vec![], vec![line]]);
        assert!(text.lines().nth(1).unwrap().contains(r#""worker":"busy""#), "{text}");
        assert!(append_to(directory.path(), &WorkerId::new("w"), &counts).is_err());
        assert!(read_log("{}").is_err());
    }

    #[test]
    fn what_is_no_line_of_the_metric_is_passed_over() {
        let texts =
            ["", "# EOF", "taskhub_storage_requests_total{meter=\"x", "taskhub_storage_requests_total{} 3"];
        for text in texts {
            assert!(parse(text).is_empty(), "{text}");
        }
    }
}
