use std::time::Duration;

use serde::{Deserialize, Serialize};
use taskhub_core::Timestamp;
use uuid::Uuid;

use crate::limits::{MAX_SECTIONS, REORDER_WINDOW};
use crate::{RequestMessage, Stamp};

/// The critical sections that an entity remembers: those that hold its lock, and those that have ended not long ago.
///
/// Differs: DTFx remembers only who holds the lock. Every message may be delivered again, and a batch or an episode
/// whose messages are sent may be run again without ever having been stored. DTFx takes a request that comes again
/// after its release for a new one and never unlocks the entity, and a release that comes again, or late, for the
/// end of the holder's next section. Workers of .NET ignore this member and drop it; then as much is known as there.
///
/// The rules: a section that is known is entered once; one that has ended is not entered again, nor one that was
/// released before it was asked for; the lock is free when every section of its holder has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sections(Vec<Section>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Section {
    /// Its name if another entity has given it one: id of the request which that one has seen first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Uuid>,
    /// Ids of the requests for it that were seen. If there are several, they were made by several runs of the same
    /// episode: one of them is stored, and the release names that one.
    requests: Vec<Uuid>,
    /// Requests among these for which the entity is locked, which have not been passed on yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<Uuid>,
    /// What the requests of all runs of the episode have in common; see [`slot`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<Uuid>,
    /// The orchestration's own stamp; absent when another entity's worker has replaced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<Stamp>,
    /// When its release came; absent while the entity is locked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<Stamp>,
}

impl Section {
    fn new(request_id: Uuid) -> Self {
        let requests = vec![request_id];
        Self { name: None, requests, waiting: Vec::new(), slot: None, sent: None, ended: None }
    }

    /// The section that a request is for, if it is the first that is seen.
    fn of(request: &RequestMessage) -> Self {
        let is_own_stamp = request.position == 0 || request.section.is_some();
        Self {
            name: request.section.filter(|name| *name != request.id),
            slot: slot(request),
            sent: Some(request.timestamp).filter(|stamp| is_own_stamp && *stamp != Stamp::MIN),
            ..Self::new(request.id)
        }
    }

    fn name(&self) -> Uuid {
        self.name.or(self.requests.first().copied()).unwrap_or_default()
    }

    /// Whether a request with this id was seen, be it by the entity that has named the section.
    fn has(&self, id: Uuid) -> bool {
        self.name == Some(id) || self.requests.contains(&id)
    }

    fn is_held(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether a request with another id is for this section nevertheless.
    fn is_meant_by(&self, request: &RequestMessage) -> bool {
        if let Some(section) = request.section {
            return self.has(section);
        }
        let is_near = |sent: Stamp| distance(sent, request.timestamp) < REORDER_WINDOW;
        self.slot.is_some() && self.slot == slot(request) && self.sent.is_some_and(is_near)
    }
}

fn distance(a: Stamp, b: Stamp) -> Duration {
    a.at().saturating_since(b.at()).max(b.at().saturating_since(a.at()))
}

/// What the lock requests of all runs of one episode have in common, as long as they come from the orchestration
/// itself: the message to this entity that each of them follows. Two sections of one execution that follow none are
/// at least as far apart as a sorter remembers.
pub(crate) fn slot(request: &RequestMessage) -> Option<Uuid> {
    let set = request.lock_set.as_ref()?;
    let parent = request.parent_instance_id.as_deref()?;
    if request.position > 0 || request.timestamp == Stamp::MIN {
        return None;
    }
    let execution = request.parent_execution_id.as_deref().unwrap_or_default();
    let mut name = format!("{parent}\n{execution}\n{}", request.predecessor.at().ticks());
    for entity in set {
        name.push('\n');
        name.push_str(entity.instance_id().as_str());
    }
    Some(Uuid::new_v5(&Uuid::nil(), name.as_bytes()))
}

impl Sections {
    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any section holds the lock.
    fn any_held(&self) -> bool {
        self.0.iter().any(Section::is_held)
    }

    /// Whether a request for a lock is to be dropped: it has been granted and passed on before, or its section has
    /// ended.
    pub(crate) fn is_settled(&self, request: &RequestMessage) -> bool {
        let settles = |section: &Section| {
            let is_waiting = section.waiting.contains(&request.id);
            let is_passed_on = section.requests.contains(&request.id) && !is_waiting;
            is_passed_on || (!section.is_held() && (section.has(request.id) || section.is_meant_by(request)))
        };
        self.0.iter().any(settles)
    }

    /// Whether a request with an unknown id is one more for a section that is known.
    pub(crate) fn is_another(&self, request: &RequestMessage) -> bool {
        !self.0.iter().any(|section| section.requests.contains(&request.id))
            && self.0.iter().any(|section| section.is_meant_by(request))
    }

    /// Notes that the entity is locked for a request that is not settled. `is_locked`: its sender holds the lock
    /// already.
    pub(crate) fn enter(&mut self, request: &RequestMessage, is_locked: bool, now: Timestamp) {
        if !is_locked {
            self.end(now, |_| true);
        }
        if let Some(section) = self.0.iter_mut().find(|section| section.is_meant_by(request)) {
            section.requests.push(request.id);
            section.waiting.push(request.id);
            return;
        }
        self.add(Section { waiting: vec![request.id], ..Section::of(request) });
    }

    /// Notes that a request is passed on, if the entity has been locked for it before; the section's name for the
    /// next entity.
    pub(crate) fn pass_on(&mut self, request: &RequestMessage) -> Option<Uuid> {
        let section = self.0.iter_mut().find(|section| section.waiting.contains(&request.id))?;
        section.waiting.retain(|id| *id != request.id);
        Some(section.name())
    }

    /// Ids of the requests for the sections that hold the lock.
    pub fn held(&self) -> impl Iterator<Item = Uuid> {
        let held = self.0.iter().filter(|section| section.is_held());
        held.flat_map(|section| section.requests.iter().copied())
    }

    /// Notes a release by the request id it names, if it names one; `queued` is that request if it still waits.
    /// Whether the lock is free after it, if it was sent by the holder.
    pub(crate) fn release(
        &mut self,
        id: Option<Uuid>,
        queued: Option<&RequestMessage>,
        by_holder: bool,
        now: Timestamp,
    ) -> bool {
        let named = id.and_then(|id| self.0.iter().find(|section| section.has(id)));
        let (is_known, is_held, sent) =
            named.map_or((false, false, None), |named| (true, named.is_held(), named.sent));
        if let Some(id) = id.filter(|_| !is_known) {
            let known = queued.map_or_else(|| Section::new(id), Section::of);
            self.add(Section { ended: Some(Stamp::utc(now)), ..known });
        }
        if !by_holder {
            return false;
        }
        if is_known && !is_held {
            // It has been released before, and the holder is in another section.
            return !self.any_held();
        }
        match sent {
            // What an orchestration has asked for later it may still hold.
            Some(sent) => self.end(now, |other| other.sent.is_none_or(|other| other <= sent)),
            None => self.end(now, |_| true),
        }
        !self.any_held()
    }

    fn end(&mut self, now: Timestamp, which: impl Fn(&Section) -> bool) {
        for section in self.0.iter_mut().filter(|section| section.is_held() && which(section)) {
            section.ended = Some(Stamp::utc(now));
            section.waiting.clear();
        }
    }

    fn add(&mut self, section: Section) {
        if self.0.len() >= MAX_SECTIONS {
            let oldest = self.0.iter().position(|section| !section.is_held()).unwrap_or(0);
            self.0.remove(oldest);
        }
        self.0.push(section);
    }

    /// Forgets sections that have ended long ago.
    pub(crate) fn forget(&mut self, now: Timestamp) {
        let is_recent = |ended: Stamp| now.saturating_since(ended.at()) <= REORDER_WINDOW;
        self.0.retain(|section| section.ended.is_none_or(is_recent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EntityId;

    fn now() -> Timestamp {
        Timestamp::parse("2026-01-15T10:00:00Z").unwrap()
    }

    fn after(seconds: u64) -> Stamp {
        Stamp::utc(now() + Duration::from_secs(seconds))
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    /// A request as the orchestration itself sends it.
    fn lock(n: u128, sent: u64) -> RequestMessage {
        let set = ["a", "b"].map(|key| EntityId::new("counter", key).unwrap()).into();
        let lock = RequestMessage::lock(id(n), set).from_instance("order-1", Some("e".into()));
        RequestMessage { timestamp: after(sent), ..lock }
    }

    /// One that an entity of this implementation has passed on.
    fn forwarded(n: u128, section: u128, sent: u64) -> RequestMessage {
        RequestMessage { position: 1, section: Some(id(section)), ..lock(n, sent) }
    }

    /// One that an entity of .NET has passed on.
    fn relabelled(n: u128, sent: u64) -> RequestMessage {
        RequestMessage { position: 1, ..lock(n, sent) }
    }

    /// Grants what is not settled, as an entity does; what is stored and read again goes on.
    fn grant(sections: &mut Sections, request: &RequestMessage) -> bool {
        let is_granted = !sections.is_settled(request);
        if is_granted {
            sections.enter(request, sections.any_held(), now());
            assert!(!sections.is_settled(request) && sections.pass_on(request).is_some());
        }
        let json = serde_json::to_string(sections).unwrap();
        assert_eq!(serde_json::from_str::<Sections>(&json).unwrap(), *sections, "{json}");
        is_granted
    }

    #[test]
    fn a_request_is_granted_once_before_and_after_its_release() {
        for request in [lock(1, 0), forwarded(1, 1, 0), relabelled(1, 0)] {
            let mut sections = Sections::default();
            assert!(grant(&mut sections, &request));
            assert!(!grant(&mut sections, &request));
            assert!(sections.release(Some(id(1)), None, true, now()));
            assert!(!grant(&mut sections, &request));
        }
    }

    #[test]
    fn a_section_that_was_released_before_it_was_asked_for_is_not_entered() {
        let mut sections = Sections::default();
        assert!(!sections.release(Some(id(1)), None, false, now()));
        assert!(!grant(&mut sections, &lock(1, 0)));
        assert!(!grant(&mut sections, &forwarded(1, 1, 0)));
    }

    #[test]
    fn the_request_by_which_another_entity_has_named_the_section_may_come_last() {
        let mut sections = Sections::default();
        assert!(grant(&mut sections, &forwarded(2, 1, 60)) && grant(&mut sections, &forwarded(1, 1, 0)));
        assert!(!grant(&mut sections, &forwarded(1, 1, 0)));
        assert!(sections.release(Some(id(1)), None, true, now()));
    }

    #[test]
    fn a_release_of_a_request_that_waits_ends_the_section_for_the_requests_of_all_runs() {
        let mut sections = Sections::default();
        assert!(!sections.release(Some(id(2)), Some(&lock(2, 60)), false, now()));
        assert!(!grant(&mut sections, &lock(1, 0)) && !grant(&mut sections, &lock(2, 60)));
    }

    #[test]
    fn a_section_that_ends_before_its_request_is_passed_on_ends_that_request() {
        let mut sections = Sections::default();
        sections.enter(&lock(1, 0), false, now());
        assert!(sections.release(Some(id(1)), None, true, now()));
        assert!(sections.is_settled(&lock(1, 0)) && sections.pass_on(&lock(1, 0)).is_none());
    }

    #[test]
    fn requests_of_two_runs_of_an_episode_are_for_one_section_whichever_is_released() {
        for (first, second) in [(lock(1, 0), lock(2, 60)), (forwarded(1, 1, 0), forwarded(2, 1, 60))] {
            for released in [1, 2] {
                let mut sections = Sections::default();
                assert!(grant(&mut sections, &first) && grant(&mut sections, &second));
                assert!(sections.release(Some(id(released)), None, true, now()));
                assert!(!grant(&mut sections, &second));
                let mut sections = Sections::default();
                assert!(grant(&mut sections, &first));
                assert!(sections.release(Some(id(1)), None, true, now()));
                assert!(!grant(&mut sections, &second));
            }
        }
        let mut sections = Sections::default();
        sections.enter(&lock(1, 0), false, now());
        sections.enter(&lock(2, 60), true, now());
        assert_eq!([1, 2, 2].map(|n| sections.pass_on(&lock(n, 0))), [Some(id(1)), Some(id(1)), None]);
        assert_eq!(sections.held().collect::<Vec<_>>(), [id(1), id(2)]);
    }

    #[test]
    fn sections_that_follow_different_messages_are_different() {
        let next = RequestMessage { predecessor: after(5), ..lock(2, 60) };
        let other_execution = RequestMessage { parent_execution_id: Some("f".into()), ..lock(2, 60) };
        let fewer =
            RequestMessage { lock_set: lock(2, 60).lock_set.map(|set| set[..1].to_vec()), ..lock(2, 60) };
        let much_later = lock(2, REORDER_WINDOW.as_secs());
        for request in [next, other_execution, fewer, much_later] {
            let mut sections = Sections::default();
            assert!(grant(&mut sections, &lock(1, 0)));
            assert!(sections.release(Some(id(1)), None, true, now()));
            assert!(grant(&mut sections, &request), "{request:?}");
        }
    }

    #[test]
    fn a_release_that_comes_late_or_twice_does_not_end_the_next_section() {
        let next = RequestMessage { predecessor: after(5), ..lock(2, 60) };
        for next in [next, forwarded(2, 2, 60)] {
            let mut sections = Sections::default();
            assert!(grant(&mut sections, &lock(1, 0)) && grant(&mut sections, &next));
            assert!(!sections.release(Some(id(1)), None, true, now()));
            assert!(!sections.release(Some(id(1)), None, true, now()));
            assert!(sections.release(Some(id(2)), None, true, now()));
        }
    }

    #[test]
    fn a_release_ends_what_was_asked_for_before() {
        let mut sections = Sections::default();
        assert!(grant(&mut sections, &forwarded(1, 1, 0)) && grant(&mut sections, &forwarded(2, 2, 60)));
        assert!(sections.release(Some(id(2)), None, true, now()));
    }

    #[test]
    fn of_requests_that_others_have_relabelled_as_much_is_known_as_there() {
        for released in [1, 2] {
            let mut sections = Sections::default();
            assert!(grant(&mut sections, &relabelled(1, 0)) && grant(&mut sections, &relabelled(2, 60)));
            assert!(sections.release(Some(id(released)), None, true, now()));
        }
        let mut sections = Sections::default();
        assert!(grant(&mut sections, &lock(1, 0)) && grant(&mut sections, &relabelled(2, 60)));
        assert!(sections.release(Some(id(1)), None, true, now()));
    }

    #[test]
    fn a_release_without_a_known_section_ends_all() {
        let mut sections = Sections::default();
        assert!(sections.release(Some(id(7)), None, true, now()));
        assert!(grant(&mut sections, &lock(1, 0)));
        assert!(sections.release(None, None, true, now()));
        assert!(!grant(&mut sections, &lock(1, 0)));
    }

    #[test]
    fn what_has_ended_is_forgotten_after_the_window_and_when_there_is_too_much() {
        let mut sections = Sections::default();
        assert!(grant(&mut sections, &lock(1, 0)));
        sections.release(Some(id(9)), None, false, now());
        sections.forget(now() + REORDER_WINDOW);
        assert_eq!(sections.0.len(), 2);
        sections.forget(now() + REORDER_WINDOW + Duration::from_secs(1));
        assert_eq!(sections.0.len(), 1);
        for n in 10..500 {
            sections.release(Some(id(n)), None, false, now());
        }
        assert_eq!((sections.0.len(), sections.any_held()), (MAX_SECTIONS, true));
    }
}
