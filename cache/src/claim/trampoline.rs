//! One after the other: tasks of which each may start the next, without nesting.
//!
//! A waiter that is handed a download may give it up at once (its caller has gone away), which hands it to the next
//! waiter, and so on. A thousand of those must not be a thousand calls deep.

use std::cell::RefCell;
use std::collections::VecDeque;

use blobferry_platform::sync::thread_local;

type Task = Box<dyn FnOnce()>;

thread_local! {
    /// What is still to be done on this thread; `None` while nothing is being done.
    static TASKS: RefCell<Option<VecDeque<Task>>> = const { RefCell::new(None) };
}

fn with_tasks<T>(change: impl FnOnce(&mut Option<VecDeque<Task>>) -> T) -> T {
    TASKS.with(|tasks| change(&mut tasks.borrow_mut()))
}

/// Runs a task: now, or right after the one that this is called from.
pub(crate) fn run(task: impl FnOnce() + 'static) {
    let nested = with_tasks(|tasks| match tasks {
        Some(tasks) => {
            tasks.push_back(Box::new(task));
            None
        }
        None => {
            *tasks = Some(VecDeque::new());
            Some(task)
        }
    });
    let Some(task) = nested else { return };
    let _end = End;
    task();
    while let Some(task) = with_tasks(|tasks| tasks.as_mut().and_then(VecDeque::pop_front)) {
        task();
    }
}

/// Also where a task panics, the thread's next one begins afresh.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        let left = with_tasks(Option::take);
        drop(left); // outside of the borrow: what is dropped may want to run something
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_hundred_thousand_tasks_that_start_each_other_are_run_in_turn() {
        fn step(count: Rc<Cell<u32>>) {
            count.set(count.get() + 1);
            if count.get() < 100_000 {
                run(move || step(count));
            }
        }
        let count = Rc::new(Cell::new(0));
        let counted = count.clone();
        run(move || step(counted));
        assert_eq!(count.get(), 100_000);
    }
}
