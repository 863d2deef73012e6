//! Threads for what blocks: disk writes, syncs, hashing, database reads. An event loop never waits for any of them.
//!
//! [`BlockingPool`] is a small pool. A [`Strand`] on top of it runs jobs one after the other, in the order they came, without
//! holding a thread while it has none: a transfer or a transaction has a lane of its own.

use std::collections::VecDeque;
use std::time::Duration;

use crate::os::{self, Job};
use crate::spin::AdaptiveSpin;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// A pool of threads, made when there is work and gone some seconds after there was none.
///
/// Jobs must not wait for each other: there are only so many threads.
#[derive(Clone, Debug)]
pub struct BlockingPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    most: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// They sleep.
    idle: usize,
    /// They look again, and need not be woken.
    looking: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs, {} of {} threads idle", self.jobs.len(), self.idle, self.threads)
    }
}

impl BlockingPool {
    /// A pool of at most so many threads (at least one).
    #[must_use]
    pub fn new(most: usize) -> BlockingPool {
        let state = Mutex::default();
        BlockingPool(Arc::new(Pool { most: most.max(1), state, work: Condvar::new() }))
    }

    /// Runs a job as soon as a thread is free.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        os::simulated!(simulation => simulation.run(Box::new(job)));
        let mut state = self.0.lock();
        state.jobs.push_back(Box::new(job));
        if state.looking >= state.jobs.len() {
            // One of those takes it.
        } else if state.looking + state.idle >= state.jobs.len() {
            drop(state);
            self.0.work.notify_one();
        } else if state.threads < self.0.most {
            state.threads += 1;
            let pool = self.0.clone();
            let started = thread::Builder::new().name("blobferry-worker".into()).spawn(move || pool.work());
            if let Err(error) = started {
                // The job stays where it is, for the threads there are, or the next attempt to have one.
                state.threads -= 1;
                tracing::error!(%error, "no thread for blocking work");
            }
        }
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn work(&self) {
        let (mut state, mut looking) = (self.lock(), AdaptiveSpin::default());
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                looking.reset();
                // A job that panics is a defect in it, and must not take the thread from the others.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job panicked");
                }
                state = self.lock();
                continue;
            }
            state = self.look(state, &mut looking);
            if !state.jobs.is_empty() {
                continue;
            }
            state.idle += 1;
            let (back, wait) = self.work.wait_timeout(state, IDLE);
            state = back;
            state.idle -= 1;
            if wait && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// Looks for work for a moment: who receives a large blob has some every moment.
    fn look<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        looking: &mut AdaptiveSpin,
    ) -> MutexGuard<'a, State> {
        state.looking += 1;
        while state.jobs.is_empty() && looking.should_spin() {
            drop(state);
            thread::yield_now();
            state = self.lock();
        }
        state.looking -= 1;
        state
    }
}

/// Jobs in order: one at a time, each after the one before it has ended.
#[derive(Clone, Debug)]
pub struct Strand {
    workers: BlockingPool,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.jobs.len())
    }
}

impl Strand {
    /// A lane without jobs.
    #[must_use]
    pub fn new(workers: &BlockingPool) -> Strand {
        Strand { workers: workers.clone(), queue: Arc::default() }
    }

    /// Runs a job after all that were given before.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(Box::new(job));
        if !std::mem::replace(&mut queue.running, true) {
            let queue = self.queue.clone();
            self.workers.run(move || drain(&queue));
        }
    }

    /// Runs a short job after all that were given before: on this thread, where there are none.
    pub fn dispatch(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = lock(&self.queue);
        if std::mem::replace(&mut queue.running, true) {
            queue.jobs.push_back(Box::new(job));
            return;
        }
        drop(queue);
        let _turn = Turn(self);
        job();
    }
}

/// A job of a lane that runs on its caller's thread. What came meanwhile is left to others.
struct Turn<'a>(&'a Strand);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.running = !queue.jobs.is_empty();
        if queue.running {
            let queue = self.0.queue.clone();
            self.0.workers.run(move || drain(&queue));
        }
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock()
}

fn drain(queue: &Mutex<Queue>) {
    loop {
        let mut locked = lock(queue);
        let Some(job) = locked.jobs.pop_front() else {
            locked.running = false;
            return;
        };
        drop(locked);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_lane_keeps_the_order_and_runs_one_job_at_a_time() {
        let workers = BlockingPool::new(4);
        let lane = Strand::new(&workers);
        let (done, order) = mpsc::channel();
        let busy = Arc::new(Mutex::new(()));
        for n in 0..1000 {
            let (done, busy) = (done.clone(), busy.clone());
            lane.post(move || {
                let _alone = busy.try_lock().unwrap();
                done.send(n).unwrap();
            });
        }
        drop(done);
        assert!(order.iter().eq(0..1000));
    }

    #[test]
    fn a_job_in_its_turn_runs_here_where_there_is_none_before_and_behind_the_others_else() {
        let workers = BlockingPool::new(2);
        let lane = Strand::new(&workers);
        let (done, order) = mpsc::channel();
        let tell = |what: &'static str| {
            let done = done.clone();
            move || done.send((what, std::thread::current().id())).unwrap()
        };
        let here = std::thread::current().id();
        lane.dispatch(tell("first"));
        assert_eq!(order.try_recv(), Ok(("first", here)));
        let (go, wait) = mpsc::channel::<()>();
        lane.post(move || wait.recv().unwrap());
        lane.post(tell("second"));
        lane.dispatch(tell("third"));
        assert!(order.try_recv().is_err());
        go.send(()).unwrap();
        assert_eq!([order.recv().unwrap().0, order.recv().unwrap().0], ["second", "third"]);
        // What is given by a job in its turn comes behind it.
        let (again, later) = (lane.clone(), tell("fifth"));
        let (fourth, started) = (tell("fourth"), mpsc::channel::<()>());
        lane.post(move || started.0.send(()).unwrap());
        started.1.recv().unwrap();
        lane.dispatch(move || {
            again.post(later);
            fourth();
        });
        assert_eq!([order.recv().unwrap().0, order.recv().unwrap().0], ["fourth", "fifth"]);
    }

    #[test]
    fn a_job_that_panics_takes_nothing_with_it() {
        let workers = BlockingPool::new(1);
        let lane = Strand::new(&workers);
        let (done, end) = mpsc::channel();
        lane.post(|| panic!("on purpose"));
        workers.run(|| panic!("on purpose"));
        lane.post(move || done.send(()).unwrap());
        end.recv().unwrap();
    }

    #[test]
    fn lanes_do_not_wait_for_each_other() {
        let workers = BlockingPool::new(2);
        let (first, second) = (Strand::new(&workers), Strand::new(&workers));
        let (go, wait) = mpsc::channel::<()>();
        let (done, end) = mpsc::channel();
        first.post(move || wait.recv().unwrap());
        second.post(move || done.send(()).unwrap());
        end.recv().unwrap();
        go.send(()).unwrap();
    }
}
