//! Replays inputs on any toolchain, and writes seed inputs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blobferry_fuzz::{TARGETS, seeds::seeds};
use clap::Parser;

/// Replays inputs of a fuzz target.
#[derive(Debug, Parser)]
struct Args {
    /// The target.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS.iter().map(|(name, _)| *name)))]
    target: String,
    /// Files, or directories of files.
    #[arg(required_unless_present = "seeds")]
    inputs: Vec<PathBuf>,
    /// Writes inputs to begin with to this directory, and replays nothing.
    #[arg(long, value_name = "DIR")]
    seeds: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(done) => {
            println!("{}: {done} inputs", args.target);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<usize> {
    if let Some(dir) = &args.seeds {
        return write_seeds(&args.target, dir);
    }
    let mut done = 0;
    for input in &args.inputs {
        for path in files(input)? {
            println!("{}", path.display());
            let data = fs::read(&path)?;
            for (_, target) in TARGETS.iter().filter(|(name, _)| *name == args.target) {
                target(&data);
            }
            done += 1;
        }
    }
    Ok(done)
}

fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn write_seeds(target: &str, dir: &Path) -> io::Result<usize> {
    fs::create_dir_all(dir)?;
    let seeds = seeds(target);
    for (n, seed) in seeds.iter().enumerate() {
        fs::write(dir.join(format!("seed-{n:03}")), seed)?;
    }
    Ok(seeds.len())
}
