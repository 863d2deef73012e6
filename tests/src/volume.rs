//! A file system in a file, whose power can be cut: it is shut down as it is, and what was not synced is lost.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::failure::{Context, Failure, Problem, ensure};
use crate::mount_namespace::{needs, run};

/// Kinds of file systems whose power can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Kind {
    /// Whether such a file system can be made, and its power be cut, here.
    ///
    /// # Errors
    /// [`Failure::Unable`] where it can not.
    pub fn possible(self) -> Result<(), Failure> {
        needs(&format!("mkfs.{self}"))?;
        needs("perl")
    }

    /// XFS wants to be at least so large. Nothing takes room before it is used.
    const fn size(self) -> u64 {
        match self {
            Kind::Ext4 => 96 << 20,
            Kind::Xfs => 320 << 20,
        }
    }

    /// Ways to mount it: each loses other things. Where ext4 writes data later than names, most is torn.
    const fn options(self) -> &'static [&'static str] {
        match self {
            Kind::Ext4 => &["loop", "loop,nodelalloc,data=writeback", "loop,data=writeback"],
            Kind::Xfs => &["loop"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        [Kind::Ext4, Kind::Xfs]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| format!("{text} can not be shut down, or is not known here: ext4 and xfs can"))
    }
}

/// A file system in a file, mounted. Dropped, it is unmounted, and gone.
#[derive(Debug)]
pub(crate) struct Volume {
    image: NamedTempFile,
    at: PathBuf,
    options: &'static str,
}

impl Volume {
    /// Makes one in a directory. `variant` chooses how it is mounted.
    pub(crate) fn make(dir: &Path, kind: Kind, variant: usize) -> Result<Volume, Problem> {
        let at = dir.join("volume");
        // Another file each time: the kernel may still be at work on the last one.
        let image = NamedTempFile::new_in(dir).context("could not make a file for a file system")?;
        image.as_file().set_len(kind.size()).context("could not make a file for a file system")?;
        std::fs::create_dir_all(&at).context("could not make a directory to mount at")?;
        run(&format!("mkfs.{kind}"), &["-q", &image.path().to_string_lossy()])?;
        let options = kind.options().get(variant % kind.options().len()).copied().unwrap_or("loop");
        let volume = Volume { image, at, options };
        volume.mount()?;
        Ok(volume)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    pub(crate) fn mount(&self) -> Result<(), Problem> {
        run("mount", &["-o", self.options, &self.image.path().to_string_lossy(), &self.at.to_string_lossy()])
    }

    /// Whoever had files open there is dead; it may take the kernel a moment to bury them.
    pub(crate) fn unmount(&self) -> Result<(), Problem> {
        let unmount = || run("umount", &[&self.at.to_string_lossy()]);
        for _ in 0..500 {
            match unmount() {
                Err(wrong) if wrong.0.contains("busy") => thread::sleep(Duration::from_millis(10)),
                done => return done,
            }
        }
        unmount()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Where it is not mounted just now, there is nothing to do.
        _ = run("umount", &["--lazy", &self.at.to_string_lossy()]);
    }
}

/// What is written of the journal when the power is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Journal {
    /// All of it, but not the data of files: names, and lengths, without what they stand for.
    Written = 1,
    /// Only what was written before.
    Lost = 2,
}

/// Who stands ready to cut the power of a volume. Programs in Rust without `unsafe` can not say it to the kernel.
pub(crate) struct Cutter(Child);

const CUT: &str = r#"
$| = 1;
open(my $volume, "<", $ARGV[0]) or die "open: $!";
print "ready\n";
<STDIN>;
ioctl($volume, 0x8004587d, pack("I", $ARGV[1])) or die "ioctl: $!";
print "cut\n";
"#;

impl Cutter {
    pub(crate) fn start(volume: &Volume, journal: Journal) -> Result<Cutter, Problem> {
        let mut perl = Command::new("perl");
        perl.args(["-e", CUT]).arg(volume.path()).arg((journal as u8).to_string());
        let perl = perl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut cutter = Cutter(perl.context("could not start perl")?);
        ensure!(cutter.read_line()? == "ready\n", "perl could not open the volume: {}", cutter.stderr());
        Ok(cutter)
    }

    pub(crate) fn cut(mut self) -> Result<(), Problem> {
        let stdin = self.0.stdin.as_mut().context("perl has no input")?;
        stdin.write_all(b"\n").context("could not signal perl to cut the power")?;
        ensure!(self.read_line()? == "cut\n", "the power could not be cut: {}", self.stderr());
        Ok(())
    }

    fn read_line(&mut self) -> Result<String, Problem> {
        let mut line = String::new();
        let stdout = self.0.stdout.as_mut().context("perl has no output")?;
        // It says one line at a time: nothing of the next is read ahead.
        BufReader::new(stdout).read_line(&mut line).context("could not hear perl")?;
        Ok(line)
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.0.stderr {
            _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
