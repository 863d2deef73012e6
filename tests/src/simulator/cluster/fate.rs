//! What goes wrong in the cluster: how processes die, and what each misfortune does.

use std::time::Duration;

use blobferry_store::Store;

use super::{Client, Cluster, SERVER, visit};
use crate::simulator::disk::{Burns, Health};
use crate::simulator::misfortune::{Kind, Misfortune};
use crate::simulator::world::{End, Event, Machine, Node, Pid};

impl Cluster {
    /// A process dies without knowing, perhaps with its machine and all others on it.
    pub(super) fn kill(&mut self, pid: Pid, power: bool) -> Result<(), String> {
        let machine = self.machine_of(pid);
        let mut dead = vec![pid];
        if power {
            let others = self.clients.iter().filter(|client| client.machine == machine);
            dead.extend(others.filter_map(|client| client.process.as_ref()).map(|process| process.pid));
            dead.sort_unstable();
            dead.dedup();
        }
        for pid in dead {
            self.end_without_knowing(pid, machine, !power)?;
        }
        if power {
            let lost = self.world.with_disk(|disk| disk.cut_power(machine)).map_err(broken_simulator)?;
            let (torn, undone) = lost;
            self.world
                .note(format_args!("{machine} loses its power: {torn} files torn, {undone} names undone"));
        }
        Ok(())
    }

    pub(super) fn machine_of(&self, pid: Pid) -> Machine {
        self.client_of(pid)
            .and_then(|(number, _)| self.clients.get(number))
            .map_or(SERVER, |client| client.machine)
    }

    pub(super) fn end_without_knowing(
        &mut self,
        pid: Pid,
        machine: Machine,
        told: bool,
    ) -> Result<(), String> {
        let world = self.world.clone();
        world.note(format_args!("{pid} dies"));
        self.deaths += 1;
        let photograph = world.with_disk(|disk| disk.photograph(machine)).map_err(broken_simulator)?;
        world.end(pid);
        self.unseat(pid, told);
        let users: Vec<usize> =
            self.users.iter().filter(|(_, user)| user.pid == pid).map(|(number, _)| *number).collect();
        for number in users {
            let user = self.users.remove(&number);
            world.run_as(pid, || drop(user));
        }
        let delay = Duration::from_millis(self.fate.u64(10..4000));
        if self.server.as_ref().is_some_and(|server| server.pid == pid) {
            if let Some(server) = self.server.take() {
                // Votes that wait have the store in hand, and are told now; nothing of that reaches anybody.
                world.run_as(pid, || {
                    server.store.close();
                    drop(server);
                });
            }
            world.after(delay, Event::Start(Node::Server));
        } else if let Some((number, _)) = self.client_of(pid) {
            if let Some(process) = self.clients.get_mut(number).and_then(|client| client.process.take()) {
                // What waits in it has it in hand, too.
                world.run_as(pid, || process.session.close("it is dead"));
            }
            if self.clients.get(number).is_some_and(Client::wants_more) {
                world.after(delay, Event::Start(Node::Client(number)));
            }
        } else {
            // It died while it started.
            world.after(delay, Event::Start(Node::Server));
        }
        world.bury(pid);
        photograph.restore().map_err(broken_simulator)
    }

    pub(super) fn strike(&mut self, place: usize) -> Result<(), String> {
        let Some(misfortune) = self.plan.get(place).copied().filter(|_| !self.healed) else { return Ok(()) };
        let now = self.world.time();
        self.world.note(format_args!("misfortune {place}: {misfortune}"));
        // Most of what happens to a connection happens while something is under way.
        let mut numbers: Vec<usize> = self.connections.keys().copied().collect();
        let is_busy = |number: &usize| self.connections.get(number).is_some_and(|found| found.tap.is_busy());
        if misfortune.whom % 4 > 0 && numbers.iter().any(is_busy) {
            numbers.retain(is_busy);
        }
        let number = numbers.get(misfortune.whom % numbers.len().max(1)).copied();
        let client =
            self.clients.iter().filter_map(|client| client.process.as_ref()).map(|process| process.pid);
        let clients: Vec<Pid> = client.collect();
        let client = clients.get(misfortune.whom % clients.len().max(1)).copied();
        let server = self.server.as_ref().map(|server| server.pid);
        match misfortune.kind {
            Kind::Cut => {
                if let Some(number) = number {
                    self.cut(number);
                }
            }
            Kind::HalfOpen { to_client } => {
                if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
                    connection.swallow(to_client);
                }
            }
            Kind::Stick { to_client, millis } => {
                if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
                    connection.stick(to_client, now + Duration::from_millis(millis));
                }
            }
            Kind::Partition { millis } => {
                let until = now + Duration::from_millis(millis);
                self.partition = self.partition.max(until);
                for connection in self.connections.values_mut() {
                    connection.stick(true, until);
                    connection.stick(false, until);
                }
            }
            Kind::KillClient | Kind::PowerClient => {
                if let Some(pid) = client {
                    self.kill(pid, misfortune.kind == Kind::PowerClient)?;
                }
            }
            Kind::KillServer | Kind::PowerServer => {
                if let Some(pid) = server {
                    self.kill(pid, misfortune.kind == Kind::PowerServer)?;
                }
            }
            Kind::StopServer => {
                self.leave_server();
                self.world.after(Duration::from_millis(500), Event::Relief(place));
            }
            Kind::FuseServer { steps } => {
                self.world.with_disk(|disk| disk.light_fuse(SERVER, steps, Burns::Steps))
            }
            Kind::FuseClient { steps, download } => {
                if let Some(pid) = client {
                    let machine = self.machine_of(pid);
                    let by = if download { Burns::Downloads } else { Burns::Writes };
                    self.world.with_disk(|disk| disk.light_fuse(machine, steps, by));
                }
            }
            Kind::DiskFull { server, millis } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Full));
                self.world.after(Duration::from_millis(millis), Event::Relief(place));
            }
            Kind::DiskSlow { server, millis } => {
                let machine = self.struck(misfortune, server);
                let by = Duration::from_millis(millis / 4);
                self.world.with_disk(|disk| disk.slow_down(machine, by));
                self.world.after(Duration::from_millis(millis), Event::Relief(place));
            }
            Kind::CutCommit { millis } => {
                self.to_cut += 1;
                self.world.with_disk(|disk| disk.slow_down(SERVER, Duration::from_millis(millis / 4)));
                self.world.after(Duration::from_millis(millis), Event::Relief(place));
            }
            Kind::DiskFails { server } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Failing));
                self.world.after(Duration::from_secs(20), Event::Relief(place));
            }
            Kind::ClockJumps { millis } => self.world.jump(millis),
        }
        Ok(())
    }

    pub(super) fn struck(&self, misfortune: Misfortune, server: bool) -> Machine {
        if server { SERVER } else { Machine(1 + misfortune.whom % self.scenario.machines) }
    }

    pub(super) fn cut(&mut self, number: usize) {
        let (world, now) = (self.world.clone(), self.world.time());
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let [to_server, to_client] = connection.cut(now, &mut self.net);
        for (is_client, told) in [(true, to_client), (false, to_server)] {
            if let Some(chair) = connection.chair(is_client) {
                visit(&world, chair, End { connection: number, is_client }, told);
            }
        }
    }

    pub(super) fn relieve(&mut self, place: usize) {
        let Some(misfortune) = self.plan.get(place).copied() else { return };
        self.world.note(format_args!("misfortune {place} is over"));
        match misfortune.kind {
            Kind::DiskFull { server, .. } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Well));
            }
            Kind::DiskSlow { server, .. } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.slow_down(machine, Duration::ZERO));
            }
            Kind::CutCommit { .. } => {
                self.world.with_disk(|disk| disk.slow_down(SERVER, Duration::ZERO));
            }
            Kind::DiskFails { server } => {
                let machine = self.struck(misfortune, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Well));
                // The operator starts a server again whose disk has failed.
                if server {
                    self.leave_server();
                    self.stop_server();
                    self.world.after(Duration::from_millis(100), Event::Start(Node::Server));
                }
            }
            Kind::StopServer => {
                self.stop_server();
                self.world.after(Duration::from_millis(100), Event::Start(Node::Server));
            }
            _ => {}
        }
    }
}

fn broken_simulator(error: std::io::Error) -> String {
    format!("the simulator itself has failed: {error}")
}
