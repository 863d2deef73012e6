//! The client: one connection, shared by any number of tasks.

use std::sync::{Arc, Mutex, PoisonError};

use blobferry_cache::Cache;
use blobferry_cache::carry::Carrier;
use blobferry_cache::client::{CallError, ClientConfig, Completion, ConnectError, Session, SessionEndpoint};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::drive::drive;
use crate::invalidations::Invalidations;
use crate::transaction::Transaction;

/// A connection to a server, and a cache. Clones share both, and may be used by any number of tasks at once.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    session: Session,
    driver: Mutex<Option<JoinHandle<()>>>,
    woken: Arc<Notify>,
}

impl Client {
    /// Connects, and returns when the handshake is done.
    ///
    /// # Errors
    /// Nobody is there, or it is not a server that speaks to us.
    pub async fn connect(
        addr: impl ToSocketAddrs,
        cache: Cache,
        config: ClientConfig,
    ) -> Result<Client, ConnectError> {
        let stream = TcpStream::connect(addr).await?;
        let woken = Arc::new(Notify::new());
        let wake = woken.clone();
        let (session, carrier) = Session::open(&stream, cache, &config, move || wake.notify_one())?;
        let driver = Mutex::new(Some(tokio::spawn(run(stream, carrier, session.clone(), woken.clone()))));
        let client = Client(Arc::new(Inner { session, driver, woken }));
        wait(|done| client.0.session.connected(done)).await.map_err(ConnectError::Handshake)?;
        Ok(client)
    }

    blobferry_cache::client_methods!(wait, async, await);

    /// The transactions that are committed from now on, this client's own among them. Each comes before any answer
    /// that exposes it.
    #[must_use]
    pub fn invalidations(&self) -> Invalidations {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.session.listen(Box::new(move |invalidation| sender.send(invalidation.clone()).is_ok()));
        Invalidations(receiver)
    }

    /// Says goodbye, waits until what is under way has come to its end, and closes the connection. Other clones can
    /// not use it any more either.
    pub async fn close(self) {
        self.0.session.goodbye();
        self.0.woken.notify_one();
        let driver = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            // A task that has panicked has ended, too.
            let _ = driver.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without goodbye: what is under way is given up, open transactions are aborted by the server.
        self.session.close("the client was dropped");
        if let Some(driver) = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take() {
            driver.abort();
        }
    }
}

/// The task of a connection.
async fn run(stream: TcpStream, mut carrier: Carrier<SessionEndpoint>, session: Session, woken: Arc<Notify>) {
    let ended = drive(&stream, &mut carrier, &woken).await;
    drop(stream);
    session.close(&ended.to_string());
}

/// Turns a callback into a future: for calls to a [`Session`], whoever drives it.
///
/// # Errors
/// The call's; [`CallError::Disconnected`] where nobody is left to answer.
pub async fn wait<T: Send + 'static, E: From<CallError> + Send + 'static>(
    start: impl FnOnce(Completion<T, E>),
) -> Result<T, E> {
    let (sender, receiver) = oneshot::channel();
    start(Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or_else(|_| Err(CallError::unanswered().into()))
}
