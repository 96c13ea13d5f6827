//! Helper threads for what would hold up the loop. A thread owns all that it works on and touches
//! nothing of the core's; what it finds out comes back as [`Outcome`], after which it wakes the loop.
//! The core bounds how many jobs there are at a time.

use super::{ldap, pam};
use crate::auth::SaltedKeys;
use crate::core::{Derivation, Job, JobId, Lane, Outcome};
use mio::Waker;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Tells a thread that nobody waits for its job any more.
type Abandoned = Arc<AtomicBool>;

struct Task {
    id: JobId,
    job: Job,
    abandoned: Abandoned,
}

/// The threads of one kind of job; they start with the first one.
struct Helpers {
    tasks: Sender<Task>,
}

/// The helper threads and the jobs that they have.
pub struct Jobs {
    waker: Arc<Waker>,
    derive: Option<Helpers>,
    pam: Option<Helpers>,
    ldap: Option<Helpers>,
    running: BTreeMap<JobId, Abandoned>,
    ended: Sender<(JobId, Outcome)>,
    outcomes: Receiver<(JobId, Outcome)>,
}

impl Jobs {
    /// No threads yet; later ones wake the loop through `waker`.
    pub fn new(waker: Arc<Waker>) -> Self {
        let (ended, outcomes) = channel();
        let running = BTreeMap::new();
        Jobs { waker, derive: None, pam: None, ldap: None, running, ended, outcomes }
    }

    /// Has a job done. [`Jobs::next_outcome`] tells its end in any case.
    pub fn start(&mut self, id: JobId, job: Job) {
        let abandoned = Abandoned::default();
        let lane = job.lane();
        let task = Task { id, job, abandoned: Arc::clone(&abandoned) };
        let sent = self.helpers(lane).map(|helpers| helpers.tasks.send(task));
        self.running.insert(id, abandoned);
        if !matches!(sent, Ok(Ok(()))) {
            // Cannot fail: we hold the other end.
            let _ = self.ended.send((id, Outcome::GivenUp));
            let _ = self.waker.wake();
        }
    }

    /// Nobody waits for this job any more.
    pub fn abandon(&mut self, id: JobId) {
        if let Some(abandoned) = self.running.get(&id) {
            abandoned.store(true, Ordering::Relaxed);
        }
    }

    /// The end of a job.
    pub fn next_outcome(&mut self) -> Option<(JobId, Outcome)> {
        let (id, outcome) = self.outcomes.try_recv().ok()?;
        self.running.remove(&id);
        Some((id, outcome))
    }

    fn helpers(&mut self, lane: Lane) -> io::Result<&Helpers> {
        let slot = match lane {
            Lane::Derive => &mut self.derive,
            Lane::Pam => &mut self.pam,
            Lane::Ldap => &mut self.ldap,
        };
        match slot {
            Some(helpers) => Ok(helpers),
            None => {
                let helpers = spawn(lane, &self.ended, &self.waker)?;
                Ok(slot.insert(helpers))
            }
        }
    }
}

/// Name and number of the threads of a lane.
fn threads(lane: Lane) -> (&'static str, usize) {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    match lane {
        // One processor is the loop's.
        Lane::Derive => ("scram", processors.saturating_sub(1).clamp(1, 4)),
        // Modules need not stand several threads; the reference has one, too.
        Lane::Pam => ("pam", 1),
        // They wait for the network.
        Lane::Ldap => ("ldap", 4),
    }
}

fn spawn(lane: Lane, ended: &Sender<(JobId, Outcome)>, waker: &Arc<Waker>) -> io::Result<Helpers> {
    let (tasks, queue) = channel::<Task>();
    let queue = Arc::new(Mutex::new(queue));
    let (name, count) = threads(lane);
    for number in 0..count {
        let (queue, ended, waker) = (Arc::clone(&queue), ended.clone(), Arc::clone(waker));
        let spawned = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || while work(&queue, &ended, &waker) {});
        match spawned {
            Err(error) if number == 0 => return Err(error),
            // Fewer will do.
            Err(_) => break,
            Ok(_) => {}
        }
    }
    Ok(Helpers { tasks })
}

/// Does one job; false if there will be none any more.
fn work(queue: &Mutex<Receiver<Task>>, ended: &Sender<(JobId, Outcome)>, waker: &Waker) -> bool {
    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let Ok(Task { id, job, abandoned }) = next else {
        return false;
    };
    let outcome = match abandoned.load(Ordering::Relaxed) {
        true => Outcome::GivenUp,
        false => carry_out(&job, &abandoned),
    };
    ended.send((id, outcome)).is_ok() && waker.wake().is_ok()
}

fn carry_out(job: &Job, abandoned: &AtomicBool) -> Outcome {
    match job {
        Job::Derive(Derivation { password, salt, iterations }) => {
            let goes_on = || !abandoned.load(Ordering::Relaxed);
            SaltedKeys::derive_while(password, salt, *iterations, goes_on)
                .map_or(Outcome::GivenUp, Outcome::Keys)
        }
        Job::Pam(attempt) => pam::judge(attempt),
        Job::Ldap(attempt, options) => ldap::judge(attempt, options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    fn next(poll: &mut Poll, jobs: &mut Jobs) -> (JobId, Outcome) {
        let mut events = Events::with_capacity(4);
        loop {
            if let Some(outcome) = jobs.next_outcome() {
                return outcome;
            }
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(!events.is_empty(), "nobody has woken the loop");
        }
    }

    fn derive(iterations: u32) -> Job {
        let password = b"pencil".to_vec().into();
        Job::Derive(Derivation { password, salt: b"salt".to_vec(), iterations })
    }

    #[test]
    fn jobs_are_done_and_told() {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let mut jobs = Jobs::new(waker);
        for number in 1..5 {
            jobs.start(JobId::numbered(number), derive(number as u32));
        }
        let mut ended: Vec<_> = (1..5).map(|_| next(&mut poll, &mut jobs)).collect();
        ended.sort_by_key(|(id, _)| *id);
        for (number, (id, outcome)) in (1..).zip(ended) {
            assert_eq!(id, JobId::numbered(number));
            let want = SaltedKeys::derive(b"pencil", b"salt", number as u32);
            assert!(matches!(outcome, Outcome::Keys(keys) if keys == want), "{number}");
        }
        assert!(jobs.next_outcome().is_none());
    }

    #[test]
    fn what_is_abandoned_ends_early() {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let mut jobs = Jobs::new(waker);
        // More than there are threads; each would take an hour or so.
        let ids: Vec<_> = (1..8).map(JobId::numbered).collect();
        for id in &ids {
            jobs.start(*id, derive(u32::MAX));
        }
        for id in &ids {
            jobs.abandon(*id);
        }
        for _ in &ids {
            assert!(matches!(next(&mut poll, &mut jobs).1, Outcome::GivenUp));
        }
        jobs.abandon(JobId::numbered(1));
    }
}
