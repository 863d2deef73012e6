//! A trampoline: runs tasks that start each other, one after the other, without nesting.
//!
//! A claim that comes to lead its blob may give it up at once, because its caller has gone. Then
//! the next claim leads, and so on. A thousand of those must not be a thousand calls deep.

use std::cell::RefCell;
use std::collections::VecDeque;

use blobferry_platform::sync::thread_local;

type Task = Box<dyn FnOnce()>;

thread_local! {
    /// The queued tasks of this thread; `None` while no task runs.
    static TASKS: RefCell<Option<VecDeque<Task>>> = const { RefCell::new(None) };
}

fn with_tasks<T>(change: impl FnOnce(&mut Option<VecDeque<Task>>) -> T) -> T {
    TASKS.with(|tasks| change(&mut tasks.borrow_mut()))
}

/// Runs a task: at once, or after the task that calls this.
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

/// Ends the run, also if a task panics.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        let left = with_tasks(Option::take);
        drop(left); // after the borrow: dropping a task may run another
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn tasks_that_start_each_other_do_not_nest() {
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
