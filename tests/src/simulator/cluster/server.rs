//! The server of the cluster: how it starts, and how it stops in an orderly way.

use std::sync::Arc;
use std::time::Duration;

use blobferry_session::server::ServerCore;
use blobferry_store::{SqliteStore, Store, StoreConfig};

use super::{Cluster, SERVER, Server};
use crate::simulator::world::{Event, Node};

impl Cluster {
    pub(super) fn start_server(&mut self) -> Result<(), String> {
        if self.server.is_some() {
            return Ok(());
        }
        let pid = self.world.spawn(SERVER);
        let dir = self.server_dir();
        let config = StoreConfig { inline_max: self.scenario.inline_max, ..self.scenario.store.clone() };
        let opened = self.world.run_as(pid, || SqliteStore::open(&dir, config));
        if self.world.dying() == Some(pid) {
            drop(opened);
            return Ok(()); // it is being killed
        }
        match opened {
            Ok(store) => {
                let store = Arc::new(store);
                let shared: Arc<dyn Store> = store.clone();
                let config = self.scenario.server.clone();
                let service = self.world.run_as(pid, || ServerCore::new(shared, config));
                self.world.note(format_args!("{pid} the server starts, at {}", store.last_tid()));
                self.server = Some(Server { pid, store, service, stopping: false });
            }
            Err(error) => {
                self.world.note(format_args!("{pid} the server cannot start: {error}"));
                self.world.end(pid);
                self.world.drain(pid);
                if self.healed {
                    return Err(format!("the server cannot start, although no fault is left: {error}"));
                }
                self.world.after(Duration::from_secs(1), Event::Start(Node::Server));
            }
        }
        Ok(())
    }

    /// Begins to stop the server, as its operator would.
    pub(super) fn begin_server_stop(&mut self) {
        if let Some(server) = &mut self.server
            && !std::mem::replace(&mut server.stopping, true)
        {
            self.world.note(format_args!("{} the server is stopping", server.pid));
            self.world.run_as(server.pid, || server.service.stop());
        }
    }

    /// Stops a server that [`begin_server_stop`](Cluster::begin_server_stop) was called for.
    /// Commits under way are completed first.
    pub(super) fn stop_server(&mut self) {
        let Some(pid) = self.server.as_ref().filter(|server| server.stopping).map(|server| server.pid) else {
            return;
        };
        self.drop_connections(pid, false);
        if let Some(server) = self.server.take() {
            self.world.run_as(pid, || {
                server.store.close();
                drop(server);
            });
        }
        self.world.run_services(pid);
        self.world.end(pid);
        self.world.drain(pid);
        self.world.note(format_args!("{pid} the server has stopped"));
    }
}
