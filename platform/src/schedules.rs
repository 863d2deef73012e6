//! Workers and lanes.

use crate::pool::{BlockingPool, Strand};
use crate::sync::testing::Alone;
use crate::sync::{Arc, Mutex, explore, hold_time, let_time_pass, mpsc, thread};

#[test]
fn a_lane_runs_every_job_once_and_alone_in_the_order_of_coming() {
    explore(10_000, || {
        hold_time();
        let workers = BlockingPool::new(2);
        let lanes = [Strand::new(&workers), Strand::new(&workers)];
        let alone = Arc::new([Alone::default(), Alone::default()]);
        let (done, ends) = mpsc::channel();
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (lanes, alone, done) = (lanes.clone(), alone.clone(), done.clone());
                thread::spawn(move || {
                    for (at, n) in [(0, 0), (1, 1), (0, 2), (0, 3)] {
                        let (alone, done) = (alone.clone(), done.clone());
                        lanes[at].post(move || alone[at].act(|| done.send((at, thread, n)).unwrap()));
                    }
                })
            })
            .collect();
        drop(done);
        let ends: Vec<_> = ends.iter().collect(); // until the last job was run, and is gone
        for at in 0..2 {
            for of in 0..2 {
                let order = ends.iter().filter(|end| (end.0, end.1) == (at, of)).map(|end| end.2);
                let given: &[i32] = if at == 0 { &[0, 2, 3] } else { &[1] };
                assert!(order.eq(given.iter().copied()), "{ends:?}");
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let_time_pass();
    });
}

/// A thread that has nothing to do must hear of a job, and not find it when it has slept long enough.
#[test]
fn an_idle_thread_is_told_of_every_job() {
    explore(10_000, || {
        hold_time();
        let workers = BlockingPool::new(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let workers = workers.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let (done, end) = mpsc::channel();
                        workers.run(move || done.send(()).unwrap());
                        end.recv().unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let_time_pass();
    });
}

/// Threads go when they have waited long enough: at that very moment jobs come.
#[test]
fn jobs_are_run_whenever_threads_leave() {
    explore(10_000, || {
        let workers = BlockingPool::new(2);
        let run = Arc::new(Mutex::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (workers, run) = (workers.clone(), run.clone());
                thread::spawn(move || {
                    for _ in 0..3 {
                        let run = run.clone();
                        workers.run(move || *run.lock() += 1);
                        thread::yield_now();
                    }
                })
            })
            .collect();
        let (done, end) = mpsc::channel();
        workers.run(move || done.send(()).unwrap());
        end.recv().unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        while *run.lock() < 6 {
            thread::yield_now();
        }
    });
}
