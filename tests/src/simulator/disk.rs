//! The simulated disks: real files in memory, whose steps fail on demand.
//!
//! The simulator knows what a power cut may lose. Any part of the bytes that were written and not
//! synced may be lost; an overwritten page may have its old bytes. A name may have its old meaning
//! if its directory was not synced since the change. SQLite syncs its database at every commit, so
//! the database is not simulated.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use blobferry_platform::os::files::Step;
use blobferry_protocol::{BlobId, Oid, Tid};
use fastrand::Rng;

use super::world::{Machine, Pid};

/// The error numbers of "no space left on device" and "input/output error".
const NO_SPACE: i32 = 28;
const BROKEN: i32 = 5;
/// The unit of loss, in bytes.
const PAGE: u64 = 4096;

/// How a machine's disk behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Health {
    #[default]
    Healthy,
    /// Every write fails.
    Full,
    /// The next sync fails.
    Failing,
}

/// The steps that a countdown counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// Every step with files.
    Steps,
    /// Writes to files.
    Writes,
    /// Writes to partial downloads.
    Downloads,
}

impl Counted {
    fn counts(self, step: Step<'_>) -> bool {
        match step {
            _ if self == Counted::Steps => true,
            Step::Write { file, .. } if self == Counted::Downloads => {
                path_of(file).is_ok_and(|path| path.extension().is_some_and(|extension| extension == "part"))
            }
            Step::Write { .. } | Step::Overwrite { .. } => self == Counted::Writes,
            _ => false,
        }
    }
}

#[derive(Default)]
struct Condition {
    health: Health,
    /// The number of steps left until the process that takes the next one is killed in the middle
    /// of it.
    countdown: Option<(Counted, u32)>,
    /// The longest additional delay of anything on this machine.
    slow: Duration,
    boots: u64,
}

/// A file with bytes that are not synced.
struct Unsynced {
    machine: Machine,
    file: File,
    /// The number of bytes at its beginning that were safe before.
    safe: u64,
}

/// A page that was overwritten, and is not synced.
struct Overwritten {
    machine: Machine,
    file: File,
    before: Vec<u8>,
}

/// A change of names that is not synced.
enum Renamed {
    Given { from: PathBuf, to: PathBuf },
    Taken { path: PathBuf, saved: PathBuf },
}

pub(super) struct Disk {
    root: PathBuf,
    rng: Rng,
    conditions: BTreeMap<Machine, Condition>,
    unsynced: BTreeMap<u64, Unsynced>,
    /// By inode and number of the page.
    overwritten: BTreeMap<(u64, u64), Overwritten>,
    names: Vec<(Machine, Renamed)>,
    saved: u64,
    /// Blobs that were downloaded, and still exist.
    downloaded: BTreeSet<PathBuf>,
    /// Small blobs that were downloaded and are still indexed, with the directory of their
    /// segments.
    packed: BTreeSet<(PathBuf, BlobId)>,
    /// The first rule that was broken.
    broken: Option<String>,
}

impl Disk {
    /// Creates the disks of all machines below `root`.
    pub(super) fn new(root: &Path, rng: Rng) -> io::Result<Disk> {
        fs::create_dir_all(root.join("saved"))?;
        Ok(Disk {
            root: root.to_owned(),
            rng,
            conditions: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            overwritten: BTreeMap::new(),
            names: Vec::new(),
            saved: 0,
            downloaded: BTreeSet::new(),
            packed: BTreeSet::new(),
            broken: None,
        })
    }

    /// Returns a machine's directory.
    pub(super) fn path(&self, machine: Machine) -> PathBuf {
        self.root.join(machine.to_string())
    }

    pub(super) fn boots(&self, machine: Machine) -> u64 {
        self.conditions.get(&machine).map_or(0, |condition| condition.boots)
    }

    pub(super) fn set_health(&mut self, machine: Machine, health: Health) {
        self.conditions.entry(machine).or_default().health = health;
    }

    /// Ends all faults of a machine's disk.
    pub(super) fn heal(&mut self, machine: Machine) {
        let condition = self.conditions.entry(machine).or_default();
        (condition.health, condition.countdown, condition.slow) = (Health::Healthy, None, Duration::ZERO);
    }

    /// Sets the longest additional delay of anything on a machine.
    pub(super) fn slow_down(&mut self, machine: Machine, by: Duration) {
        self.conditions.entry(machine).or_default().slow = by;
    }

    /// Returns the longest additional delay of anything on a machine.
    pub(super) fn slowness(&self, machine: Machine) -> Duration {
        self.conditions.get(&machine).map_or(Duration::ZERO, |condition| condition.slow)
    }

    /// Kills the process that takes the step after the next `steps` ones on a machine.
    pub(super) fn start_countdown(&mut self, machine: Machine, steps: u32, by: Counted) {
        self.conditions.entry(machine).or_default().countdown = Some((by, steps));
    }

    /// Takes the first rule that was broken.
    pub(super) fn take_broken(&mut self) -> Option<String> {
        self.broken.take()
    }

    /// Counts a step. Returns whether the machine's countdown has ended, so that the process is
    /// killed.
    pub(super) fn countdown_ends(&mut self, machine: Machine, step: Step<'_>) -> bool {
        let condition = self.conditions.entry(machine).or_default();
        match &mut condition.countdown {
            Some((by, _)) if !by.counts(step) => false,
            None => false,
            Some((_, 0)) => {
                condition.countdown = None;
                true
            }
            Some((_, steps)) => {
                *steps -= 1;
                false
            }
        }
    }

    /// Takes a step, or fails. Returns the number of bytes written.
    pub(super) fn step(&mut self, machine: Machine, pid: Pid, step: Step<'_>) -> io::Result<usize> {
        let condition = self.conditions.entry(machine).or_default();
        match (condition.health, step) {
            (Health::Full, Step::Write { .. } | Step::Overwrite { .. }) => {
                return Err(io::Error::from_raw_os_error(NO_SPACE));
            }
            (Health::Failing, Step::Sync(_) | Step::SyncNames(_)) => {
                condition.health = Health::Healthy;
                return Err(io::Error::from_raw_os_error(BROKEN));
            }
            _ => {}
        }
        match step {
            Step::Write { file, len } => self.write(machine, pid, file, len),
            Step::Overwrite { file, at, bytes } => {
                self.overwrite(machine, pid, file, at, bytes)?;
                Ok(bytes.len())
            }
            Step::Sync(file) => {
                self.unsynced.remove(&file.metadata()?.ino());
                Ok(0)
            }
            Step::SyncNames(directory) => {
                self.names.retain(|(_, change)| match change {
                    Renamed::Given { to: path, .. } | Renamed::Taken { path, .. } => {
                        path.parent() != Some(directory)
                    }
                });
                Ok(0)
            }
            Step::Rename { from, to } => {
                self.published(pid, from, to);
                self.names.push((machine, Renamed::Given { from: from.to_owned(), to: to.to_owned() }));
                Ok(0)
            }
            Step::Remove(path) => {
                self.saved += 1;
                let saved = self.root.join("saved").join(self.saved.to_string());
                // A file that does not exist cannot be removed, and cannot come back.
                if fs::hard_link(path, &saved).is_ok() {
                    self.names.push((machine, Renamed::Taken { path: path.to_owned(), saved }));
                }
                self.downloaded.remove(path);
                Ok(0)
            }
        }
    }

    fn write(&mut self, machine: Machine, pid: Pid, file: &File, len: usize) -> io::Result<usize> {
        let metadata = file.metadata()?;
        let path = path_of(file)?;
        if let Entry::Vacant(entry) = self.unsynced.entry(metadata.ino()) {
            // The file is opened again: a copy of the descriptor would keep the file's lock.
            let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            entry.insert(Unsynced { machine, file, safe: metadata.len() });
        }
        if path.to_string_lossy().ends_with(".part (deleted)") {
            self.break_rule(format!(
                "{pid} fills a partial file that another process has removed: {}",
                path.display()
            ));
        }
        // A write takes all bytes, or only some.
        Ok(if len > 1 && self.rng.u8(..) < 24 { self.rng.usize(1..len) } else { len })
    }

    /// Records that an index slot was overwritten: a small blob was downloaded, in the place of
    /// another.
    fn overwrite(&mut self, machine: Machine, pid: Pid, file: &File, at: u64, slot: &[u8]) -> io::Result<()> {
        let (page, inode) = (at / PAGE, file.metadata()?.ino());
        if let Entry::Vacant(entry) = self.overwritten.entry((inode, page)) {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let mut before = vec![0; PAGE as usize];
            file.read_exact_at(&mut before, page * PAGE)?;
            entry.insert(Overwritten { machine, file, before });
        }
        let segments = path_of(file)?.parent().map(Path::to_owned).unwrap_or_default();
        let mut old = vec![0; slot.len()];
        file.read_exact_at(&mut old, at)?;
        if let Some(forgotten) = packed_at(&segments, &old) {
            self.packed.remove(&(segments.clone(), forgotten));
        }
        if let Some(blob) = packed_at(&segments, slot)
            && !self.packed.insert((segments, blob))
        {
            self.break_rule(format!("{pid} downloaded small blob {blob}, that was there already"));
        }
        Ok(())
    }

    /// Records that a downloaded blob was given its name.
    fn published(&mut self, pid: Pid, from: &Path, to: &Path) {
        if from.extension().is_none_or(|extension| extension != "part") {
            return;
        }
        if !self.downloaded.insert(to.to_owned()) {
            self.break_rule(format!("{pid} downloaded a blob that was there already: {}", to.display()));
        }
    }

    fn break_rule(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    /// Saves the names and databases of a machine: what a process leaves that is killed now.
    pub(super) fn snapshot(&self, machine: Machine) -> io::Result<Snapshot> {
        let (below, snapshot_dir) = (self.path(machine), self.root.join("saved").join("album"));
        let mut snapshot = Snapshot { files: Vec::new(), snapshot_dir };
        let _ = fs::remove_dir_all(&snapshot.snapshot_dir);
        fs::create_dir_all(&snapshot.snapshot_dir)?;
        snapshot.take(&below)?;
        Ok(snapshot)
    }

    /// Cuts a machine's power: some of what is not synced is lost. Returns the numbers of torn
    /// files and undone names.
    pub(super) fn cut_power(&mut self, machine: Machine) -> io::Result<(usize, usize)> {
        let condition = self.conditions.entry(machine).or_default();
        condition.boots += 1;
        (condition.health, condition.countdown) = (Health::Healthy, None);
        let (mut torn, mut undone) = (0, 0);
        let inodes: Vec<u64> = self.unsynced.keys().copied().collect();
        for inode in inodes {
            if let Some(lost) = self.unsynced.remove(&inode) {
                if lost.machine == machine {
                    torn += usize::from(self.tear(&lost)?);
                } else {
                    self.unsynced.insert(inode, lost);
                }
            }
        }
        for ((inode, page), lost) in std::mem::take(&mut self.overwritten) {
            if lost.machine != machine {
                self.overwritten.insert((inode, page), lost);
            } else if self.rng.bool() {
                lost.file.write_all_at(&lost.before, page * PAGE)?;
                torn += 1;
            }
        }
        let mut kept = Vec::new();
        for (of, change) in std::mem::take(&mut self.names).into_iter().rev() {
            if of != machine {
                kept.push((of, change));
            } else if self.rng.bool() {
                undone += usize::from(undo(&change));
            }
        }
        self.names = kept.into_iter().rev().collect();
        let below = self.path(machine);
        self.downloaded.retain(|path| !path.starts_with(&below));
        self.packed.retain(|(segments, _)| !segments.starts_with(&below));
        Ok((torn, undone))
    }

    /// Loses some of the bytes that are not safe: the file becomes shorter, or has zeros in their
    /// place.
    fn tear(&mut self, lost: &Unsynced) -> io::Result<bool> {
        let metadata = lost.file.metadata()?;
        let len = metadata.len();
        if len <= lost.safe {
            return Ok(false);
        }
        let path = format!("/proc/self/fd/{}", lost.file.as_raw_fd());
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let file = OpenOptions::new().write(true).open(&path)?;
        let torn = match self.rng.u8(..4) {
            0 => false,
            1 => {
                file.set_len(self.rng.u64(lost.safe..len))?;
                true
            }
            _ => {
                let mut torn = false;
                let mut at = lost.safe;
                while at < len {
                    let end = (at / PAGE + 1).saturating_mul(PAGE).min(len);
                    if self.rng.bool() {
                        file.write_all_at(&vec![0; (end - at) as usize], at)?;
                        torn = true;
                    }
                    at = end;
                }
                torn
            }
        };
        fs::set_permissions(&path, metadata.permissions())?;
        Ok(torn)
    }
}

fn undo(change: &Renamed) -> bool {
    match change {
        Renamed::Given { from, to } => fs::rename(to, from).is_ok(),
        Renamed::Taken { path, saved } => fs::rename(saved, path).is_ok(),
    }
}

/// Returns the blob that an index slot leads to. A slot names a segment, and the offset of a
/// record.
fn packed_at(segments: &Path, slot: &[u8]) -> Option<BlobId> {
    let number = |at: usize| Some(u32::from_le_bytes(*slot.get(at..)?.first_chunk()?));
    let pack = File::open(segments.join(format!("{:08x}.pack", number(4)?))).ok()?;
    let mut head = [0; 24];
    pack.read_exact_at(&mut head, number(8)?.into()).ok()?;
    let id = |at: usize| Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let is_record = head.starts_with(b"blob-001");
    is_record.then_some(BlobId { oid: Oid(id(8)?), tid: Tid(id(16)?) })
}

fn path_of(file: &File) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// See [`Disk::snapshot`].
pub(super) struct Snapshot {
    files: Vec<(PathBuf, PathBuf, bool)>,
    snapshot_dir: PathBuf,
}

impl Snapshot {
    fn take(&mut self, directory: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(_) => return Ok(()), // nothing is there yet
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.take(&path)?;
                continue;
            }
            let saved = self.snapshot_dir.join(self.files.len().to_string());
            // Closing a database changes it; other files can only lose their names.
            let is_database = entry.file_name().to_string_lossy().starts_with("store.sqlite");
            match is_database {
                true => _ = fs::copy(&path, &saved)?,
                false => fs::hard_link(&path, &saved)?,
            }
            self.files.push((path, saved, is_database));
        }
        Ok(())
    }

    /// Restores the names and databases of the snapshot.
    pub(super) fn restore(self) -> io::Result<()> {
        for (path, saved, is_database) in &self.files {
            if *is_database {
                fs::rename(saved, path)?;
            } else if !path.exists() {
                if let Some(directory) = path.parent() {
                    fs::create_dir_all(directory)?;
                }
                fs::hard_link(saved, path)?;
            }
        }
        fs::remove_dir_all(&self.snapshot_dir)
    }
}
