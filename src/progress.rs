//! Progress of transfers: one bar on standard error if that is a terminal, nothing otherwise.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blobferry_session::io::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One bar for everything that a command transfers. Dropping it clears it from the screen.
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// Creates a bar for `bytes` in total. `doing` is its label.
    pub(crate) fn new(doing: &'static str, bytes: u64) -> Bar {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(doing);
        let form = "{msg} [{wide_bar:.cyan}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar { bar }
    }

    /// Sets the position of the whole bar, for work that has no parts.
    pub(crate) fn at(&self, progress: Progress) {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }

    /// Adds a transfer of `size` bytes.
    pub(crate) fn part(&self, size: u64) -> Part {
        Part { bar: self.bar.clone(), size, done: Arc::default() }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One transfer of a [`Bar`].
#[derive(Clone)]
pub(crate) struct Part {
    bar: ProgressBar,
    size: u64,
    done: Arc<AtomicU64>,
}

impl Part {
    /// Sets the number of transferred bytes. It goes back when a transfer starts again.
    pub(crate) fn reached(&self, done: u64) {
        let before = self.done.swap(done, Ordering::Relaxed);
        match done.checked_sub(before) {
            Some(more) => self.bar.inc(more),
            None => self.bar.dec(before - done),
        }
    }

    /// Marks the transfer as complete, even if nothing had to be transferred.
    pub(crate) fn complete(&self) {
        self.reached(self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_shows_the_sum_of_its_parts() {
        let bar = Bar::new("testing", 30);
        let (first, second) = (bar.part(10), bar.part(20));
        first.reached(4);
        second.reached(15);
        first.reached(7);
        assert_eq!(bar.bar.position(), 22);
        second.reached(0);
        assert_eq!(bar.bar.position(), 7, "it begins again");
        first.complete();
        second.complete();
        assert_eq!(bar.bar.position(), 30);
    }
}
