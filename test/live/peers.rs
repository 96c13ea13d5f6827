//! Several processes behind one port: a cancel request reaches the one that has its client, through
//! whichever it comes (pooling 8.5, takeover 11).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::run::{Run, Running};
use crate::rig::scratch::{free_port, DeadPort};
use crate::rig::wait_until;
use crate::rig::wire::{query, rows, special, tags, CANCEL_REQUEST};

/// Processes that share a port; each has a Unix socket of its own.
struct Group {
    members: Vec<Running>,
    port: u16,
    database: String,
}

/// Lines of the section [peers].
fn entries(runs: &[(usize, String)]) -> String {
    runs.iter().map(|(id, entry)| format!("{id} = {entry}\n")).collect()
}

fn settings(id: usize, extra: &str, peers: &str) -> String {
    format!(
        "so_reuseport = 1\npeer_id = {id}\npool_mode = transaction\n{extra}\n[databases]\n\
         * = host=127.0.0.1 port={}\n[peers]\n{peers}",
        postgres().port
    )
}

impl Group {
    fn new(size: usize, extra: &str) -> Self {
        let port = free_port();
        let mut runs: Vec<Run> = (0..size).map(|_| Run::new("")).collect();
        let entry = |run: &Run| format!("host={} port={port}", run.folder.display());
        let all: Vec<_> = runs.iter().enumerate().map(|(n, run)| (n + 1, entry(run))).collect();
        for (n, run) in runs.iter_mut().enumerate() {
            run.port = port;
            run.rewrite(&settings(n + 1, extra, &entries(&all)));
        }
        let members = runs.into_iter().map(Run::up).collect();
        Group { members, port, database: postgres().new_database() }
    }

    /// One process with these entries of peers; its id is 1.
    fn single(extra: &str, peers: &str) -> Self {
        let run = Run::new("");
        run.rewrite(&settings(1, extra, peers));
        let port = run.port;
        Group { members: vec![run.up()], port, database: postgres().new_database() }
    }

    /// A connection to one process.
    fn to(&self, member: usize) -> Raw {
        Raw::unix(&self.members[member].run.folder, self.port)
    }

    /// A client of one process.
    fn client(&self, member: usize) -> Raw {
        self.to(member).login("trusty", &self.database, "").unwrap().0
    }

    /// A console of one process, its answer to a command as rows.
    fn ask(&self, member: usize, command: &str) -> Vec<Vec<Option<String>>> {
        rows(&self.to(member).login("admin", "pgbouncer", "").unwrap().0.query(command))
    }

    /// The rows of SHOW PEER_POOLS as words.
    fn peer_pools(&self, member: usize) -> Vec<String> {
        let row =
            |row: Vec<Option<String>>| row.into_iter().flatten().collect::<Vec<_>>().join(" ");
        self.ask(member, "SHOW PEER_POOLS").into_iter().map(row).collect()
    }

    /// How many queries of `pg_sleep` PostgreSQL runs in the database.
    fn sleeping(&self, watcher: &mut Raw) -> usize {
        let sql = format!(
            "select count(*) from pg_stat_activity where datname = '{}' and state = 'active' \
             and query like '%pg_sleep%' and pid <> pg_backend_pid()",
            self.database
        );
        watcher.value(&sql).parse().unwrap()
    }

    /// A connection that goes around the poolers.
    fn watcher(&self) -> Raw {
        Raw::tcp(postgres().port).login("trusty", &self.database, "").unwrap().0
    }
}

/// Sends a cancel request and waits for the end of its connection.
fn cancel(mut at: Raw, request: &[u8]) {
    at.send(request);
    assert_eq!(at.rest(), [], "a cancel request is never answered");
}

/// The SQLSTATE in an answer that must be one error and ReadyForQuery.
fn failure(client: &mut Raw) -> String {
    let answer = client.until(b'Z');
    let error = answer.iter().find(|m| m.tag == b'E');
    error.unwrap_or_else(|| panic!("no error in {answer:?}")).field(b'C')
}

const SLEEP: &str = "select pg_sleep(60)";

#[test]
fn a_cancel_request_reaches_its_client_through_every_process() {
    let group = Group::new(3, "");
    let mut watcher = group.watcher();
    let mut clients: Vec<Raw> = (0..6).map(|n| group.client(n % 3)).collect();
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(usize::from(client.key[1]) + 256 * usize::from(client.key[2]), n % 3 + 1);
        assert_eq!(client.key[7] & 3, 3);
        assert!(client.key[0] < 128);
    }
    for client in &mut clients {
        client.send(&query(SLEEP));
    }
    let mut count = 0;
    for round in 0..4 {
        for client in &mut clients {
            wait_until("all are asleep", || group.sleeping(&mut watcher) == 6);
            // Through each by its own socket, then through whichever takes the connection.
            let at = if round < 3 { group.to(round) } else { Raw::tcp(group.port) };
            cancel(at, &client.cancel_request());
            assert_eq!(failure(client), "57014");
            assert_eq!(group.sleeping(&mut watcher), 5, "somebody else was hit, too");
            client.send(&query(SLEEP));
            count += 1;
        }
    }
    assert_eq!(count, 24);
    for member in 0..3 {
        let pools = group.peer_pools(member);
        let others = (1..=3).filter(|id| *id != member + 1);
        let want: Vec<_> = others.map(|id| format!("{id} 0 0 0 0")).collect();
        assert_eq!(pools, want, "a pool for each peer that was used, empty again");
        let log = group.members[member].all();
        assert!(log.contains(&format!("peer-{}@unix", if member == 0 { 2 } else { 1 })), "{log}");
    }
}

/// psql's Control-C opens a connection that any of the three may take.
#[test]
fn psql_cancels_behind_a_shared_port() {
    let group = Group::new(3, "");
    let mut watcher = group.watcher();
    for _ in 0..24 {
        let mut psql = postgres().tool("psql");
        psql.args(["-X", "-q", "-w", "-h", "127.0.0.1", "-p", &group.port.to_string()]);
        psql.args(["-U", "trusty", "-d", &group.database, "-c", SLEEP]);
        let child = psql.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("psql is asleep", || group.sleeping(&mut watcher) == 1);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
        let errors = child.wait_with_output().unwrap().stderr;
        let errors = String::from_utf8_lossy(&errors);
        assert!(errors.contains("canceling statement due to user request"), "{errors}");
    }
    let forwarded: usize = group
        .members
        .iter()
        .map(|member| {
            let log = member.all();
            let own = |line: &&str| line.contains(" C-0x") && line.contains(": peer-");
            log.lines().filter(own).filter(|line| line.contains("successfully sent")).count()
        })
        .sum();
    // The kernel chooses at random: that all arrive at the right process has a chance of 3^-24.
    assert!(forwarded > 0, "none was forwarded");
}

/// A key with the number of a process and so many hops left.
fn key(peer: u16, hops: u8) -> Vec<u8> {
    let [low, high] = peer.to_le_bytes();
    special(CANCEL_REQUEST, &[1, low, high, 2, 3, 4, 5, 0xf8 | hops])
}

#[test]
fn requests_that_go_nowhere_are_closed_for_their_reason() {
    let group = Group::new(2, "");
    for (request, reason) in [
        (key(2, 0), "failed to forward cancel request because its TTL was exhausted"),
        (key(9, 0), "failed to forward cancel request because its TTL was exhausted"),
        (key(9, 3), "could not find peer to forward request to"),
        (key(1, 3), "failed cancel request"),
        (key(1, 0), "failed cancel request"),
        (special(CANCEL_REQUEST, &[0; 9]), "bad cancel request"),
    ] {
        cancel(group.to(0), &request);
        let line = format!("closing because: {reason} (age=");
        group.members[0].wait_for(&line);
    }
    assert_eq!(group.peer_pools(0), Vec::<String>::new(), "no peer was used");
    cancel(group.to(0), &key(2, 1));
    group.members[1].wait_for("closing because: failed cancel request (age=");
    assert_eq!(group.peer_pools(0), ["2 0 0 0 0"]);
    assert_eq!(group.ask(0, "SHOW PEERS").len(), 2);
    let lists = group.ask(0, "SHOW LISTS");
    let count = |name: &str| lists.iter().find(|row| row[0].as_deref() == Some(name)).unwrap();
    assert_eq!(count("peer_pools")[1].as_deref(), Some("1"));
    assert_eq!(count("peers")[1].as_deref(), Some("2"));
}

/// The first to take a connection at this port, and the 16 bytes that come.
fn take_request(listener: &TcpListener) -> (TcpStream, [u8; 16]) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).unwrap();
    (stream, bytes)
}

#[test]
fn a_peer_gets_the_bare_request_with_one_hop_less() {
    for (address, host) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "localhost")]
    {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let group = Group::single("", &format!("7 = host={host} port={port}\n"));
        let mut at = group.to(0);
        at.send(&key(7, 3));
        let (mut stream, bytes) = take_request(&listener);
        assert_eq!(bytes[..], key(7, 2), "{host}");
        assert_eq!(group.peer_pools(0), ["7 1 0 1 0"]);
        let clients = group.ask(0, "SHOW CLIENTS");
        let row = clients.iter().find(|row| row[4].as_deref() == Some("active_cancel_req"));
        let names = row.map(|row| (row[1].as_deref(), row[2].as_deref()));
        assert_eq!(names, Some((Some("(nouser)"), Some("(nodb)"))));
        let servers = group.ask(0, "SHOW SERVERS");
        let row = servers.iter().find(|row| row[4].as_deref() == Some("active_cancel")).unwrap();
        let names = (row[1].as_deref(), row[2].as_deref(), row[6].clone());
        assert_eq!(names, (Some("(nouser)"), Some("(nodb)"), Some(port.to_string())));
        stream.write_all(b"").unwrap();
        drop(stream);
        assert_eq!(at.rest(), []);
        assert_eq!(group.peer_pools(0), ["7 0 0 0 0"]);
        let log = group.members[0].all();
        let of = |side: &str| {
            let line = |line: &&str| line.contains(side) && line.contains(": peer-7@");
            log.lines()
                .filter(line)
                .position(|line| line.contains("successfully sent cancel request"))
        };
        assert!(of(" S-0x").is_some() && of(" C-0x").is_some(), "{log}");
    }
}

#[test]
fn a_peer_that_is_down_gets_its_request_when_it_is_back() {
    let dead = DeadPort::new();
    let port = dead.port;
    let group =
        Group::single("server_login_retry = 0.5\n", &format!("7 = host=127.0.0.1 port={port}\n"));
    let mut at = group.to(0);
    at.send(&key(7, 3));
    group.members[0].wait_for("closing because: connect failed (age=");
    wait_until("it waits", || group.peer_pools(0) == ["7 0 1 0 0"]);
    let listener = dead.revive();
    let (stream, bytes) = take_request(&listener);
    assert_eq!(bytes[..], key(7, 2));
    drop(stream);
    assert_eq!(at.rest(), []);
}

#[test]
fn a_request_for_a_peer_that_stays_down_ends_after_cancel_wait_timeout() {
    let dead = DeadPort::new();
    let peers = format!("7 = host=127.0.0.1 port={}\n", dead.port);
    let group = Group::single("cancel_wait_timeout = 1\n", &peers);
    let start = Instant::now();
    cancel(group.to(0), &key(7, 3));
    let took = start.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&took), "{took:?}");
    group.members[0].wait_for("closing because: cancel_wait_timeout (age=");
}

/// It accepts connections and never closes them: it must not keep others from being forwarded.
#[test]
fn a_peer_that_hangs_blocks_its_pool_no_longer_than_cancel_wait_timeout() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peers = format!("7 = host=127.0.0.1 port={port} pool_size=1\n");
    let group = Group::single("cancel_wait_timeout = 2\n", &peers);
    let mut first = group.to(0);
    first.send(&key(7, 3));
    let (_hung, _) = take_request(&listener);
    std::thread::sleep(Duration::from_secs(1));
    let mut second = group.to(0);
    second.send(&key(7, 2));
    wait_until("it waits for the one connection", || group.peer_pools(0) == ["7 1 1 1 0"]);
    let (taken, bytes) = take_request(&listener);
    assert_eq!(bytes[..], key(7, 1));
    assert_eq!(first.rest(), []);
    drop(taken);
    assert_eq!(second.rest(), []);
}

/// Many requests with one key share a connection, others have their own, up to pool_size.
#[test]
fn requests_with_the_same_key_share_a_connection() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peers = format!("7 = host=127.0.0.1 port={port} pool_size=1\n");
    let group = Group::single("", &peers);
    let mut one = group.to(0);
    one.send(&key(7, 3));
    let (held, _) = take_request(&listener);
    let mut alike: Vec<Raw> = (0..8).map(|_| group.to(0)).collect();
    for at in &mut alike {
        at.send(&key(7, 2));
    }
    wait_until("they wait", || group.peer_pools(0) == ["7 1 8 1 0"]);
    drop(held);
    let (held, bytes) = take_request(&listener);
    assert_eq!(bytes[..], key(7, 1));
    wait_until("all go with it", || group.peer_pools(0) == ["7 8 0 1 0"]);
    drop(held);
    for at in &mut alike {
        assert_eq!(at.rest(), []);
    }
}

#[test]
fn reload_adds_moves_and_removes_peers_while_requests_wait() {
    let dead = DeadPort::new();
    let old = format!("host=127.0.0.1 port={}", dead.port);
    let group = Group::single("cancel_wait_timeout = 0\n", &format!("7 = {old}\n8 = {old}\n"));
    let run = &group.members[0].run;
    let reload = |peers: &str| {
        run.rewrite(&settings(1, "cancel_wait_timeout = 0\n", peers));
        assert_eq!(group.ask(0, "RELOAD").len(), 0);
    };
    let (mut seven, mut eight) = (group.to(0), group.to(0));
    seven.send(&key(7, 3));
    eight.send(&key(8, 3));
    wait_until("both wait", || group.peer_pools(0) == ["7 0 1 0 0", "8 0 1 0 0"]);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let new = format!("host=127.0.0.1 port={}", listener.local_addr().unwrap().port());
    reload(&format!("7 = {new}\n9 = {new}\n"));
    assert_eq!(eight.rest(), [], "its peer is gone");
    group.members[0].wait_for("dropping peer  as it does not exist anymore");
    group.members[0].wait_for("closing because: peer removed (age=");
    let (stream, bytes) = take_request(&listener);
    assert_eq!(bytes[..], key(7, 2), "what waits goes to the new place at once");
    drop(stream);
    assert_eq!(seven.rest(), []);
    let mut nine = group.to(0);
    nine.send(&key(9, 3));
    drop(take_request(&listener));
    assert_eq!(nine.rest(), []);
    cancel(group.to(0), &key(8, 3));
    group.members[0].wait_for("could not find peer to forward request to");
    assert_eq!(group.peer_pools(0), ["7 0 0 0 0", "9 0 0 0 0"]);
    // Without an own number there is no peering.
    run.rewrite(&settings(0, "", &format!("7 = {new}\n")));
    group.ask(0, "RELOAD");
    cancel(group.to(0), &key(7, 3));
    group.members[0].wait_for("closing because: failed cancel request (age=");
}

/// PAUSE of the process that has the client, which is canceled through another one.
#[test]
fn a_paused_process_lets_cancel_requests_through() {
    let group = Group::new(2, "");
    let mut watcher = group.watcher();
    let mut client = group.client(1);
    client.send(&query(SLEEP));
    wait_until("it sleeps", || group.sleeping(&mut watcher) == 1);
    let mut console = group.to(1).login("admin", "pgbouncer", "").unwrap().0;
    console.send(&query("PAUSE"));
    wait_until("it pauses", || {
        let state = group.ask(1, "SHOW STATE");
        state
            .iter()
            .any(|row| row[0].as_deref() == Some("paused") && row[1].as_deref() == Some("yes"))
    });
    cancel(group.to(0), &client.cancel_request());
    assert_eq!(failure(&mut client), "57014");
    assert!(tags(&console.until(b'Z')).ends_with("CZ"), "nothing is at work any more");
    // What it asks now waits for RESUME; that can be canceled, too.
    client.send(&query("select 1"));
    wait_until("it waits", || {
        group.ask(1, "SHOW POOLS").iter().any(|row| row[3].as_deref() == Some("1"))
    });
    cancel(group.to(0), &client.cancel_request());
    assert_eq!(failure(&mut client), "57014");
    assert_eq!(tags(&console.query("RESUME")), "CZ");
    assert_eq!(client.value("select 5"), "5");
}

/// One process shuts down: its clients can still be canceled through the others.
#[test]
fn a_process_that_waits_for_its_clients_gets_forwarded_requests() {
    let group = Group::new(2, "");
    let mut watcher = group.watcher();
    let mut client = group.client(1);
    client.send(&query(SLEEP));
    wait_until("it sleeps", || group.sleeping(&mut watcher) == 1);
    group.members[1].signal(Signal::SIGTERM);
    group.members[1].wait_for("waiting for all clients disconnect");
    cancel(Raw::tcp(group.port), &client.cancel_request());
    assert_eq!(failure(&mut client), "57014");
}

/// Some clients are canceled all the time, others share their servers and must not notice.
#[test]
fn a_storm_of_cancel_requests_hits_nobody_else() {
    let group = Arc::new(Group::new(3, "default_pool_size = 3\n"));
    let stop = Arc::new(AtomicBool::new(false));
    let (hits, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let victims: Vec<Raw> = (0..6).map(|n| group.client(n % 3)).collect();
    let bystanders: Vec<Raw> = (0..6).map(|n| group.client(n % 3)).collect();
    let requests: Vec<_> = victims.iter().map(Raw::cancel_request).collect();
    let mut threads = Vec::new();
    for mut client in victims {
        let (stop, hits) = (Arc::clone(&stop), Arc::clone(&hits));
        threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let answer = client.query("select 1, pg_sleep(0.004)");
                match answer.iter().find(|m| m.tag == b'E') {
                    Some(error) => {
                        assert_eq!(error.field(b'C'), "57014");
                        hits.fetch_add(1, Ordering::Relaxed);
                    }
                    None => assert_eq!(tags(&answer), "TDCZ"),
                }
            }
        }));
    }
    for (n, mut client) in bystanders.into_iter().enumerate() {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        threads.push(std::thread::spawn(move || {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                let text = format!("{n}-{round}");
                assert_eq!(client.value(&format!("select '{text}', pg_sleep(0.002)")), text);
                round += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for n in 0..4 {
        let (stop, group, requests) = (Arc::clone(&stop), Arc::clone(&group), requests.clone());
        threads.push(std::thread::spawn(move || {
            let mut next = n;
            while !stop.load(Ordering::Relaxed) {
                cancel(Raw::tcp(group.port), &requests[next % requests.len()]);
                next += 1;
            }
        }));
    }
    std::thread::sleep(Duration::from_secs(4));
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let (hits, done) = (hits.load(Ordering::Relaxed), done.load(Ordering::Relaxed));
    assert!(hits > 20 && done > 100, "{hits} queries were canceled, {done} were not");
    for member in 0..3 {
        wait_until("nothing is left", || {
            let quiet = |pool: &String| pool.ends_with(" 0 0 0 0");
            group.peer_pools(member).iter().all(quiet)
        });
        assert!(!group.members[member].all().contains("impossible change of state"));
    }
}
