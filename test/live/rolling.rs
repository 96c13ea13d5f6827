//! Rolling restart: processes behind one port end and start again one after the other, while clients
//! connect all the time, and nobody notices (takeover 11).

use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::pooler::binary;
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::scratch::{command, free_port, scratch, write};
use crate::rig::wait_until;
use crate::rig::wire::{query, rows, tags};

/// One of the processes, with a folder of its own.
struct Member {
    folder: PathBuf,
    child: Option<Child>,
}

impl Member {
    fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Hands everything over to a successor, which it is then.
    fn succeed(&mut self) {
        let old = self.child.take();
        self.start_with(&["-R"]);
        let new = std::mem::replace(&mut self.child, old);
        self.wait();
        self.child = new;
    }

    fn start_with(&mut self, switches: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("err"));
        let before = self.log().matches("process up: ").count();
        let mut start = command(binary());
        start
            .args(switches)
            .arg("ini")
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .stderr(log.unwrap());
        let child = start.spawn().unwrap();
        scratch().watch(child.id());
        self.child = Some(child);
        wait_until("it is up", || self.log().matches("process up: ").count() > before);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("err")).unwrap_or_default()
    }

    /// Waits for its end, which must be in good order.
    fn wait(&mut self) {
        let mut child = self.child.take().unwrap();
        wait_until("it ends", || child.try_wait().unwrap().is_some());
        scratch().forget(child.id());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", self.log());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            scratch().forget(child.id());
        }
    }
}

/// Three processes behind one port.
struct Group {
    members: Vec<Member>,
    port: u16,
    database: String,
}

impl Group {
    fn start(settings: &str) -> Self {
        let (port, database) = (free_port(), postgres().new_bench_database());
        let folders: Vec<PathBuf> = (0..3).map(|_| scratch().folder()).collect();
        let peer = |(n, folder): (usize, &PathBuf)| {
            format!("{} = host={} port={port}\n", n + 1, folder.display())
        };
        let peers: String = folders.iter().enumerate().map(peer).collect();
        let mut members = Vec::new();
        for (n, folder) in folders.into_iter().enumerate() {
            let text = format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[peers]\n{peers}\n[pgbouncer]\n\
                 listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {}\n\
                 so_reuseport = 1\npeer_id = {}\npool_mode = transaction\nauth_type = trust\n\
                 auth_file = users\nadmin_users = admin\npidfile = pid\n{settings}\n",
                postgres().port,
                folder.display(),
                n + 1
            );
            write(&folder.join("ini"), text);
            write(&folder.join("users"), "\"admin\" \"\"\n\"trusty\" \"\"\n");
            let mut member = Member { folder, child: None };
            member.start();
            members.push(member);
        }
        Group { members, port, database }
    }

    /// A client of this process.
    fn client(&self, at: usize) -> Raw {
        Raw::unix(&self.members[at].folder, self.port)
            .login("trusty", &self.database, "")
            .unwrap()
            .0
    }

    fn console(&self, at: usize) -> Raw {
        Raw::unix(&self.members[at].folder, self.port).login("admin", "pgbouncer", "").unwrap().0
    }

    /// How many logins this process has seen for the database.
    fn logins(&self, at: usize) -> u64 {
        let stats = rows(&self.console(at).query("SHOW STATS"));
        let row = stats.iter().find(|row| row[0].as_deref() == Some(&self.database));
        row.map_or(0, |row| row[2].as_deref().unwrap().parse().unwrap())
    }

    /// Has a client's query canceled through whoever takes the connection.
    fn cancel(&self, client: &mut Raw) {
        client.send(&query("select pg_sleep(60)"));
        let sql = format!(
            "select count(*) from pg_stat_activity where datname = '{}' and state = 'active' and \
             query like '%pg_sleep(60)%'",
            self.database
        );
        wait_until("it runs", || postgres().value("postgres", &sql) == "1");
        let mut request = Raw::tcp(self.port);
        request.send(&client.cancel_request());
        assert_eq!(request.rest(), []);
        let answer = client.until(b'Z');
        assert_eq!(answer.iter().find(|msg| msg.tag == b'E').unwrap().field(b'C'), "57014");
    }

    /// Has a process end when its clients have left: by a signal, or by its console.
    fn shut_down(&self, at: usize, by_signal: bool) {
        if by_signal {
            let pid = self.members[at].child.as_ref().unwrap().id();
            return kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGTERM).unwrap();
        }
        let mut console = self.console(at);
        assert_eq!(tags(&console.query("SHUTDOWN WAIT_FOR_CLIENTS")), "CZ");
    }
}

/// Restarts one process after the other, each at least once, under pgbench, which connects anew for
/// each transaction.
fn roll(settings: &str, is_handed_over: bool) {
    let mut group = Group::start(settings);
    let mut tool = postgres().tool("pgbench");
    tool.args(["-n", "-C", "-S", "-c", "8", "-j", "2", "-T", "8", "-U", "trusty"]);
    tool.args(["-h", "127.0.0.1", "-p", &group.port.to_string(), &group.database]);
    let mut run = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut turns = 0;
    while run.try_wait().unwrap().is_none() {
        if is_handed_over {
            group.members[turns % 3].succeed();
        }
        restart(&mut group, turns, &mut run);
        turns += 1;
    }
    let done = run.wait_with_output().unwrap();
    let [out, errors] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(done.status.success(), "after {turns} restarts: {out}\n{errors}");
    assert!(out.contains("number of failed transactions: 0 (0.000%)"), "{out}\n{errors}");
    assert!(turns > 1, "{turns}");
}

fn restart(group: &mut Group, turn: usize, run: &mut Child) {
    let at = turn % 3;
    let before = group.logins(at);
    wait_until("clients come", || {
        group.logins(at) > before + 10 || run.try_wait().unwrap().is_some()
    });
    let (mut own, mut others) = (group.client(at), group.client((at + 1) % 3));
    for client in [&mut own, &mut others] {
        group.cancel(client);
    }
    group.shut_down(at, turn % 2 == 0);
    // It goes on for its clients, also for cancel requests that come to the others.
    group.cancel(&mut own);
    assert_eq!(own.value("select 1"), "1");
    own.bye();
    group.members[at].wait();
    group.cancel(&mut others);
    group.members[at].start();
}

#[test]
fn three_processes_restart_one_after_the_other_and_no_connection_is_lost() {
    roll("", false);
}

#[test]
fn so_do_processes_that_accept_before_the_first_packet() {
    roll("tcp_defer_accept = 0", false);
}

#[test]
fn so_do_processes_that_came_by_their_sockets_in_a_handoff() {
    roll("", true);
}
