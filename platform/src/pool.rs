//! Threads for blocking work: disk writes, syncs, hashing, database reads. Event loops never wait
//! for such work.
//!
//! [`BlockingPool`] is a small pool of threads. A [`Strand`] on top of it runs jobs one after the
//! other, in the order in which they came. It occupies no thread while it has no jobs. Each
//! transfer and each transaction has a strand of its own.

use std::collections::VecDeque;
use std::time::Duration;

use crate::os::{self, Job};
use crate::spin::{AdaptiveSpin, SpinPolicy};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, thread};

/// The time after which an idle thread ends.
const IDLE: Duration = Duration::from_secs(10);

/// A pool of threads. A thread is started when there is a job for it, and ends 10 seconds after its
/// last job.
///
/// Jobs must not wait for each other, because the number of threads is limited. Clones share the
/// threads.
#[derive(Clone, Debug)]
pub struct BlockingPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    max_threads: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// The number of threads that sleep.
    idle: usize,
    /// The number of threads that spin. They need not be woken.
    spinning: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs, {} of {} threads idle", self.jobs.len(), self.idle, self.threads)
    }
}

impl BlockingPool {
    /// Creates a pool of at most `max_threads` threads (at least one).
    #[must_use]
    pub fn new(max_threads: usize) -> BlockingPool {
        let state = Mutex::default();
        BlockingPool(Arc::new(Pool { max_threads: max_threads.max(1), state, work: Condvar::new() }))
    }

    /// Runs a job as soon as a thread is free.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        os::simulated!(simulation => simulation.run(Box::new(job)));
        let mut state = self.0.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.spinning >= state.jobs.len() {
            // A spinning thread takes the job.
        } else if state.spinning + state.idle >= state.jobs.len() {
            drop(state);
            self.0.work.notify_one();
        } else if state.threads < self.0.max_threads {
            state.threads += 1;
            let pool = self.0.clone();
            let started = thread::Builder::new().name("blobferry-worker".into()).spawn(move || pool.work());
            if let Err(error) = started {
                // The job stays queued for the existing threads, or for the next attempt to start
                // one.
                state.threads -= 1;
                tracing::error!(%error, "no thread for blocking work");
            }
        }
    }
}

impl Pool {
    fn work(&self) {
        let (mut state, mut spin) = (self.state.lock(), AdaptiveSpin::new(SpinPolicy::PIPELINE));
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                spin.reset();
                // A panic is a defect of the job. It must not end the thread, which other jobs
                // need.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job panicked");
                }
                state = self.state.lock();
                continue;
            }
            state = self.spin(state, &mut spin);
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

    /// Spins until there is a job or the spinning has lasted long enough. While a large blob
    /// arrives, the next job comes within microseconds.
    fn spin<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        spin: &mut AdaptiveSpin,
    ) -> MutexGuard<'a, State> {
        state.spinning += 1;
        while state.jobs.is_empty() && spin.should_spin() {
            drop(state);
            thread::yield_now();
            state = self.state.lock();
        }
        state.spinning -= 1;
        state
    }
}

/// A queue of jobs that run one at a time, in the order in which they came. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Strand {
    pool: BlockingPool,
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
    /// Creates a strand without jobs.
    #[must_use]
    pub fn new(pool: &BlockingPool) -> Strand {
        Strand { pool: pool.clone(), queue: Arc::default() }
    }

    /// Queues a job behind all earlier jobs. A thread of the pool runs it.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(Box::new(job));
        if !std::mem::replace(&mut queue.running, true) {
            let queue = self.queue.clone();
            self.pool.run(move || drain(&queue));
        }
    }

    /// Runs a short job on the calling thread, if the strand has no jobs. Otherwise queues it
    /// behind the earlier jobs.
    pub fn dispatch(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.queue.lock();
        if std::mem::replace(&mut queue.running, true) {
            queue.jobs.push_back(Box::new(job));
            return;
        }
        drop(queue);
        let _dispatching = Dispatching(self);
        job();
    }
}

/// The right of the calling thread to run a job of the strand. Dropped, it leaves later jobs to the
/// pool.
struct Dispatching<'a>(&'a Strand);

impl Drop for Dispatching<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.running = !queue.jobs.is_empty();
        if queue.running {
            let queue = self.0.queue.clone();
            self.0.pool.run(move || drain(&queue));
        }
    }
}

fn drain(queue: &Mutex<Queue>) {
    loop {
        let mut locked = queue.lock();
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
    fn a_strand_runs_one_job_at_a_time_in_order() {
        let pool = BlockingPool::new(4);
        let strand = Strand::new(&pool);
        let (done, order) = mpsc::channel();
        let busy = Arc::new(Mutex::new(()));
        for n in 0..1000 {
            let (done, busy) = (done.clone(), busy.clone());
            strand.post(move || {
                let _alone = busy.try_lock().unwrap();
                done.send(n).unwrap();
            });
        }
        drop(done);
        assert!(order.iter().eq(0..1000));
    }

    #[test]
    fn dispatch_runs_here_if_idle_and_queues_otherwise() {
        let pool = BlockingPool::new(2);
        let strand = Strand::new(&pool);
        let (done, order) = mpsc::channel();
        let report = |what: &'static str| {
            let done = done.clone();
            move || done.send((what, std::thread::current().id())).unwrap()
        };
        let here = std::thread::current().id();
        strand.dispatch(report("first"));
        assert_eq!(order.try_recv(), Ok(("first", here)));
        let (go, wait) = mpsc::channel::<()>();
        strand.post(move || wait.recv().unwrap());
        strand.post(report("second"));
        strand.dispatch(report("third"));
        assert!(order.try_recv().is_err());
        go.send(()).unwrap();
        assert_eq!([order.recv().unwrap().0, order.recv().unwrap().0], ["second", "third"]);
        // A job that another job posts runs after that job.
        let (again, later) = (strand.clone(), report("fifth"));
        let (fourth, started) = (report("fourth"), mpsc::channel::<()>());
        strand.post(move || started.0.send(()).unwrap());
        started.1.recv().unwrap();
        strand.dispatch(move || {
            again.post(later);
            fourth();
        });
        assert_eq!([order.recv().unwrap().0, order.recv().unwrap().0], ["fourth", "fifth"]);
    }

    #[test]
    fn a_panicking_job_harms_no_other() {
        let pool = BlockingPool::new(1);
        let strand = Strand::new(&pool);
        let (done, end) = mpsc::channel();
        strand.post(|| panic!("on purpose"));
        pool.run(|| panic!("on purpose"));
        strand.post(move || done.send(()).unwrap());
        end.recv().unwrap();
    }

    #[test]
    fn strands_do_not_wait_for_each_other() {
        let pool = BlockingPool::new(2);
        let (first, second) = (Strand::new(&pool), Strand::new(&pool));
        let (go, wait) = mpsc::channel::<()>();
        let (done, end) = mpsc::channel();
        first.post(move || wait.recv().unwrap());
        second.post(move || done.send(()).unwrap());
        end.recv().unwrap();
        go.send(()).unwrap();
    }
}
