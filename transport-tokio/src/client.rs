//! The client: a session with one connection after the other, shared by any number of tasks.

use blobferry_platform::sync::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use blobferry_cache::Cache;
use blobferry_session::client::{
    Addresses, CallError, ClientConfig, Completion, ConnectError, Handler, Session,
};
use blobferry_session::io::{CloseReason, ConnectionIo};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::driver::drive;
use crate::notifications::{ConnectionEvents, Invalidations, Notifications};
use crate::transaction::Transaction;
use crate::wakeup::TaskWaker;

/// A connection to a server, and a cache. Clones share both, and may be used by any number of tasks at once.
///
/// A connection that is lost is made again, and what was under way goes on: see
/// [`Reconnect`](blobferry_session::client::Reconnect).
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    driver: Mutex<Option<JoinHandle<()>>>,
    bell: Arc<TaskWaker>,
}

impl Client {
    /// Connects to the first of the addresses where a server answers, and returns when the handshake is done.
    ///
    /// # Errors
    /// Nobody is there, or it is not a server that speaks to us: what the last of the addresses had to say.
    pub async fn connect(
        addresses: impl Into<Addresses>,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let addresses = addresses.into();
        let mut failed = ConnectError::no_address();
        for (place, address) in addresses.iter().enumerate() {
            let session = Session::new(cache.clone(), &config, addresses.clone(), place);
            match Client::start(session, address, config.connection.handshake_timeout).await {
                Ok(client) => return Ok(client),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn start(session: Session, address: &str, patience: Duration) -> Result<Client, ConnectError> {
        let failed = |source| ConnectError::Connect { address: address.to_owned(), source };
        let stream = call(address, patience).await.map_err(failed)?;
        let bell = Arc::new(TaskWaker::default());
        let carrier = connect(&session, &stream, &bell).map_err(failed)?;
        let running = run(stream, carrier, session.clone(), bell.clone(), patience);
        let driver = Mutex::new(Some(tokio::spawn(running)));
        let client = Client(Arc::new(Inner { session, driver, bell }));
        wait(|done| client.0.session.connected(done))
            .await
            .map_err(|source| ConnectError::Handshake { address: address.to_owned(), source })?;
        Ok(client)
    }

    blobferry_session::client_methods!(wait_on, async, await);

    /// Says goodbye, waits until what is under way has come to its end, and closes the connection. Other clones can
    /// not use it any more either.
    pub async fn close(self) {
        self.0.session.goodbye();
        self.0.bell.ring();
        let driver = self.0.driver.lock().take();
        if let Some(driver) = driver {
            // A task that has panicked has ended, too.
            let _ = driver.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without goodbye: what is under way is given up.
        self.session.close("the client was dropped");
        if let Some(driver) = self.driver.lock().take() {
            driver.abort();
        }
    }
}

/// The task of a client: drives its connection, and makes another when that is lost.
async fn run(
    mut stream: TcpStream,
    mut carrier: ConnectionIo<Handler>,
    session: Session,
    bell: Arc<TaskWaker>,
    patience: Duration,
) {
    loop {
        let ended = drive(&mut stream, &mut carrier, &bell, || session.expects_small_answer()).await;
        drop(stream);
        session.lost(&ended);
        drop(carrier);
        (stream, carrier) = loop {
            let Some(dial) = session.next_dial() else { return };
            tokio::select! {
                () = sleep(dial.pause) => {}
                // The client may have been closed.
                () = bell.rung() => continue,
            }
            let called = call(&dial.address, patience).await;
            match called.and_then(|stream| Ok((connect(&session, &stream, &bell)?, stream))) {
                Ok((carrier, stream)) => break (stream, carrier),
                Err(error) => session.lost(&CloseReason::Stream(error)),
            }
        };
    }
}

async fn call(address: &str, patience: Duration) -> io::Result<TcpStream> {
    timeout(patience, TcpStream::connect(address)).await.unwrap_or_else(|late| Err(late.into()))
}

fn connect(
    session: &Session,
    stream: &TcpStream,
    bell: &Arc<TaskWaker>,
) -> io::Result<ConnectionIo<Handler>> {
    let ring = bell.clone();
    session.connect(stream, move || ring.ring())
}

/// Turns a callback into a future: for calls to a [`Session`], whoever drives it.
///
/// # Errors
/// The call's; [`CallError::Unanswered`] where nobody is left to answer.
pub async fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or_else(|_| Err(CallError::Unanswered.into()))
}

/// The same for a call to a known session.
pub(crate) async fn wait_on<T: Send + 'static, E: From<CallError> + Send + 'static>(
    _: &Session,
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    wait(start).await
}
