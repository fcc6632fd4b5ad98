use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn now() -> Timestamp {
    Timestamp::parse("2026-01-15T10:00:00Z").unwrap()
}

/// Requests of one sender, one for each of the times, named by their place.
fn sent(execution_id: Option<&str>, times: &[Timestamp]) -> Vec<RequestMessage> {
    let mut sorter = MessageSorter::default();
    let request = |(n, at): (usize, &Timestamp)| {
        let mut request = RequestMessage::signal(Uuid::from_u128(n as u128), n.to_string(), None)
            .from_instance("A", execution_id.map(str::to_owned));
        sorter.label_outgoing(&mut request, "@b@b", *at);
        request
    };
    times.iter().enumerate().map(request).collect()
}

fn receive(sorter: &mut MessageSorter, message: &RequestMessage) -> String {
    let delivered = sorter.receive_in_order(message.clone());
    // What is stored and read again must go on as before.
    let json = crate::json::write(sorter);
    *sorter = serde_json::from_str(&json).unwrap();
    assert_eq!(crate::json::write(sorter), json);
    delivered.into_iter().filter_map(|m| m.operation).collect::<Vec<_>>().join(" ")
}

/// Receives messages by their numbers; `expected` lists what each of them sets free.
#[track_caller]
fn check(messages: &[RequestMessage], order: &[usize], expected: &[&str]) {
    let mut sorter = MessageSorter::default();
    let delivered: Vec<_> = order.iter().map(|n| receive(&mut sorter, &messages[*n])).collect();
    assert_eq!(delivered, expected);
    assert_eq!(sorter.buffered_len(), 0);
}

#[test]
fn messages_in_order_come_one_by_one() {
    check(&sent(Some("e"), &[now(); 3]), &[0, 1, 2], &["0", "1", "2"]);
}

#[test]
fn stamps_of_one_sender_grow_though_its_clock_goes_back() {
    let second = Duration::from_secs(1);
    let messages = sent(None, &[now(), now() - second, now() - second * 2]);
    check(&messages, &[0, 1, 2], &["0", "1", "2"]);
    assert_eq!(messages[1].timestamp, Stamp::utc(now()).next());
    assert_eq!(messages[2].predecessor, messages[1].timestamp);
}

#[test]
fn messages_wait_for_those_before_them() {
    check(&sent(None, &[now(); 3]), &[1, 2, 0], &["", "", "0 1 2"]);
}

#[test]
fn duplicates_are_dropped_before_and_after_delivery() {
    let order = [1, 1, 0, 1, 0, 2, 2, 1, 0];
    check(&sent(None, &[now(); 3]), &order, &["", "", "0 1", "", "", "2", "", "", ""]);
}

#[test]
fn what_is_older_than_the_window_passes_through() {
    let late = now() + REORDER_WINDOW + MIN_INTERVAL_BETWEEN_COLLECTIONS + Duration::from_secs(1);
    let messages = sent(None, &[now(), now(), late]);
    check(&messages, &[0, 1, 2, 1, 0, 1], &["0", "1", "2", "1", "0", "1"]);
}

#[test]
fn a_new_execution_of_the_sender_begins_anew() {
    let (old, new) = (sent(Some("1"), &[now(); 3]), sent(Some("2"), &[now(); 2]));
    let mut sorter = MessageSorter::default();
    let messages = [&old[0], &old[2], &new[1], &new[0], &new[1]];
    let delivered: Vec<_> = messages.iter().map(|m| receive(&mut sorter, m)).collect();
    assert_eq!(delivered, ["0", "", "2", "0 1", ""]);
}

#[test]
fn what_comes_late_or_again_of_an_older_execution_does_not_disturb_the_current_one() {
    let (old, new) = (sent(Some("1"), &[now(); 4]), sent(Some("2"), &[now(); 3]));
    let mut sorter = MessageSorter::default();
    let messages = [&old[0], &old[2], &new[0], &old[0], &new[1], &old[1], &old[2], &old[1], &old[3], &new[2]];
    let delivered: Vec<_> = messages.iter().map(|m| receive(&mut sorter, m)).collect();
    assert_eq!(delivered, ["0", "", "2 0", "", "1", "1", "", "", "3", "2"]);
}

#[test]
fn of_older_executions_some_are_remembered_for_as_long_as_the_window() {
    let mut sorter = MessageSorter::default();
    let second = Duration::from_secs(1);
    for n in 0..50 {
        let message = &sent(Some(&n.to_string()), &[now() + second * n])[0];
        assert_eq!((receive(&mut sorter, message), receive(&mut sorter, message)), ("0".into(), "".into()));
    }
    let buffer = |sorter: &MessageSorter| sorter.received_from_instance.as_ref().unwrap()["A"].clone();
    assert_eq!(buffer(&sorter).others.len(), MAX_ENDED_EXECUTIONS);
    receive(&mut sorter, &sent(Some("49"), &[now() + REORDER_WINDOW * 2])[0]);
    assert_eq!(buffer(&sorter).others, []);
}

#[test]
fn what_waited_for_another_run_of_its_episode_does_not_set_the_order_back() {
    let (lost, stored) = (sent(None, &[now(); 2]), sent(None, &[now() + Duration::from_secs(1); 3]));
    let mut sorter = MessageSorter::default();
    let messages = [&lost[1], &stored[0], &stored[1], &stored[0], &stored[2]];
    let delivered: Vec<_> = messages.iter().map(|m| receive(&mut sorter, m)).collect();
    assert_eq!(delivered, ["", "0 1", "1", "", "2"]);
}

#[test]
fn requests_without_stamps_and_forwarded_locks_come_as_they_come() {
    let mut sorter = MessageSorter::default();
    let client = RequestMessage::signal(Uuid::nil(), "x", None);
    let mut lock = sent(None, &[now(); 2]).remove(1);
    lock.position = 1;
    let unsorted = client.clone().from_instance("A", Some("e".into()));
    for message in [&client, &client, &lock, &lock, &unsorted, &unsorted] {
        assert_ne!(receive(&mut sorter, message), "");
    }
    assert_eq!(sorter, MessageSorter::default());
}

#[test]
fn a_message_whose_predecessor_is_lost_comes_when_the_window_has_passed() {
    let late = now() + REORDER_WINDOW * 2;
    let messages = sent(None, &[now(), now(), late]);
    check(&messages, &[1, 2], &["", "1 2"]);
}

#[test]
fn old_entries_are_thrown_away() {
    let mut sorter = MessageSorter::default();
    let mut send = |to: &str, at| {
        let mut message = RequestMessage::signal(Uuid::nil(), "x", None);
        sorter.label_outgoing(&mut message, to, at);
        (message.predecessor == Stamp::MIN, sorter.last_sent_to_instance.as_ref().unwrap().len())
    };
    assert_eq!(send("a", now()), (true, 1));
    assert_eq!(send("b", now()), (true, 2));
    assert_eq!(send("a", now() + REORDER_WINDOW), (false, 2));
    assert_eq!(send("a", now() + REORDER_WINDOW + Duration::from_secs(11)), (false, 1));
    assert_eq!(send("b", now() + REORDER_WINDOW * 2), (true, 2));
}

proptest! {
    #[test]
    fn any_order_with_any_duplicates_gives_the_sequence_once(
        order in prop::collection::vec(0usize..40, 40..160).prop_map(|mut more| {
            // Every message at least once, anywhere among the duplicates.
            for n in 0..40 { more.insert((n * 7919) % (more.len() + 1), n) }
            more
        }),
        gaps in prop::collection::vec(0u64..3, 40),
    ) {
        let times: Vec<_> = gaps
            .iter()
            .scan(now(), |at, gap| { *at = *at + Duration::from_secs(*gap); Some(*at) })
            .collect();
        let messages = sent(Some("e"), &times);
        let mut sorter = MessageSorter::default();
        let delivered: Vec<_> = order
            .iter()
            .flat_map(|n| sorter.receive_in_order(messages[*n].clone()))
            .filter_map(|m| m.operation)
            .collect();
        let expected: Vec<_> = (0..40).map(|n| n.to_string()).collect();
        prop_assert_eq!(delivered, expected);
        prop_assert_eq!(sorter.buffered_len(), 0);
    }

    #[test]
    fn beyond_the_window_all_come_though_perhaps_out_of_order(
        order in Just((0usize..60).collect::<Vec<_>>()).prop_shuffle(),
        gaps in prop::collection::vec(0u64..400, 60),
    ) {
        let mut at = now();
        let mut times: Vec<_> = gaps.iter().map(|gap| { at = at + Duration::from_secs(*gap); at }).collect();
        times.push(at + REORDER_WINDOW * 3);
        let messages = sent(None, &times);
        let mut sorter = MessageSorter::default();
        let mut delivered = 0;
        for (n, message) in order.iter().enumerate() {
            delivered += sorter.receive_in_order(messages[*message].clone()).len();
            prop_assert_eq!(delivered + sorter.buffered_len(), n + 1);
        }
        delivered += sorter.receive_in_order(messages[60].clone()).len();
        prop_assert_eq!((delivered, sorter.buffered_len()), (61, 0));
    }
}
