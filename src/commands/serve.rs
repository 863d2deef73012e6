//! `serve`: run a server until a signal stops it.

use std::io::Write;

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::raise_descriptor_limit;
use crate::cli::{Global, ServeArgs};
use crate::failure::Failure;
use crate::output::{Output, Render};
use crate::server::Serving;

/// The line that reports that the server is ready.
#[derive(Serialize)]
struct Listening<'a> {
    listening: &'a str,
}

impl Render for Listening<'_> {
    fn plain(&self) -> String {
        format!("listening on {}", self.listening)
    }
}

/// Runs `serve`.
pub(super) async fn run<W: Write>(
    args: &ServeArgs,
    global: &Global,
    output: &mut Output<W>,
) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    raise_descriptor_limit();
    let serving = Serving::start(global.transport, &args.dir, &args.listen).await?;
    let printed = output.line(&Listening { listening: &serving.address() }).and_then(|()| output.flush());
    if printed.as_ref().map_or_else(Failure::quiet, |()| true) {
        // A closed standard output does not stop a server.
        stop.requested().await;
    }
    tokio::select! {
        () = serving.stop() => (),
        // The second signal stops at once. Committed transactions are durable.
        () = stop.requested() => (),
    }
    printed
}

/// SIGTERM and SIGINT. While it exists, they do not end the process.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Registers for the signals.
    ///
    /// # Errors
    /// [`Failure::System`].
    pub(super) fn new() -> Result<Stop, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|source| Failure::System { doing: "listening for signals".into(), source })
        };
        Ok(Stop { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits until one of the signals has arrived.
    pub(super) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
