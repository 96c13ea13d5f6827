//! A PostgreSQL primary and its streaming standbys, reached over Unix sockets only: no port is
//! needed, so a node that was stopped comes back where it was.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::postgres::programs;
use crate::rig::scratch::{command, scratch, write};
use crate::rig::wait_until;

/// What is written behind each node's configuration.
const SETTINGS: &str = "
listen_addresses = ''
port = 5432
fsync = off
max_connections = 40
shared_buffers = 16MB
autovacuum = off
wal_receiver_status_interval = 1
wal_retrieve_retry_interval = 100ms
";

/// One server; the role `trusty` may do everything.
pub(crate) struct Node {
    /// Folder of its socket, the `host` of its database entries; its port is 5432.
    pub(crate) folder: PathBuf,
    child: Mutex<Option<Child>>,
}

impl Node {
    fn prepared() -> Self {
        Self { folder: scratch().folder(), child: Mutex::new(None) }
    }

    /// A new primary that runs.
    pub(crate) fn primary() -> Self {
        let node = Self::prepared();
        let mut initdb = node.tool("initdb");
        initdb.args(["-N", "-A", "trust", "-U", "trusty", "-E", "UTF8", "--locale=C", "-D"]);
        run(initdb.arg(node.data()));
        let configured = std::fs::read_to_string(node.data().join("postgresql.conf")).unwrap();
        write(&node.data().join("postgresql.conf"), configured + SETTINGS);
        node.start();
        node
    }

    /// A new standby of this node that runs.
    pub(crate) fn standby(&self) -> Self {
        let node = Self::prepared();
        let mut copy = node.tool("pg_basebackup");
        copy.args(["-U", "trusty", "-c", "fast", "-R", "-N", "-h"]).arg(&self.folder);
        run(copy.arg("-D").arg(node.data()));
        node.start();
        node
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn tool(&self, program: &str) -> std::process::Command {
        let mut tool = command("timeout");
        tool.args(["-s", "KILL", "60"]).arg(programs().join(program));
        tool
    }

    /// Starts it and waits until it can be asked.
    pub(crate) fn start(&self) {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let mut postgres = command(programs().join("postgres"));
        postgres.arg("-D").arg(self.data()).arg("-k").arg(&self.folder);
        let child = postgres.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        scratch().watch(child.id());
        *self.child.lock().unwrap() = Some(child);
        wait_until(&format!("a node is ready in {}", self.folder.display()), || {
            let mut probe = self.tool("pg_isready");
            probe.args(["-q", "-p", "5432", "-h"]).arg(&self.folder).status().unwrap().success()
        });
    }

    /// Stops it: its sessions end, standbys get all that it has written.
    pub(crate) fn stop(&self) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
        wait_until("a node stops", || child.try_wait().unwrap().is_some());
        scratch().forget(child.id());
    }

    /// Makes the primary of a standby.
    pub(crate) fn promote(&self) {
        run(self.tool("pg_ctl").args(["promote", "-w", "-D"]).arg(self.data()));
    }

    /// Starts a node that was stopped as a standby of another one.
    pub(crate) fn start_behind(&self, primary: &Node) {
        let line = format!("primary_conninfo = 'host={} user=trusty'\n", primary.folder.display());
        write(&self.data().join("postgresql.auto.conf"), line);
        write(&self.data().join("standby.signal"), "");
        self.start();
    }

    /// The single value of a query, not through a pooler.
    pub(crate) fn value(&self, sql: &str) -> String {
        let mut psql = self.tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-U", "trusty", "-d", "postgres", "-c", sql, "-h"]);
        let out = psql.arg(&self.folder).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(mut child) = self.child.lock().unwrap().take() else { return };
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGQUIT);
        let _ = child.wait();
        scratch().forget(child.id());
    }
}

fn run(command: &mut std::process::Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
