//! SHOW tables of a known scene (admin 3): who is connected to a real PostgreSQL, and what is in our memory.

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::raw::Raw;
use crate::rig::wait_until;
use crate::rig::wire::{query, rows, startup, tags};

/// A result of SHOW.
struct Shown {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Shown {
    fn of(console: &mut Raw, topic: &str) -> Self {
        let answer = console.query(&format!("SHOW {topic}"));
        assert!(tags(&answer).starts_with('T'), "{topic}: {answer:?}");
        let text = |cell: Option<String>| cell.unwrap_or_else(|| "NULL".to_owned());
        let names = answer[0].cells().into_iter().map(text).collect();
        let cells = |row: Vec<_>| row.into_iter().map(text).collect();
        Self { names, rows: rows(&answer).into_iter().map(cells).collect() }
    }

    /// Some columns of all rows, each row as one text.
    fn columns(&self, wanted: &str) -> Vec<String> {
        let place =
            |name| self.names.iter().position(|n| n == name).unwrap_or_else(|| panic!("no {name}"));
        let places: Vec<usize> = wanted.split(' ').map(place).collect();
        let row = |row: &Vec<String>| {
            places.iter().map(|at| row[*at].as_str()).collect::<Vec<_>>().join(" ")
        };
        self.rows.iter().map(row).collect()
    }

    /// The rest of the row that begins with this.
    fn row(&self, first: &str) -> String {
        let row = self.rows.iter().find(|row| row[0] == first);
        row.unwrap_or_else(|| panic!("no {first}"))[1..].join(" ")
    }
}

/// `one` has two servers at most, `two` is reached by name.
fn start() -> (Pooler, String) {
    let database = postgres().new_database();
    let at = format!("port={} dbname={database}", postgres().port);
    let databases = format!(
        "one = host=127.0.0.1 {at} pool_size=2 max_db_connections=9\ntwo = host=localhost {at}\n\
         [peers]\n7 = host=127.0.0.1 port=7777 pool_size=3\n3 = host=/nowhere\n"
    );
    let settings = "pool_mode = transaction\n".to_owned();
    let users = "\"trusty\" \"\"\n".to_owned();
    (Pooler::start(&Setup { databases, settings, users }), database)
}

fn client(pooler: &Pooler, database: &str, name: &str) -> Raw {
    let hello =
        startup(0, &[("user", "trusty"), ("database", database), ("application_name", name)]);
    pooler.tcp().login_with(&hello, "trusty", "").unwrap_or_else(|e| panic!("no login: {e:?}")).0
}

/// Everybody of the scene; connections live as long as this.
struct Scene {
    console: Raw,
    holder: Raw,
    half: Raw,
    waiter: Raw,
    _idle: Raw,
    _over_unix: Raw,
    _stranger: Raw,
    /// Process ids of the servers: of the holder, of the half packet's client, of nobody.
    pids: [String; 3],
}

const HALF: &str = "select 12345";

/// Clients in a transaction, in the middle of a packet, waiting, idle (over TCP and over a Unix socket) and logging in; two
/// servers are active, one is idle.
fn scene(pooler: &Pooler) -> Scene {
    let mut console = pooler.console();
    let pid = |raw: &mut Raw| raw.value("select pg_backend_pid()");
    let mut holder = client(pooler, "one", "holder");
    assert_eq!(tags(&holder.query("begin")), "CZ");
    let mut half = client(pooler, "one", "half");
    let pids = [pid(&mut holder), pid(&mut half), pid(&mut client(pooler, "two", "gone"))];
    half.send(&query(HALF)[..9]);
    let mut waiter = client(pooler, "one", "waiter");
    wait_until("both servers are active", || pooler.pool("one", "sv_active") == 2);
    waiter.send(&query("select 3"));
    let over_unix = pooler.unix().login("trusty", "two", "").unwrap_or_else(|e| panic!("{e:?}")).0;
    let idle = client(pooler, "one", "idle");
    let mut stranger = pooler.tcp();
    stranger.send(&[0, 0]);
    wait_until("everybody is known", || {
        let states = Shown::of(&mut console, "SOCKETS").columns("state recv_pos");
        ["cl_login 2", "cl_waiting 14"].iter().all(|state| states.contains(&(*state).to_owned()))
            && Shown::of(&mut console, "LISTS").row("used_clients") == "7"
    });
    Scene {
        console,
        holder,
        half,
        waiter,
        _idle: idle,
        _over_unix: over_unix,
        _stranger: stranger,
        pids,
    }
}

#[test]
fn connections_are_shown_with_their_states_and_buffers() {
    let (pooler, _) = start();
    let mut at = scene(&pooler);
    let all = Shown::of(&mut at.console, "SOCKETS");
    let buffer = "recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail";
    assert_eq!(
        all.columns(&format!("type user database state application_name {buffer}")),
        [
            "C trusty one cl_active holder 0 0 0 0 0 0 0",
            "C trusty one cl_active half 0 0 9 0 0 0 0",
            "C trusty one cl_active idle 0 0 0 0 0 0 0",
            "C trusty one cl_waiting waiter 14 0 0 0 0 14 0",
            "S trusty one sv_active holder 0 0 0 0 0 0 0",
            "S trusty one sv_active half 0 0 0 0 0 0 0",
            "C admin pgbouncer cl_active  18 0 0 0 0 18 0",
            "C trusty two cl_active  0 0 0 0 0 0 0",
            "S trusty two sv_idle gone 0 0 0 0 0 0 0",
            "C (nouser) (nodb) cl_login  2 0 0 0 0 2 0",
        ]
    );
    let busy = Shown::of(&mut at.console, "ACTIVE_SOCKETS");
    assert_eq!(
        busy.columns(&format!("state {buffer}")),
        [
            "cl_active 0 0 9 0 0 0 0",
            "cl_waiting 14 0 0 0 0 14 0",
            "cl_active 25 0 0 0 0 25 0",
            "cl_login 2 0 0 0 0 2 0",
        ]
    );
    let clients = Shown::of(&mut at.console, "CLIENTS");
    let port = pooler.port;
    let own = std::process::id();
    assert_eq!(
        clients.columns("database state addr local_addr local_port remote_pid replication"),
        [
            format!("one active 127.0.0.1 127.0.0.1 {port} 0 none"),
            format!("one active 127.0.0.1 127.0.0.1 {port} 0 none"),
            format!("one idle 127.0.0.1 127.0.0.1 {port} 0 none"),
            format!("one waiting 127.0.0.1 127.0.0.1 {port} 0 none"),
            format!("pgbouncer idle 127.0.0.1 127.0.0.1 {port} 0 none"),
            format!("two idle unix unix {port} {own} none"),
        ]
    );
    assert_eq!(clients.columns("port")[5], port.to_string());
    let servers = Shown::of(&mut at.console, "SERVERS");
    let places = servers.columns("database state close_needed remote_pid port");
    let sql = postgres().port;
    let [first, second, third] = &at.pids;
    assert_eq!(
        places,
        [
            format!("one active 0 {first} {sql}"),
            format!("one active 0 {second} {sql}"),
            format!("two idle 0 {third} {sql}"),
        ]
    );
    assert_eq!(clients.columns("link")[..2], servers.columns("ptr")[..2]);
    assert_eq!(servers.columns("link")[..2], clients.columns("ptr")[..2]);
    assert_eq!(all.columns("ptr")[..3], clients.columns("ptr")[..3]);
    assert_eq!(clients.columns("link")[2..], ["", "", "", ""]);
}

#[test]
fn everybody_is_counted() {
    let (pooler, database) = start();
    let mut at = scene(&pooler);
    let console = &mut at.console;
    let pools = Shown::of(console, "POOLS");
    let counts = "database user cl_active cl_waiting sv_active sv_idle sv_used sv_tested sv_login";
    assert_eq!(
        pools.columns(counts),
        [
            "one trusty 3 1 2 0 0 0 0",
            "pgbouncer pgbouncer 1 0 0 0 0 0 0",
            "two trusty 1 0 0 1 0 0 0",
        ]
    );
    let databases = Shown::of(console, "DATABASES");
    let counts =
        "name database pool_size max_connections current_connections current_client_connections";
    assert_eq!(
        databases.columns(counts),
        [
            format!("one {database} 2 9 2 4"),
            "pgbouncer pgbouncer 2 0 0 1".to_owned(),
            format!("two {database} 20 0 1 1"),
        ]
    );
    let users = Shown::of(console, "USERS");
    assert_eq!(
        users.columns("name current_connections current_client_connections"),
        ["admin 0 1", "pgbouncer 0 0", "trusty 3 5"]
    );
    let lists = Shown::of(console, "LISTS");
    for (name, want) in [
        ("databases", 3),
        ("users", 3),
        ("peers", 2),
        ("pools", 3),
        ("peer_pools", 0),
        ("used_clients", 7),
        ("login_clients", 1),
        ("used_servers", 3),
        ("dns_names", 1),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ] {
        assert_eq!(lists.row(name), want.to_string(), "{name}");
    }
    let hosts = Shown::of(console, "DNS_HOSTS");
    assert_eq!(hosts.columns("hostname"), ["localhost"]);
    let (ttl, addrs) = (&hosts.rows[0][1], &hosts.rows[0][2]);
    assert!((1..=15).contains(&ttl.parse::<u32>().unwrap()), "{ttl}");
    assert!(addrs.split(',').all(|addr| ["127.0.0.1:0", "[::1]:0"].contains(&addr)), "{addrs}");
    assert_eq!(Shown::of(console, "DNS_ZONES").rows.len(), 0);
    let peers = Shown::of(console, "PEERS").rows;
    assert_eq!(peers, [["3", "/nowhere", "6432", "20"], ["7", "127.0.0.1", "7777", "3"]]);
    assert_eq!(Shown::of(console, "PEER_POOLS").rows.len(), 0);
}

#[test]
fn memory_follows_what_happens() {
    let (pooler, _) = start();
    let mut at = scene(&pooler);
    let used = |console: &mut Raw, name: &str| -> usize {
        let row = Shown::of(console, "MEM").row(name);
        row.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let console = &mut at.console;
    let mem = Shown::of(console, "MEM");
    for row in &mem.rows {
        let numbers: Vec<u64> = row[1..].iter().map(|cell| cell.parse().unwrap()).collect();
        assert_eq!(numbers[3], numbers[0] * (numbers[1] + numbers[2]), "{row:?}");
    }
    for (name, want) in [
        ("user_cache", 3),
        ("db_cache", 3),
        ("peer_cache", 2),
        ("pool_cache", 3),
        ("server_cache", 3),
        ("client_cache", 7),
        // The waiter's query, and the two bytes of who is logging in.
        ("iobuf_cache", 2),
        // What is owed for half a query; the idle transaction owes nothing.
        ("outstanding_request_cache", 1),
        ("peer_pool_cache", 0),
        ("server_prepared_statement_cache", 0),
    ] {
        assert_eq!(used(console, name), want, "{name} {:?}", mem.rows);
    }
    at.half.send(&query(HALF)[9..]);
    assert_eq!(at.half.until(b'Z')[1].cells()[0].as_deref(), Some("12345"));
    assert_eq!(at.waiter.until(b'Z')[1].cells()[0].as_deref(), Some("3"));
    assert_eq!(tags(&at.holder.query("commit")), "CZ");
    assert_eq!(used(console, "iobuf_cache"), 1);
    assert_eq!(used(console, "outstanding_request_cache"), 0);
    let states = Shown::of(console, "SOCKETS").columns("state pkt_remain pkt_avail");
    let rest = states.into_iter().filter(|state| !state.ends_with(" 0 0")).collect::<Vec<_>>();
    assert_eq!(rest, ["cl_active 0 18", "cl_login 0 2"]);
    let idle = Shown::of(console, "SERVERS").columns("database state remote_pid");
    let [first, second, third] = &at.pids;
    let want = [(1, first), (1, second), (2, third)]
        .map(|(n, pid)| format!("{} idle {pid}", if n == 1 { "one" } else { "two" }));
    assert_eq!(idle, want, "the holder's server was released last");
}

#[test]
fn what_a_slow_reader_does_not_take_is_its_servers() {
    let (pooler, _) = start();
    let mut console = pooler.console();
    let mut slow = pooler.client("one");
    slow.send(&query("select repeat('x', 1000) from generate_series(1, 30000)"));
    wait_until("bytes are kept", || {
        let rows =
            Shown::of(&mut console, "ACTIVE_SOCKETS").columns("state recv_pos pkt_pos send_avail");
        rows.iter().any(|row| row.starts_with("sv_active ") && !row.ends_with(" 0"))
    });
    let shown = Shown::of(&mut console, "ACTIVE_SOCKETS");
    for row in shown.columns("recv_pos pkt_pos send_pos pkt_avail send_avail") {
        let n: Vec<i64> = row.split(' ').map(|n| n.parse().unwrap()).collect();
        assert_eq!((n[3], n[4]), (n[0] - n[1], n[1] - n[2]), "{row}");
    }
    assert_eq!(slow.until(b'Z').iter().filter(|m| m.tag == b'D').count(), 30_000);
    assert_eq!(Shown::of(&mut console, "ACTIVE_SOCKETS").columns("state"), ["cl_active"]);
}
