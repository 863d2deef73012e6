//! The connections of the cluster: when each end is driven, and how a connection ends.

use blobferry_session::io::CloseReason;

use super::{Cluster, schedule_drive};
use crate::simulator::world::{End, Pid};

impl Cluster {
    pub(super) fn drive(&mut self, end: End) -> Result<(), String> {
        let now = self.world.time();
        let world = self.world.clone();
        let Some(connection) = self.connections.get_mut(&end.connection) else { return Ok(()) };
        let Some(endpoint) = connection.endpoint(end.is_client) else { return Ok(()) };
        // An event that was scheduled before an earlier one replaced it.
        if endpoint.next_drive.is_none_or(|planned| planned > now) {
            return Ok(());
        }
        endpoint.next_drive = None;
        let pid = endpoint.pid;
        let net = &mut self.net_rng;
        let driven = world.run_as(pid, || connection.drive(end.is_client, now, net));
        for said in connection.monitor.transcript.iter_mut().flat_map(std::mem::take) {
            world.remark(format_args!("c{} {said}", end.connection));
        }
        if let Some(broken) = driven.broken {
            return Err(format!("c{}: {broken}", end.connection));
        }
        if let (Some(at), Some(endpoint)) = (driven.again, connection.endpoint(end.is_client)) {
            schedule_drive(&world, endpoint, end, at);
        }
        let other = End { is_client: !end.is_client, ..end };
        if let (Some(at), Some(endpoint)) = (driven.other, connection.endpoint(other.is_client)) {
            schedule_drive(&world, endpoint, other, at);
        }
        let brings_commit = !end.is_client && connection.brings_commit();
        if let Some(ended) = driven.ended {
            return self.end_connection(end, &ended);
        }
        if brings_commit && self.commits_to_cut > 0 {
            self.commits_to_cut -= 1;
            self.world.note(format_args!("c{} has brought a commit", end.connection));
            self.cut(end.connection);
        }
        Ok(())
    }

    /// Ends a connection for one of its ends.
    pub(super) fn end_connection(&mut self, end: End, ended: &CloseReason) -> Result<(), String> {
        if let CloseReason::Peer(error) = ended
            && error.is_protocol_violation()
        {
            return Err(format!(
                "c{}: one side reports that the other has broken a rule: {error}",
                end.connection
            ));
        }
        let (world, now) = (self.world.clone(), self.world.time());
        world.note(format_args!("c{} is over for its {}: {ended}", end.connection, name(end.is_client)));
        let Some(connection) = self.connections.get_mut(&end.connection) else { return Ok(()) };
        let endpoint = connection.endpoint(end.is_client).take();
        let at = connection.leave(end.is_client, now);
        let other = End { is_client: !end.is_client, ..end };
        match connection.endpoint(other.is_client) {
            Some(endpoint) => schedule_drive(&world, endpoint, other, at),
            None => self.forget(end.connection),
        }
        let Some(endpoint) = endpoint else { return Ok(()) };
        let pid = endpoint.pid;
        if end.is_client
            && let Some((_, process)) = self.client_of(pid)
        {
            let session = process.session.clone();
            world.run_as(pid, || session.lost(ended));
        }
        world.run_as(pid, || drop(endpoint));
        if end.is_client {
            self.dial_again(pid);
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, number: usize) {
        if let Some(connection) = self.connections.remove(&number) {
            let counts = connection.monitor.counts;
            self.counts.messages += counts.messages;
            self.counts.payload += counts.payload;
            self.counts.resumed += counts.resumed;
            self.counts.attached += counts.attached;
        }
    }

    /// Drops all connections of a process. With `notify`, the other ends are notified.
    pub(super) fn drop_connections(&mut self, pid: Pid, notify: bool) {
        let (world, now) = (self.world.clone(), self.world.time());
        let numbers: Vec<usize> = self.connections.keys().copied().collect();
        for number in numbers {
            for is_client in [true, false] {
                let Some(connection) = self.connections.get_mut(&number) else { break };
                let Some(endpoint) = connection.endpoint(is_client).take_if(|endpoint| endpoint.pid == pid)
                else {
                    continue;
                };
                if !notify {
                    connection.discard(is_client);
                }
                let at = connection.leave(is_client, now);
                let other = End { connection: number, is_client: !is_client };
                match connection.endpoint(!is_client) {
                    Some(endpoint) => schedule_drive(&world, endpoint, other, at),
                    None => self.forget(number),
                }
                world.run_as(pid, || drop(endpoint));
            }
        }
    }
}
fn name(is_client: bool) -> &'static str {
    if is_client { "client" } else { "server" }
}
