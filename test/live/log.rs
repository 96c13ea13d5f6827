//! What is logged, where to and in which form (config 6).

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::rig::pooler::{Pooler, Setup};
use crate::rig::postgres::postgres;
use crate::rig::run::{texts, Run};
use crate::rig::scratch::unprivileged;
use crate::rig::wire::{msg, query};
use crate::rig::{wait_until, DEADLINE};

/// A text whose digits are replaced by `9`, runs of them by one.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_digit() { '9' } else { c };
        if c != '9' || !shape.ends_with('9') {
            shape.push(c);
        }
    }
    shape
}

/// A log line's text with its `0x` number replaced by `ID`.
fn without_id(text: &str) -> String {
    match text.split_once("-0x").and_then(|(a, b)| Some((a, b.split_once(':')?.1))) {
        Some((before, after)) => format!("{before}-ID:{after}"),
        None => text.to_owned(),
    }
}

#[test]
fn lines_have_time_zone_process_and_level() {
    let running = Run::new("logfile = log").env("TZ", "XYZ-3").up();
    let line = running.read("log").lines().next().unwrap().to_owned();
    let start = line.split_once(" kernel").unwrap().0;
    assert_eq!(shape(start), "9-9-9 9:9:9.9 XYZ [9] LOG");
    let (time, rest) = start.split_at(23);
    assert_eq!(rest, format!(" XYZ [{}] LOG", running.pid));
    assert_eq!([10, 13, 16, 19].map(|at| &time[at..=at]), [" ", ":", ":", "."]);
    assert_eq!(running.read("stderr"), running.read("log"), "one does not switch off the other");
}

#[test]
fn rotated_file_gets_the_reload_line_and_the_next_one_is_new() {
    for signal in [true, false] {
        let running = Run::new("logfile = log").up();
        let mut console = running.console();
        fs::rename(running.path("log"), running.path("old")).unwrap();
        let line = match signal {
            true => {
                running.signal(Signal::SIGHUP);
                "LOG got SIGHUP, re-reading config"
            }
            false => {
                console.query("RELOAD");
                "LOG RELOAD command issued"
            }
        };
        wait_until("it has reloaded", || running.texts().iter().any(|text| text == line));
        let old = running.read("old");
        assert_eq!(texts(&old).last().map(String::as_str), Some(line));
        assert!(!running.path("log").exists(), "only a line makes a file");
        running.signal(Signal::SIGUSR2);
        wait_until("there is a new file", || running.read("log").ends_with('\n'));
        let want = ["LOG got SIGUSR2, but not paused/suspended"];
        assert_eq!(texts(&running.read("log")), want);
        assert_eq!(running.read("old"), old);
    }
}

#[test]
fn file_that_cannot_be_reopened_ends_the_process() {
    let run = Run::new("logfile = sub/log\npidfile = pid").args(&["-q"]);
    fs::create_dir(run.folder.join("sub")).unwrap();
    fs::set_permissions(run.folder.join("sub"), PermissionsExt::from_mode(0o777)).unwrap();
    let mut running = run.start();
    wait_until("it is up", || running.read("sub/log").contains("process up: "));
    fs::remove_dir_all(running.path("sub")).unwrap();
    running.signal(Signal::SIGHUP);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(running.exited(), None, "nothing was to be written yet");
    running.signal(Signal::SIGUSR2);
    assert_eq!(running.code(), 1);
    let line = running.read("stderr");
    let want = format!(
        " {} FATAL Cannot open logfile: 'sub/log': No such file or directory\n",
        running.pid
    );
    assert!(line.ends_with(&want) && line.lines().count() == 1, "{line}");
    assert_eq!(shape(&line[..23]), "9-9-9 9:9:9.9");
    assert!(!running.socket().exists() && !running.path("pid").exists());

    let (code, lines) = Run::new("logfile = missing/log").failure();
    assert_eq!((code, lines.len()), (1, 1), "{lines:?}");
    assert!(
        lines[0].ends_with(" FATAL Cannot open logfile: 'missing/log': No such file or directory")
    );
}

#[test]
fn setting_another_file_counts_after_the_next_reload_only() {
    let running = Run::new("logfile = log").up();
    running.command("SET logfile = 'other'");
    running.command("SHOW VERSION");
    assert!(!running.path("other").exists());
    let lines = running.read("log").lines().count();
    running.run.rewrite("logfile = ");
    running.command("RELOAD");
    assert!(running.read("log").lines().count() > lines, "the line about the reload");
    let lines = running.read("log").lines().count();
    running.command("SHOW VERSION");
    assert_eq!(running.read("log").lines().count(), lines);
    // No file is open: SET opens one.
    running.command("SET logfile = 'other'");
    running.command("SHOW VERSION");
    assert!(running.read("other").contains("login attempt"));
}

#[test]
fn long_texts_are_cut_and_further_lines_indented() {
    let long = "k".repeat(3000);
    let (_, lines) = Run::new(&format!("{long} = 1")).failure();
    let line = lines[0].strip_prefix("ERROR ").unwrap();
    assert!(line.starts_with("unknown parameter: pgbouncer/kkk"));
    assert_eq!(line.len(), 2047);
    let mut running = Run::new("'one\ntwo' = 1").start();
    assert_eq!(running.code(), 1);
    let errors = running.read("stderr");
    assert!(errors.contains("ERROR unknown parameter: pgbouncer/one\n\ttwo\n"), "{errors}");
}

#[test]
fn verbosity_can_be_changed_while_it_runs() {
    let running = Run::new("logfile = log").up();
    let debug = |running: &crate::rig::run::Running| running.read("log").matches(" DEBUG ").count();
    running.command("RELOAD");
    assert_eq!(debug(&running), 0);
    running.command("SET verbose = 1");
    running.command("RELOAD");
    let seen = debug(&running);
    assert!(seen > 4, "{}", running.read("log"));
    assert!(running.read("log").contains("DEBUG loading auth_file: \"users\""));
    running.command("SET verbose = 0");
    running.command("RELOAD");
    assert_eq!(debug(&running), seen);
}

/// The lines that one client of each kind leaves, from its login on.
fn traces(settings: &str) -> Vec<String> {
    let pooler = Pooler::start(&Setup::trust(settings));
    let database = postgres().new_database();
    let before = pooler.log().len();
    drop(TcpStream::connect(("127.0.0.1", pooler.port)).unwrap());
    let mut one = pooler.client(&database);
    assert_eq!(one.value("select 1"), "1");
    one.bye();
    let unix = pooler.unix().login("nobody", &database, "");
    assert!(unix.is_err());
    let mut rude = pooler.client(&database);
    rude.send(&msg(b'!', b""));
    rude.rest();
    pooler.console().bye();
    wait_until("all are gone", || pooler.show("LISTS", "items", ("list", "used_clients")) == ["1"]);
    let log = pooler.log()[before..].replace(&database, "DB");
    let log = log.replace(&pooler.port.to_string(), "PORT");
    let log = log.replace(&postgres().port.to_string(), "PG");
    texts(&log).iter().map(|line| shape(&without_id(line))).collect()
}

#[test]
fn connections_leave_their_lines() {
    let lines = traces("");
    let wanted = [
        "LOG C-ID: DB/trusty@9.9.9.9:9 login attempt: db=DB user=trusty tls=no replication=no",
        "LOG S-ID: DB/trusty@9.9.9.9:PG new connection to server (from 9.9.9.9:9)",
        "LOG C-ID: DB/trusty@9.9.9.9:9 closing because: client close request (age=9s)",
        "LOG C-ID: DB/nobody@unix(9):PORT login attempt: db=DB user=nobody tls=no replication=no",
        "LOG C-ID: DB/nobody@unix(9):PORT closing because: \"trust\" authentication failed (age=9s)",
        "WARNING C-ID: DB/nobody@unix(9):PORT pooler error: \"trust\" authentication failed",
    ];
    let mut rest = lines.iter();
    for line in wanted {
        let wanted = line.replace("DB/nobody", "(nodb)/nobody");
        assert!(
            rest.any(|other| *other == line || *other == wanted),
            "no {line} in order in {lines:#?}"
        );
    }
    let silent = lines.iter().find(|line| line.contains("(nouser)") && line.contains("clos"));
    assert_eq!(silent, None, "who says nothing leaves no line");
}

#[test]
fn connections_over_unix_sockets_are_named_without_address() {
    let databases = format!("* = host={} port={}\n", postgres().folder.display(), postgres().port);
    let setup = Setup { databases, ..Setup::trust("") };
    let pooler = Pooler::start(&setup);
    let database = postgres().new_database();
    assert_eq!(pooler.client(&database).value("select 1"), "1");
    let lines: Vec<String> = texts(&pooler.log()).iter().map(|line| without_id(line)).collect();
    let at = format!("LOG S-ID: {database}/trusty@unix:{}", postgres().port);
    assert!(lines.contains(&format!("{at} new connection to server")), "{lines:#?}");

    // The program's own user needs no password on the console.
    let mut psql = postgres().tool("psql");
    psql.args(["-X", "-w", "-U", "pgbouncer", "-d", "pgbouncer", "-c", "show version"]);
    psql.arg("-h").arg(&pooler.folder).args(["-p", &pooler.port.to_string()]);
    assert!(psql.output().unwrap().status.success());
    let log = pooler.log();
    let line = log.lines().find(|line| line.ends_with(" pgbouncer access from unix socket"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(shape(line).contains(" LOG C-9x"), "{line}");
    assert!(shape(line).contains(": (nodb)/pgbouncer@unix(9):9 pgbouncer access"), "{line}");
    let attempt = "login attempt: db=pgbouncer user=pgbouncer tls=no replication=no";
    let line = log.lines().find(|line| line.ends_with(attempt));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(shape(line).contains(": pgbouncer/pgbouncer@unix(9):9 login attempt"), "{line}");
}

#[test]
fn lines_about_connections_can_be_switched_off() {
    let lines = traces("log_connections = 0\nlog_disconnections = 0\nlog_pooler_errors = 0\n");
    for absent in ["login attempt", "new connection", "closing because", "pooler error"] {
        assert!(!lines.iter().any(|line| line.contains(absent)), "{absent} in {lines:#?}");
    }
}

#[test]
fn statistics_come_with_their_period() {
    let setup = Setup::trust("stats_period = 2\nlog_stats = 1\npool_mode = transaction\n");
    let pooler = Pooler::start(&setup);
    let database = postgres().new_database();
    let mut client = pooler.client(&database);
    // Within one period, even on a slow machine.
    pooler.wait_log("LOG stats: ");
    let sent = query("select repeat('x', 1000)").len();
    for _ in 0..50 {
        client.value("select repeat('x', 1000)");
    }
    let stats = || -> Vec<String> {
        texts(&pooler.log()).into_iter().filter(|line| line.starts_with("LOG stats: ")).collect()
    };
    wait_until("two more lines", || stats().len() >= 3);
    let lines = stats();
    assert_eq!(
        shape(&lines[1]),
        "LOG stats: 9 xacts/s, 9 queries/s, 9 client parses/s, 9 server parses/s, 9 binds/s, \
         9 client logins/s, in 9 B/s, out 9 B/s, xact 9 us, query 9 us, wait 9 us"
    );
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    let sum = |at: usize| -> u64 { lines[1..].iter().map(|line| numbers(line)[at]).sum() };
    // 50 in 2 seconds, or a little more, rounded down; perhaps on both sides of a line.
    assert!((20..=25).contains(&sum(0)) && (20..=25).contains(&sum(1)), "{lines:?}");
    let bytes = 25 * sent as u64;
    assert!((bytes * 8 / 10..=bytes).contains(&sum(6)), "{lines:?}");
    assert!((20_000..27_000).contains(&sum(7)), "{lines:?}");
    assert!(sum(8) > 0 && sum(9) > 0, "{lines:?}");
    // Consoles count: one transaction, one query, one login each, but no bytes.
    let count = stats().len();
    wait_until("a new period", || stats().len() > count);
    for _ in 0..10 {
        pooler.command("SHOW VERSION");
    }
    wait_until("its end", || stats().len() > count + 2);
    let lines = &stats()[count + 1..];
    for at in [0, 1, 5] {
        let sum: u64 = lines.iter().map(|line| numbers(line)[at]).sum();
        assert!((4..=5).contains(&sum), "{lines:?}");
    }
    assert!(lines.iter().all(|line| numbers(line)[6..] == [0; 5]), "{lines:?}");
    pooler.command("SET log_stats = 0");
    let count = stats().len();
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(stats().len(), count);
}

/// True if a process may have mounts of its own.
fn can_mount() -> bool {
    let unshare = std::process::Command::new("unshare").args(["-m", "true"]).status();
    unshare.is_ok_and(|status| status.success())
}

#[test]
fn syslog_gets_lines_in_its_own_form() {
    let Some(user) = unprivileged().filter(|_| can_mount()) else {
        return;
    };
    // A /dev of its own, whose log is the test's.
    let inner = "for f in null urandom; do touch dev/$f; mount --bind /dev/$f dev/$f; done; \
                 mount --rbind dev /dev; exec \"$0\" \"$@\"";
    let settings = "verbose = 2\nsyslog = 1\nsyslog_facility = local3\nsyslog_ident = myid\n\
                    listen_addr = 127.0.0.1, 127.0.0.1";
    let run =
        Run::through(&format!("exec unshare -m /bin/sh -c '{inner}' \"$0\" \"$@\""), settings);
    let dev = run.folder.join("dev");
    fs::create_dir(&dev).unwrap();
    let logger = UnixDatagram::bind(dev.join("log")).unwrap();
    fs::set_permissions(dev.join("log"), PermissionsExt::from_mode(0o777)).unwrap();
    logger.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buf = [0; 4096];
    let mut next = || {
        let len = logger.recv(&mut buf).unwrap();
        String::from_utf8(buf[..len].to_vec()).unwrap()
    };
    let running = run.with_root().args(&["-q", "-u", &user.name]).start();
    let (pid, port) = (running.pid, running.run.port);
    let first = next();
    assert_eq!(
        shape(first.split_once(" kernel").unwrap().0),
        format!("<9>{} 9 9:9:9 myid[9]:", &first[5..8])
    );
    assert!(first.starts_with("<158>"), "{first}");
    let rest = |line: String| line.split_once(" myid[").unwrap().1.to_owned();
    assert_eq!(rest(next()), format!("{pid}]: listening on 127.0.0.1:{port}"));
    let warning = next();
    assert!(warning.starts_with("<156>"), "{warning}");
    assert!(rest(next()).contains("]: listening on unix:"));
    assert!(rest(next()).contains("]: process up: PgBouncer 1.25.2"));

    let mut console = running.console();
    assert!(next().contains("login attempt"));
    console.query("SET syslog = 0");
    console.query("RELOAD");
    running.signal(Signal::SIGUSR2);
    assert!(next().contains("got SIGUSR2"), "the line about the reload came before it");
    console.query("SET syslog_facility = 'user'");
    console.query("SET syslog_ident = 'other'");
    running.run.rewrite(&settings.replace("local3", "user").replace("myid", "other"));
    console.query("RELOAD");
    let line = next();
    assert!(line.starts_with("<158>") && line.contains(" myid["), "{line}");
    running.signal(Signal::SIGUSR2);
    let line = next();
    assert!(line.starts_with("<14>") && line.contains(" other["), "{line}");
    assert_eq!(running.read("stderr"), "");
}
