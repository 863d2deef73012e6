//! Waiting for changes of a file that any process may write to: inotify, and an eventfd for this
//! process's signals.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{read, write};

/// An event that any thread signals once, and that stays signalled.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        Ok(EventFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn signal(&self) {
        // It would fail after 2^64 signals.
        _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// Watches names that come to a directory or leave it, and files that grow.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Watches the names in a directory.
    pub(crate) fn new(dir: &Path) -> io::Result<Watch> {
        let watch = Watch(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        inotify::add_watch(&watch.0, dir, WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM)?;
        Ok(watch)
    }

    /// Watches the file that has this name now, if there is one, for writes.
    pub(crate) fn add(&self, file: &Path) {
        // If the system has no watch left, writes are not reported. The end of the download is, and
        // all bytes are read then.
        _ = inotify::add_watch(&self.0, file, WatchFlags::MODIFY | WatchFlags::DONT_FOLLOW);
    }

    /// Discards the pending reports. The caller checks the files afterwards.
    pub(crate) fn clear(&self) {
        let mut reports = [0; 4096];
        while read(&self.0, &mut reports).is_ok_and(|n| n > 0) {}
    }
}

/// Waits until the event is signalled, or the watch reports a change.
pub(crate) fn wait(event: &EventFd, watch: Option<&Watch>) -> io::Result<()> {
    let fds = [Some(&event.0), watch.map(|watch| &watch.0)];
    let mut fds: Vec<PollFd<'_>> =
        fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    wait_for(&mut fds)
}

#[cfg(not(feature = "shuttle"))]
fn wait_for(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    loop {
        match poll(fds, None).map_err(io::Error::from) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            waited => return waited.map(drop),
        }
    }
}

/// The thread that signals or writes may be a simulated one, which a blocking system call would
/// stop as well.
#[cfg(feature = "shuttle")]
fn wait_for(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    blobferry_platform::sync::until(|| {
        match poll(fds, Some(&rustix::fs::Timespec::default())).map_err(io::Error::from) {
            Ok(0) => None,
            Err(error) if error.kind() == ErrorKind::Interrupted => None,
            waited => Some(waited.map(drop)),
        }
    })
}
