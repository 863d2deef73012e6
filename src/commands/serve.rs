//! `serve`: the server, until it is told to stop.

use std::io::Write;

use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::raise_descriptor_limit;
use crate::cli::{Global, ServeArgs};
use crate::failure::Failure;
use crate::output::{Output, Render};
use crate::server::Serving;

/// The line that says that the server is ready.
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
    let said = output.line(&Listening { listening: &serving.address() }).and_then(|()| output.flush());
    if said.as_ref().map_or_else(Failure::quiet, |()| true) {
        // A server whose output nobody reads serves all the same.
        stop.requested().await;
    }
    tokio::select! {
        () = serving.stop() => (),
        // Who asks twice is in a hurry. What is durable stays so.
        () = stop.requested() => (),
    }
    said
}

/// SIGTERM and SIGINT. From when it is made they do not end the process any more.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Begins to listen for the signals.
    ///
    /// # Errors
    /// [`Failure::System`].
    pub(super) fn new() -> Result<Stop, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|source| Failure::System { doing: "listening for signals".into(), source })
        };
        Ok(Stop { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits until one of them has come.
    pub(super) async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
    }
}
