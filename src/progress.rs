//! Progress of transfers: one bar on standard error where that is a terminal, nothing otherwise.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blobferry_session::io::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One bar for everything that a command transfers. Gone from the screen when it is dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar for `bytes` in all, that says what is done with them.
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

    /// All of it is so far, where that is not known by its parts.
    pub(crate) fn at(&self, progress: Progress) {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }

    /// One of the transfers.
    pub(crate) fn part(&self, size: u64) -> Part {
        Part { bar: self.bar.clone(), size, done: Arc::default() }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One transfer's share of a [`Bar`].
#[derive(Clone)]
pub(crate) struct Part {
    bar: ProgressBar,
    size: u64,
    done: Arc<AtomicU64>,
}

impl Part {
    /// So many bytes of this transfer are done. Fewer than before are told when a transfer begins again.
    pub(crate) fn reached(&self, done: u64) {
        let before = self.done.swap(done, Ordering::Relaxed);
        match done.checked_sub(before) {
            Some(more) => self.bar.inc(more),
            None => self.bar.dec(before - done),
        }
    }

    /// All of it is done, also where nothing had to be transferred.
    pub(crate) fn complete(&self) {
        self.reached(self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_the_sum_of_its_parts() {
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
