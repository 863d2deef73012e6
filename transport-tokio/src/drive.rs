//! The loop of one connection, the same for both ends: readiness of a socket, wake-ups, and a timer.

use blobferry_cache::carry::{Clock, Ended, Endpoint, Input, Output};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Drives one connection to its end. `woken` is notified whenever the endpoint has something new to send.
pub(crate) async fn drive(
    stream: &TcpStream,
    clock: Clock,
    endpoint: &mut (impl Endpoint + Send),
    woken: &Notify,
) -> Ended {
    let (mut output, mut input) = (Output::default(), Input::default());
    loop {
        if let Err(ended) = output.write(endpoint, clock.now(), |bytes| stream.try_write(bytes)) {
            return ended;
        }
        if output.is_empty() && endpoint.is_finished() {
            return Ended::Finished;
        }
        let timeout = endpoint.poll_timeout().map(|time| Instant::from_std(clock.instant(time)));
        let wants_input = endpoint.wants_input();
        let turn = tokio::select! {
            ready = stream.readable(), if wants_input => ready.map(|()| Turn::Read),
            ready = stream.writable(), if !output.is_empty() => ready.map(|()| Turn::Write),
            () = woken.notified() => Ok(Turn::Write),
            () = until(timeout) => Ok(Turn::Timeout),
        };
        let result = match turn {
            Ok(Turn::Read) => input.read(endpoint, clock.now(), |buffer| stream.try_read(buffer)).map(drop),
            Ok(Turn::Write) => Ok(()),
            Ok(Turn::Timeout) => {
                input.release();
                endpoint.handle_timeout(clock.now()).map_err(Ended::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(ended) = result {
            return ended;
        }
    }
}

enum Turn {
    Read,
    Write,
    Timeout,
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
