//! The pool and its strands under many schedules.

use crate::pool::{BlockingPool, Strand};
use crate::sync::testing::Alone;
use crate::sync::{Arc, Mutex, explore, hold_time, let_time_pass, mpsc, thread};

#[test]
fn a_strand_runs_every_job_once_alone_and_in_order() {
    explore(10_000, || {
        hold_time();
        let pool = BlockingPool::new(2);
        let strands = [Strand::new(&pool), Strand::new(&pool)];
        let alone = Arc::new([Alone::default(), Alone::default()]);
        let (done, ends) = mpsc::channel();
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (strands, alone, done) = (strands.clone(), alone.clone(), done.clone());
                thread::spawn(move || {
                    for (at, n) in [(0, 0), (1, 1), (0, 2), (0, 3)] {
                        let (alone, done) = (alone.clone(), done.clone());
                        strands[at].post(move || alone[at].act(|| done.send((at, thread, n)).unwrap()));
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

/// An idle thread must be woken for a job, instead of finding it when its wait times out.
#[test]
fn an_idle_thread_is_woken_for_every_job() {
    explore(10_000, || {
        hold_time();
        let pool = BlockingPool::new(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let pool = pool.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let (done, end) = mpsc::channel();
                        pool.run(move || done.send(()).unwrap());
                        end.recv().unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let_time_pass();
    });
}

/// Jobs come at the moment when idle threads end.
#[test]
fn jobs_run_even_if_threads_end_just_now() {
    explore(10_000, || {
        let pool = BlockingPool::new(2);
        let run = Arc::new(Mutex::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (pool, run) = (pool.clone(), run.clone());
                thread::spawn(move || {
                    for _ in 0..3 {
                        let run = run.clone();
                        pool.run(move || *run.lock() += 1);
                        thread::yield_now();
                    }
                })
            })
            .collect();
        let (done, end) = mpsc::channel();
        pool.run(move || done.send(()).unwrap());
        end.recv().unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        while *run.lock() < 6 {
            thread::yield_now();
        }
    });
}
