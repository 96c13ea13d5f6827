//! What is measured: poolers as processes, each pinned to a core of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;

use crate::link::{Family, Link, Place};
use crate::login::{PASSWORD, USER};
use crate::rig::scratch::{command, free_port, scratch, write};
use crate::rig::secrets::{md5_secret, scram_secret};
use crate::rig::wait_until;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Ours,
    PgBouncer,
    Floor,
}

/// How clients log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    Trust,
    Md5,
    /// The pooler has the SCRAM secret.
    Scram,
    /// The pooler has the password.
    ScramPlain,
}

impl Auth {
    fn method(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Md5 => "md5",
            Self::Scram | Self::ScramPlain => "scram-sha-256",
        }
    }

    fn secret(self) -> String {
        match self {
            Self::Trust | Self::ScramPlain => PASSWORD.to_owned(),
            Self::Md5 => md5_secret(USER, PASSWORD),
            Self::Scram => scram_secret(PASSWORD, b"salt of the bench", 4096),
        }
    }
}

/// What a pooler is started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) program: Program,
    pub(crate) family: Family,
    pub(crate) auth: Auth,
    pub(crate) servers: usize,
    /// Lines behind the bench's own.
    pub(crate) settings: &'a str,
    /// Host and port of the database.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) dbname: &'a str,
    /// Run under this program with these arguments, e.g. valgrind.
    pub(crate) under: &'a [String],
}

/// A running pooler; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
    program: PathBuf,
    child: Child,
}

/// The core of the pooler.
const POOLER: usize = 0;
/// The core of everything else.
const REST: usize = 1;

/// Valgrind counts each byte of `rep movsb` as an instruction, processors count one for all: large
/// blocks are copied and cleared in loops instead.
const NO_STRING_INSTRUCTIONS: &str = "glibc.cpu.x86_rep_movsb_threshold=1073741824:\
                                      glibc.cpu.x86_rep_stosb_threshold=1073741824";

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core).unwrap();
    // With one core only there is nothing to choose.
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// Keeps this process off the pooler's core.
pub(crate) fn stay_away() {
    pin(REST);
}

/// A copy where the unprivileged user can run it.
fn copied(program: &Path, name: &str) -> PathBuf {
    let copy = scratch().folder().join(name);
    std::fs::copy(program, &copy).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    copy
}

fn ours() -> &'static PathBuf {
    static OURS: OnceLock<PathBuf> = OnceLock::new();
    OURS.get_or_init(|| {
        let built = env!("CARGO_BIN_EXE_pgturnstile");
        let chosen = std::env::var_os("PGTURNSTILE_BINARY");
        copied(&chosen.map_or_else(|| built.into(), PathBuf::from), "pgturnstile")
    })
}

fn floor() -> &'static PathBuf {
    static FLOOR: OnceLock<PathBuf> = OnceLock::new();
    FLOOR.get_or_init(|| copied(&std::env::current_exe().unwrap(), "floor"))
}

fn theirs() -> PathBuf {
    let chosen = std::env::var_os("PGBOUNCER_BINARY");
    chosen.map_or_else(|| "/usr/sbin/pgbouncer".into(), PathBuf::from)
}

impl Setup<'_> {
    fn ini(&self, folder: &Path, port: u16) -> String {
        let (at, host, servers) = (folder.display(), &self.host, self.servers);
        let (method, settings) = (self.auth.method(), self.settings);
        // Under valgrind somebody may wait so long that he is told.
        let silent = match self.program {
            Program::Ours => "query_wait_notify = 0\n",
            Program::PgBouncer | Program::Floor => "",
        };
        let tls = match self.family {
            Family::Tls => crate::tls::settings("server"),
            Family::Tcp | Family::Unix => String::new(),
        };
        format!(
            "[databases]\nbench = host={host} port={} dbname={}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {at}\n\
             logfile = {at}/log\npidfile = {at}/pid\nauth_file = {at}/users\nauth_type = {method}\n\
             pool_mode = transaction\ndefault_pool_size = {servers}\nmax_client_conn = 20000\n\
             listen_backlog = 4096\nlog_connections = 0\nlog_disconnections = 0\n\
             query_wait_timeout = 0\n{silent}{tls}{settings}\n",
            self.port, self.dbname
        )
    }

    fn program(&self) -> PathBuf {
        match self.program {
            Program::Ours => ours().clone(),
            Program::PgBouncer => theirs(),
            Program::Floor => floor().clone(),
        }
    }

    fn command(&self, folder: &Path, port: u16) -> Command {
        let arguments = match self.program {
            Program::Ours | Program::PgBouncer => vec![folder.join("ini").display().to_string()],
            Program::Floor => {
                let family = format!("{:?}", self.family);
                let numbers = [port, self.port].map(|port| port.to_string());
                let [own, server] = numbers;
                let at = folder.display().to_string();
                let count = self.servers.to_string();
                vec!["floor".into(), family, at, own, self.host.clone(), server, count]
            }
        };
        let mut parts = self.under.to_vec();
        parts.push(self.program().display().to_string());
        parts.extend(arguments);
        let mut command = command(&parts[0]);
        command.args(&parts[1..]);
        if !self.under.is_empty() {
            command.env("GLIBC_TUNABLES", NO_STRING_INSTRUCTIONS);
        }
        command
    }

    /// Starts it and waits until it takes connections.
    pub(crate) fn start(&self) -> Process {
        let folder = scratch().folder();
        let port = free_port();
        write(&folder.join("ini"), self.ini(&folder, port));
        write(&folder.join("users"), format!("\"{USER}\" \"{}\"\n", self.auth.secret()));
        let errors = std::fs::File::create(folder.join("stderr")).unwrap();
        pin(POOLER);
        let child = self.command(&folder, port).stdout(Stdio::null()).stderr(errors).spawn();
        pin(REST);
        let child = child.unwrap_or_else(|e| panic!("{:?}: {e}", self.program));
        scratch().watch(child.id());
        let program = self.program();
        let mut process = Process { folder, port, program, child };
        let place = process.place(self.family);
        wait_until("the pooler is up or gone", || {
            let up = match self.program {
                Program::Floor => Link::connect(&place).is_ok(),
                _ => process.text("log").contains("process up: "),
            };
            up || process.child.try_wait().unwrap().is_some()
        });
        let alive = process.child.try_wait().unwrap().is_none();
        assert!(alive, "{:?}: {}{}", self.program, process.text("log"), process.text("stderr"));
        process
    }
}

/// The floor's own arguments, if this process is one.
pub(crate) fn floor_of(arguments: &[String]) -> Option<(Place, Place, usize)> {
    let [role, family, at, own, host, server, count] = arguments else {
        return None;
    };
    if role != "floor" {
        return None;
    }
    let family = if family == "Tcp" { Family::Tcp } else { Family::Unix };
    let place =
        |folder: &str, port: &str| Place::of(family, folder.as_ref(), port.parse().unwrap());
    Some((place(at, own), place(host, server), count.parse().unwrap()))
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn place(&self, family: Family) -> Place {
        Place::of(family, &self.folder, self.port)
    }

    fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Starts another one with `-R` and the same files.
    pub(crate) fn begin_succession(&self) -> Child {
        let mut command = command(&self.program);
        command.arg("-R").arg(self.folder.join("ini"));
        let errors = std::fs::File::options().append(true).open(self.folder.join("stderr"));
        pin(POOLER);
        let child = command.stdout(Stdio::null()).stderr(errors.unwrap()).spawn().unwrap();
        pin(REST);
        scratch().watch(child.id());
        child
    }

    /// The successor has taken over: it is this from now on.
    pub(crate) fn end_succession(&mut self, successor: Child) {
        let mut old = std::mem::replace(&mut self.child, successor);
        wait_until("the old pooler ends", || old.try_wait().unwrap().is_some());
        scratch().forget(old.id());
        let alive = self.child.try_wait().unwrap().is_none();
        assert!(alive, "{}{}", self.text("log"), self.text("stderr"));
    }

    /// As `end_succession`; the old one stays as a keeper of connections, and is returned.
    pub(crate) fn end_succession_kept(&mut self, successor: Child) -> Child {
        let old = std::mem::replace(&mut self.child, successor);
        wait_until("the successor is up or gone", || {
            let is_up = self.text("log").matches("process up: ").count() > 1;
            is_up || self.child.try_wait().unwrap().is_some()
        });
        let alive = self.child.try_wait().unwrap().is_none();
        assert!(alive, "{}{}", self.text("log"), self.text("stderr"));
        old
    }

    /// Asks it to end, and waits for that; it has no clients any more.
    pub(crate) fn end(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        wait_until("the pooler ends", || self.child.try_wait().unwrap().is_some());
        scratch().forget(self.child.id());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            scratch().forget(self.child.id());
        }
    }
}
