//! What is done to a store and a cache while something happens to them: in a process of its own, which can be killed.
//!
//! It says all that it does, see [`Statement`], and its parent believes it. A script does the same each time; traffic goes on
//! until the end.

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
    /// The same, but for closing the store: so it is left to be recovered.
    Crash,
    /// Opening a store that was not closed.
    Recovery,
    /// Forgetting old revisions.
    Pack,
    /// Each thing that a downloading client does, once.
    Client,
}

impl Role {
    /// Those that do the same each time.
    pub const SCRIPTS: [Role; 4] = [Role::Server, Role::Recovery, Role::Pack, Role::Client];

    /// What it is called on a command line.
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

/// Who is told what happens.
pub(crate) type Emit<'a> = &'a (dyn Fn(Statement) + Sync);

/// Where the store is in a directory.
#[must_use]
pub fn server(dir: &Path) -> PathBuf {
    dir.join("server")
}

/// Where the cache is in a directory.
#[must_use]
pub fn cache(dir: &Path) -> PathBuf {
    dir.join("cache")
}

/// How stores are opened: with blobs in files that are small, so that there can be many of them.
#[must_use]
pub fn config() -> StoreConfig {
    StoreConfig { inline_max: 4096, ..StoreConfig::default() }
}

/// Plays a role in a directory, and says on the standard output what happens. Who has asked for it says on the standard
/// input when it may go on. Both are sockets.
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

/// Says something: a line is there as a whole, whoever else speaks.
fn write_statement(statement: Statement) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let Ok(mut line) = serde_json::to_vec(&statement) else { return };
    line.push(b'\n');
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        // Nobody may listen any more: then nobody cares.
        let Ok(sent) = rustix::net::send(io::stdout(), rest, SendFlags::NOSIGNAL) else { return };
        rest = rest.get(sent..).unwrap_or_default();
    }
}

/// Waits for a word from the parent.
fn wait() {
    // One that is gone will not write_statement anything.
    _ = rustix::net::recv(io::stdin(), &mut [0; 64], RecvFlags::empty());
}

/// Says that it waits for a word, and waits.
fn pause(emit: Emit<'_>) {
    emit(Statement::Waits);
    wait();
}

/// Asks a store, and waits for its answer.
pub(crate) fn wait_for<T: Send + 'static>(call: impl FnOnce(Done<T>)) -> Result<T, RequestError> {
    let (answer, answers) = std::sync::mpsc::channel();
    call(Box::new(move |result| _ = answer.send(result)));
    answers.recv().unwrap_or(Err(RequestError::Stopping))
}
