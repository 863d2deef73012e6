//! Waiting for what happens to a file that any process may write to, without asking again and again: inotify, and a
//! event for what this process has to say.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::{read, write};

/// Something that is rung once, by any thread, and is heard from then on.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        Ok(EventFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn signal(&self) {
        // It fails where it was rung 2^64 times.
        _ = write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// Hears of names that come to a directory or leave it, and of files that grow.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Watches the names in a directory.
    pub(crate) fn new(dir: &Path) -> io::Result<Watch> {
        let watch = Watch(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        inotify::add_watch(&watch.0, dir, WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM)?;
        Ok(watch)
    }

    /// Watches the file that has this name now, if there is one, for bytes that are written to it.
    pub(crate) fn add(&self, file: &Path) {
        // Where the system has no watch left, nothing is heard of bytes: but of the end, at which all of them are read.
        _ = inotify::add_watch(&self.0, file, WatchFlags::MODIFY | WatchFlags::DONT_FOLLOW);
    }

    /// Forgets what was heard: whoever calls this looks for himself after that.
    pub(crate) fn clear(&self) {
        let mut heard = [0; 4096];
        while read(&self.0, &mut heard).is_ok_and(|n| n > 0) {}
    }
}

/// Waits until the event was rung, or something was heard.
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

/// Whoever rings or writes may be a simulated thread, which a system call that blocks would stop, too.
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
