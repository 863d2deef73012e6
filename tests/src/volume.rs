//! A file system in a file, whose power can be cut: the kernel shuts it down, and what was not
//! synced is lost.

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

/// The file systems whose power can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl Kind {
    /// Checks that such a file system can be made and shut down here.
    ///
    /// # Errors
    /// [`Failure::Unable`] if it cannot.
    pub fn possible(self) -> Result<(), Failure> {
        needs(&format!("mkfs.{self}"))?;
        needs("perl")
    }

    /// Returns the size in bytes; XFS requires this much. The file is sparse.
    const fn size(self) -> u64 {
        match self {
            Kind::Ext4 => 96 << 20,
            Kind::Xfs => 320 << 20,
        }
    }

    /// Returns the mount options to try. Each loses other data; most is torn if ext4 writes data
    /// later than names.
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
            .ok_or_else(|| format!("{text} cannot be shut down, or is not known here: ext4 and xfs can"))
    }
}

/// A mounted file system in a file. Dropping it unmounts and removes it.
#[derive(Debug)]
pub(crate) struct Volume {
    image: NamedTempFile,
    at: PathBuf,
    options: &'static str,
}

impl Volume {
    /// Makes a file system in a directory. `variant` selects the mount options.
    pub(crate) fn make(dir: &Path, kind: Kind, variant: usize) -> Result<Volume, Problem> {
        let at = dir.join("volume");
        // A new file each time: the kernel may still use the last one.
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

    /// Unmounts the file system. All processes that had files open there are dead, but the kernel
    /// may need a moment to close the files.
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
        // This fails if it is not mounted, which is fine.
        _ = run("umount", &["--lazy", &self.at.to_string_lossy()]);
    }
}

/// What is written of the journal when the power is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Journal {
    /// All of it, but not the data of files: names and lengths without contents.
    Written = 1,
    /// Only what was written before.
    Lost = 2,
}

/// A helper process that cuts the power of a volume. The `ioctl` needs `unsafe` in Rust, so the
/// helper is a Perl script.
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
        // Perl writes one line at a time, so this buffer never takes a part of the next line.
        BufReader::new(stdout).read_line(&mut line).context("could not read from perl")?;
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
