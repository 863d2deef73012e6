//! The loop of one connection, the same for both ends: readiness of a socket, wake-ups, and a timer.

use blobferry_cache::carry::{Carrier, Ended, Endpoint};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Drives one connection to its end. `woken` is notified whenever the endpoint has something new to send.
pub(crate) async fn drive(
    stream: &TcpStream,
    carrier: &mut Carrier<impl Endpoint + Send>,
    woken: &Notify,
) -> Ended {
    loop {
        if let Err(ended) = carrier.write(stream, |write| stream.try_io(Interest::WRITABLE, write)) {
            return ended;
        }
        let deadline = carrier.deadline().map(Instant::from_std);
        let wants_input = carrier.wants_input();
        let turn = tokio::select! {
            ready = stream.readable(), if wants_input => ready.map(|()| Turn::Read),
            ready = stream.writable(), if carrier.has_output() => ready.map(|()| Turn::Write),
            () = woken.notified() => Ok(Turn::Write),
            () = until(deadline) => Ok(Turn::Timeout),
        };
        let result = match turn {
            Ok(Turn::Read) => carrier.read(|buffer| stream.try_read(buffer)).map(drop),
            Ok(Turn::Write) => Ok(()),
            Ok(Turn::Timeout) => carrier.timeout(),
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
