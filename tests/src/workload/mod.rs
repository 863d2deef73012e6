//! What a child process does with a store and a cache while faults are injected.
//!
//! The process states all that it does, see [`Statement`]. A script does the same in each run;
//! traffic continues until the end.

mod committer;
mod reader;
mod script;
mod traffic;

use std::io;
use std::path::{Path, PathBuf};

use blobferry_platform::sync::Mutex;
use blobferry_protocol::RequestError;
use blobferry_store::{Done, StoreConfig};
use rustix::net::{RecvFlags, SendFlags};

use crate::ledger::Statement;

pub(crate) use self::committer::{Committer, Op};
pub(crate) use self::reader::{fetch, read_blob};
pub(crate) use self::script::prepare;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Many transactions and downloads at once, until the end.
    Traffic,
    /// Each thing that a server does, once.
    Server,
    /// The same, without closing the store: so it has to be recovered.
    Crash,
    /// Opens a store that was not closed.
    Recovery,
    /// Forgets old revisions.
    Pack,
    /// Each thing that a downloading client does, once.
    Client,
}

impl Role {
    /// The roles that do the same in each run.
    pub const SCRIPTS: [Role; 4] = [Role::Server, Role::Recovery, Role::Pack, Role::Client];

    /// Returns the name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Role::Traffic => "traffic",
            Role::Server => "server",
            Role::Crash => "crash",
            Role::Recovery => "recovery",
            Role::Pack => "pack",
            Role::Client => "client",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        let all = [Role::Traffic, Role::Crash].into_iter().chain(Role::SCRIPTS);
        all.clone().find(|role| role.name() == text).ok_or_else(|| {
            let names: Vec<_> = all.map(Role::name).collect();
            format!("the roles are {}", names.join(", "))
        })
    }
}

/// Receives the statements of a process.
pub(crate) type Emit<'a> = &'a (dyn Fn(Statement) + Sync);

/// Returns the path of the store in a directory.
#[must_use]
pub fn server(dir: &Path) -> PathBuf {
    dir.join("server")
}

/// Returns the path of the cache in a directory.
#[must_use]
pub fn cache(dir: &Path) -> PathBuf {
    dir.join("cache")
}

/// Returns the store's configuration: even small blobs are files, so that there can be many.
#[must_use]
pub fn config() -> StoreConfig {
    StoreConfig { inline_max: 4096, ..StoreConfig::default() }
}

/// Plays a role in a directory. Statements go to the standard output; a line on the standard input
/// ends a pause. Both are sockets.
pub fn play(role: Role, dir: &Path, seed: u64) {
    std::panic::set_hook(Box::new(|panic| write_statement(Statement::Violation { what: panic.to_string() })));
    match role {
        Role::Traffic => traffic::run(dir, seed, &write_statement),
        Role::Server => script::serve(dir, true, &write_statement),
        Role::Crash => script::serve(dir, false, &write_statement),
        Role::Recovery => script::recover(dir, &write_statement),
        Role::Pack => script::pack(dir, &write_statement),
        Role::Client => script::download(dir, &write_statement),
    }
    write_statement(Statement::Done);
}

/// Writes a statement as one line, even if several threads write.
fn write_statement(statement: Statement) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let Ok(mut line) = serde_json::to_vec(&statement) else { return };
    line.push(b'\n');
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        // If the parent is gone, the statement is dropped.
        let Ok(sent) = rustix::net::send(io::stdout(), rest, SendFlags::NOSIGNAL) else { return };
        rest = rest.get(sent..).unwrap_or_default();
    }
}

/// Waits for a line from the parent.
fn wait() {
    // If the parent is gone, this returns at once.
    _ = rustix::net::recv(io::stdin(), &mut [0; 64], RecvFlags::empty());
}

/// States that the process pauses, and waits for the parent.
fn pause(emit: Emit<'_>) {
    emit(Statement::Waits);
    wait();
}

/// Makes a call to a store, and waits for its answer.
pub(crate) fn wait_for<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    let (answer, answers) = std::sync::mpsc::channel();
    call(Box::new(move |result| _ = answer.send(result)));
    answers.recv().unwrap_or(Err(RequestError::Stopping))
}
