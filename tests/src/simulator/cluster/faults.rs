//! Injects the faults of the plan, and kills processes.

use std::time::Duration;

use blobferry_store::Store;

use super::{Client, Cluster, SERVER, schedule_drive};
use crate::simulator::disk::{Counted, Health};
use crate::simulator::fault_plan::{Fault, FaultKind};
use crate::simulator::world::{End, Event, Machine, Node, Pid};

impl Cluster {
    /// Kills a process. With `power`, its machine and all processes on it lose their power.
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
            self.kill_process(pid, machine, !power)?;
        }
        if power {
            let lost = self.world.with_disk(|disk| disk.cut_power(machine)).map_err(simulator_failed)?;
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

    pub(super) fn kill_process(&mut self, pid: Pid, machine: Machine, notify: bool) -> Result<(), String> {
        let world = self.world.clone();
        world.note(format_args!("{pid} dies"));
        self.deaths += 1;
        let snapshot = world.with_disk(|disk| disk.snapshot(machine)).map_err(simulator_failed)?;
        world.end(pid);
        self.drop_connections(pid, notify);
        let users: Vec<usize> =
            self.users.iter().filter(|(_, user)| user.pid == pid).map(|(number, _)| *number).collect();
        for number in users {
            let user = self.users.remove(&number);
            world.run_as(pid, || drop(user));
        }
        let delay = Duration::from_millis(self.fault_rng.u64(10..4000));
        if self.server.as_ref().is_some_and(|server| server.pid == pid) {
            if let Some(server) = self.server.take() {
                // Pending votes own the store. They are answered now, but no answer leaves the
                // process.
                world.run_as(pid, || {
                    server.store.close();
                    drop(server);
                });
            }
            world.after(delay, Event::Start(Node::Server));
        } else if let Some((number, _)) = self.client_of(pid) {
            if let Some(process) = self.clients.get_mut(number).and_then(|client| client.process.take()) {
                // Pending calls own the session, too.
                world.run_as(pid, || process.session.close("it is dead"));
            }
            if self.clients.get(number).is_some_and(Client::has_work) {
                world.after(delay, Event::Start(Node::Client(number)));
            }
        } else {
            // The server died while it started.
            world.after(delay, Event::Start(Node::Server));
        }
        world.drain(pid);
        snapshot.restore().map_err(simulator_failed)
    }

    pub(super) fn inject(&mut self, place: usize) -> Result<(), String> {
        let Some(fault) = self.plan.get(place).copied().filter(|_| !self.healed) else { return Ok(()) };
        let now = self.world.time();
        self.world.note(format_args!("misfortune {place}: {fault}"));
        // Three of four faults hit a connection with an unanswered request, if there is one.
        let mut numbers: Vec<usize> = self.connections.keys().copied().collect();
        let is_busy =
            |number: &usize| self.connections.get(number).is_some_and(|found| found.monitor.is_busy());
        if fault.target % 4 > 0 && numbers.iter().any(is_busy) {
            numbers.retain(is_busy);
        }
        let number = numbers.get(fault.target % numbers.len().max(1)).copied();
        let client =
            self.clients.iter().filter_map(|client| client.process.as_ref()).map(|process| process.pid);
        let clients: Vec<Pid> = client.collect();
        let client = clients.get(fault.target % clients.len().max(1)).copied();
        let server = self.server.as_ref().map(|server| server.pid);
        match fault.kind {
            FaultKind::Cut => {
                if let Some(number) = number {
                    self.cut(number);
                }
            }
            FaultKind::HalfOpen { to_client } => {
                if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
                    connection.discard(to_client);
                }
            }
            FaultKind::Stall { to_client, millis } => {
                if let Some(connection) = number.and_then(|number| self.connections.get_mut(&number)) {
                    connection.stall(to_client, now + Duration::from_millis(millis));
                }
            }
            FaultKind::Partition { millis } => {
                let until = now + Duration::from_millis(millis);
                self.partitioned_until = self.partitioned_until.max(until);
                for connection in self.connections.values_mut() {
                    connection.stall(true, until);
                    connection.stall(false, until);
                }
            }
            FaultKind::KillClient | FaultKind::PowerClient => {
                if let Some(pid) = client {
                    self.kill(pid, fault.kind == FaultKind::PowerClient)?;
                }
            }
            FaultKind::KillServer | FaultKind::PowerServer => {
                if let Some(pid) = server {
                    self.kill(pid, fault.kind == FaultKind::PowerServer)?;
                }
            }
            FaultKind::StopServer => {
                self.begin_server_stop();
                self.world.after(Duration::from_millis(500), Event::FaultEnds(place));
            }
            FaultKind::KillServerAtStep { steps } => {
                self.world.with_disk(|disk| disk.start_countdown(SERVER, steps, Counted::Steps))
            }
            FaultKind::KillClientAtWrite { steps, download } => {
                if let Some(pid) = client {
                    let machine = self.machine_of(pid);
                    let by = if download { Counted::Downloads } else { Counted::Writes };
                    self.world.with_disk(|disk| disk.start_countdown(machine, steps, by));
                }
            }
            FaultKind::DiskFull { server, millis } => {
                let machine = self.faulty_machine(fault, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Full));
                self.world.after(Duration::from_millis(millis), Event::FaultEnds(place));
            }
            FaultKind::DiskSlow { server, millis } => {
                let machine = self.faulty_machine(fault, server);
                let by = Duration::from_millis(millis / 4);
                self.world.with_disk(|disk| disk.slow_down(machine, by));
                self.world.after(Duration::from_millis(millis), Event::FaultEnds(place));
            }
            FaultKind::CutCommit { millis } => {
                self.commits_to_cut += 1;
                self.world.with_disk(|disk| disk.slow_down(SERVER, Duration::from_millis(millis / 4)));
                self.world.after(Duration::from_millis(millis), Event::FaultEnds(place));
            }
            FaultKind::DiskFails { server } => {
                let machine = self.faulty_machine(fault, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Failing));
                self.world.after(Duration::from_secs(20), Event::FaultEnds(place));
            }
            FaultKind::ClockJumps { millis } => self.world.jump(millis),
        }
        Ok(())
    }

    pub(super) fn faulty_machine(&self, fault: Fault, server: bool) -> Machine {
        if server { SERVER } else { Machine(1 + fault.target % self.scenario.machines) }
    }

    pub(super) fn cut(&mut self, number: usize) {
        let (world, now) = (self.world.clone(), self.world.time());
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let [to_server, to_client] = connection.cut(now, &mut self.net_rng);
        for (is_client, at) in [(true, to_client), (false, to_server)] {
            if let Some(endpoint) = connection.endpoint(is_client) {
                schedule_drive(&world, endpoint, End { connection: number, is_client }, at);
            }
        }
    }

    pub(super) fn end_fault(&mut self, place: usize) {
        let Some(fault) = self.plan.get(place).copied() else { return };
        self.world.note(format_args!("misfortune {place} is over"));
        match fault.kind {
            FaultKind::DiskFull { server, .. } => {
                let machine = self.faulty_machine(fault, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Healthy));
            }
            FaultKind::DiskSlow { server, .. } => {
                let machine = self.faulty_machine(fault, server);
                self.world.with_disk(|disk| disk.slow_down(machine, Duration::ZERO));
            }
            FaultKind::CutCommit { .. } => {
                self.world.with_disk(|disk| disk.slow_down(SERVER, Duration::ZERO));
            }
            FaultKind::DiskFails { server } => {
                let machine = self.faulty_machine(fault, server);
                self.world.with_disk(|disk| disk.set_health(machine, Health::Healthy));
                // The operator restarts a server whose disk has failed.
                if server {
                    self.begin_server_stop();
                    self.stop_server();
                    self.world.after(Duration::from_millis(100), Event::Start(Node::Server));
                }
            }
            FaultKind::StopServer => {
                self.stop_server();
                self.world.after(Duration::from_millis(100), Event::Start(Node::Server));
            }
            _ => {}
        }
    }
}

fn simulator_failed(error: std::io::Error) -> String {
    format!("the simulator itself has failed: {error}")
}
