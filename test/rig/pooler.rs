//! The pooler under test as a process.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::postgres::postgres;
use super::raw::{Login, Raw};
use super::scratch::{command, free_port, scratch, write};
use super::wait_until;
use super::wire::{last_error, query, rows, tags, Msg};

/// What a pooler is started with. `databases` and `settings` are lines of the ini file's sections.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) databases: String,
    /// Lines behind the rig's own, so they win.
    pub(crate) settings: String,
    /// The text of auth_file.
    pub(crate) users: String,
}

impl Setup {
    /// All databases of the run's PostgreSQL, over TCP, for users that are trusted, with these settings.
    pub(crate) fn trust(settings: &str) -> Self {
        Self {
            databases: format!("* = host=127.0.0.1 port={}\n", postgres().port),
            settings: settings.to_owned(),
            users: "\"trusty\" \"\"\n".to_owned(),
        }
    }
}

/// A pooler that runs until it is dropped. Its admin is `admin`, whose password is `admin-pw`.
pub(crate) struct Pooler {
    pub(crate) port: u16,
    /// Folder of ini, auth file, log, pid file and Unix socket.
    pub(crate) folder: PathBuf,
    child: Child,
    reaped: Option<ExitStatus>,
}

/// A pooler in transaction mode with these settings, and a database of its own.
pub(crate) fn in_transactions(settings: &str) -> (Pooler, String) {
    let setup = Setup::trust(&format!("pool_mode = transaction\n{settings}"));
    (Pooler::start(&setup), postgres().new_database())
}

/// The program under test, copied to where the unprivileged user can run it.
pub(crate) fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let built = env!("CARGO_BIN_EXE_pgturnstile");
        copied(std::env::var_os("PGTURNSTILE_BINARY").map_or_else(|| built.into(), PathBuf::from))
    })
}

/// Another process copies: a child that some other test forks meanwhile would keep a descriptor of
/// ours open for writing, and the program could not be started ("Text file busy").
fn copied(program: PathBuf) -> PathBuf {
    let copy = scratch().folder().join("pooler");
    let done = Command::new("cp").arg(&program).arg(&copy).status();
    assert!(done.is_ok_and(|status| status.success()), "{} can't be copied", program.display());
    copy
}

/// The ini file's text for a folder and a port.
fn ini(setup: &Setup, folder: &std::path::Path, port: u16) -> String {
    let at = folder.display();
    format!(
        "[databases]\n{}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir = {at}\nlogfile = {at}/log\npidfile = {at}/pid\nauth_file = {at}/users\n\
         auth_type = trust\nadmin_users = admin\nstats_users = stats\n{}\n",
        setup.databases, setup.settings
    )
}

/// See `Pooler::lines`.
fn shape(line: &str) -> Option<String> {
    let (_, text) = line.split_once("] ")?;
    let text = text.rsplit_once(" (age=").map_or(text, |(text, _)| text);
    let mut words = text.splitn(4, ' ');
    let (level, first) = (words.next()?, words.next()?);
    let Some((side @ ("C" | "S"), _)) = first.split_once("-0x") else {
        return Some(text.to_owned());
    };
    let who = words.next()?.split('@').next()?;
    Some(format!("{level} {side} {who} {}", words.next().unwrap_or_default()))
}

impl Pooler {
    /// Starts the program under test and waits until it is up.
    pub(crate) fn start(setup: &Setup) -> Self {
        Self::start_program(binary(), setup)
    }

    /// As `start`, with a given program.
    pub(crate) fn start_program(program: &PathBuf, setup: &Setup) -> Self {
        for _ in 0..10 {
            let port = free_port();
            let mut pooler = Self::launch(program, port, &|folder| ini(setup, folder, port), setup);
            wait_until("the pooler is up or gone", || {
                pooler.exited().is_some() || pooler.log().contains("process up: ")
            });
            let log = pooler.log();
            if log.contains("process up: ") && !log.contains("cannot listen on") {
                return pooler;
            }
            assert!(log.contains("cannot listen on"), "the pooler does not start: {log}");
        }
        panic!("found no port for the pooler");
    }

    /// Runs the program with any ini text (made from the folder) until it exits; returns status, standard error and log.
    pub(crate) fn run_to_end(text: &dyn Fn(&std::path::Path) -> String) -> (ExitStatus, String) {
        let setup = Setup::default();
        let mut pooler = Self::launch(binary(), 0, text, &setup);
        wait_until("the pooler exits", || pooler.exited().is_some());
        let errors = std::fs::read_to_string(pooler.folder.join("stderr")).unwrap();
        (pooler.exited().unwrap(), errors + &pooler.log())
    }

    /// Starts another program with `-R` and the same files; it takes over, and this is it then.
    pub(crate) fn replace(&mut self, program: &PathBuf) {
        let mut old = self.succeed(program);
        wait_until("the old one ends", || old.try_wait().unwrap().is_some());
        assert_eq!(old.wait().unwrap().code(), Some(0), "{}", self.log());
    }

    /// As `replace`; the old process, which may stay for the connections that it keeps.
    pub(crate) fn succeed(&mut self, program: &PathBuf) -> Child {
        let ups = self.log().matches("process up: ").count();
        let mut child = Self::spawn(program, &self.folder, &["-R"]);
        wait_until("the successor is up or gone", || {
            self.log().matches("process up: ").count() > ups || child.try_wait().unwrap().is_some()
        });
        let errors = std::fs::read_to_string(self.folder.join("stderr")).unwrap();
        assert!(self.log().matches("process up: ").count() > ups, "{errors}{}", self.log());
        self.reaped = None;
        std::mem::replace(&mut self.child, child)
    }

    /// Begins to replace it, by itself.
    pub(crate) fn attempt(&self) -> Child {
        Self::spawn(binary(), &self.folder, &["-R"])
    }

    /// Starts the program under test with `-R --adopt=soft`, which takes the old process's place and
    /// is this then; returns the old process.
    pub(crate) fn adopt(&mut self) -> Self {
        let ups = self.log().matches("process up: ").count();
        let mut child = Self::spawn(binary(), &self.folder, &["-R", "--adopt=soft"]);
        wait_until("the successor is up or gone", || {
            self.log().matches("process up: ").count() > ups || child.try_wait().unwrap().is_some()
        });
        let errors = std::fs::read_to_string(self.folder.join("stderr")).unwrap();
        assert!(self.log().matches("process up: ").count() > ups, "{errors}{}", self.log());
        let child = std::mem::replace(&mut self.child, child);
        let (port, folder) = (self.port, self.folder.clone());
        Self { port, folder, child, reaped: self.reaped.take() }
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts the program under test with `-R` while somebody else listens; it must fail. Its exit code.
    pub(crate) fn fail_to_replace(&self) -> Option<i32> {
        self.fail_to_start(&["-R"])
    }

    /// As `fail_to_replace`, with these switches.
    pub(crate) fn fail_to_start(&self, switches: &[&str]) -> Option<i32> {
        let mut child = Self::spawn(binary(), &self.folder, switches);
        wait_until("the successor gives up", || child.try_wait().unwrap().is_some());
        scratch().forget(child.id());
        child.wait().unwrap().code()
    }

    fn spawn(program: &PathBuf, folder: &std::path::Path, switches: &[&str]) -> Child {
        let mut errors = std::fs::File::options();
        let errors = errors.create(true).append(true).open(folder.join("stderr")).unwrap();
        let mut program = command(program);
        program.args(switches).arg(folder.join("ini")).stdout(Stdio::null()).stderr(errors);
        let child = program.spawn().unwrap();
        scratch().watch(child.id());
        child
    }

    fn launch(
        program: &PathBuf,
        port: u16,
        text: &dyn Fn(&std::path::Path) -> String,
        setup: &Setup,
    ) -> Self {
        let folder = scratch().folder();
        write(&folder.join("ini"), text(&folder));
        write(&folder.join("users"), format!("\"admin\" \"admin-pw\"\n{}", setup.users));
        let child = Self::spawn(program, &folder, &[]);
        Self { port, folder, child, reaped: None }
    }

    /// Rewrites ini and auth file; takes effect with a reload.
    pub(crate) fn rewrite(&self, setup: &Setup) {
        write(&self.folder.join("ini"), ini(setup, &self.folder, self.port));
        write(&self.folder.join("users"), format!("\"admin\" \"admin-pw\"\n{}", setup.users));
    }

    pub(crate) fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the log contains this text.
    pub(crate) fn wait_log(&self, text: &str) {
        let end = std::time::Instant::now() + super::DEADLINE;
        while !self.log().contains(text) {
            let is_over = std::time::Instant::now() >= end;
            assert!(!is_over, "the log lacks: {text}\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// The log's lines without time, process, addresses and ages, such as `LOG C db/user closing because: x`.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log().lines().filter_map(shape).collect()
    }

    /// Waits until `lines` has all of these in this order.
    pub(crate) fn wait_lines(&self, expected: &[&str]) {
        wait_until(&format!("log has {expected:#?}\nin {}", self.folder.display()), || {
            let lines = self.lines();
            let mut rest = lines.iter();
            expected.iter().all(|wanted| rest.any(|line| line == wanted))
        });
    }

    /// How often a line is among `lines`.
    pub(crate) fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|l| *l == line).count()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// The exit status, if the process has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.reaped.is_none() {
            self.reaped = self.child.try_wait().unwrap();
            if self.reaped.is_some() {
                scratch().forget(self.child.id());
            }
        }
        self.reaped
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        wait_until("the pooler exits", || self.exited().is_some());
        self.exited().unwrap()
    }

    /// The peak of resident memory in kB.
    pub(crate) fn peak_memory_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn tcp(&self) -> Raw {
        Raw::tcp(self.port)
    }

    pub(crate) fn unix(&self) -> Raw {
        Raw::unix(&self.folder, self.port)
    }

    /// A logged-in client of a trusted user.
    pub(crate) fn client(&self, database: &str) -> Raw {
        self.login("trusty", database, "").unwrap_or_else(|e| panic!("no login: {e:?}")).0
    }

    /// An attempt to log in over TCP.
    pub(crate) fn login(&self, user: &str, database: &str, password: &str) -> Login {
        self.tcp().login(user, database, password)
    }

    /// The FATAL text of a login that must fail; its SQLSTATE must be the pooler's own.
    pub(crate) fn refusal(&self, user: &str, database: &str, password: &str) -> String {
        let Err(msgs) = self.login(user, database, password) else {
            panic!("user {user} got into {database}")
        };
        let (severity, code, text) = last_error(&msgs);
        assert_eq!((severity.as_str(), code.as_str()), ("FATAL", "08P01"), "{text}");
        text
    }

    /// The console as admin.
    pub(crate) fn console(&self) -> Raw {
        let login = self.login("admin", "pgbouncer", "admin-pw");
        login.unwrap_or_else(|e| panic!("no console: {e:?}")).0
    }

    /// A console command that must succeed; returns what it answered.
    pub(crate) fn command(&self, sql: &str) -> Vec<Msg> {
        let answer = self.console().query(sql);
        assert!(!tags(&answer).contains('E'), "{sql}: {answer:?}");
        answer
    }

    /// A column of a SHOW command, for rows in which `filter` (column, value) holds.
    pub(crate) fn show(&self, topic: &str, column: &str, filter: (&str, &str)) -> Vec<String> {
        let answer = self.command(&format!("SHOW {topic}"));
        let names = answer.iter().find(|m| m.tag == b'T').unwrap().cells();
        let at = |name: &str| {
            let found = names.iter().position(|n| n.as_deref() == Some(name));
            found.unwrap_or_else(|| panic!("SHOW {topic} has no column {name}"))
        };
        let (wanted, key) = (at(column), at(filter.0));
        let rows = rows(&answer).into_iter().filter(|row| row[key].as_deref() == Some(filter.1));
        rows.map(|row| row[wanted].clone().unwrap_or_default()).collect()
    }

    /// A number of SHOW POOLS for a database with one pool; 0 before there is a pool.
    pub(crate) fn pool(&self, database: &str, column: &str) -> i64 {
        let values = self.show("POOLS", column, ("database", database));
        values.first().map_or(0, |v| v.parse().unwrap())
    }

    /// The process ids of a database's servers, in the order of SHOW SERVERS.
    pub(crate) fn servers(&self, database: &str) -> Vec<String> {
        self.show("SERVERS", "remote_pid", ("database", database))
    }

    /// A client inside a transaction.
    pub(crate) fn holder(&self, database: &str) -> Raw {
        let mut client = self.client(database);
        assert_eq!(tags(&client.query("begin")), "CZ");
        client
    }

    /// A client whose query waits for a server.
    pub(crate) fn waiter(&self, database: &str, sql: &str) -> Raw {
        let before = self.pool(database, "cl_waiting");
        let mut client = self.client(database);
        client.send(&query(sql));
        wait_until("it waits", || self.pool(database, "cl_waiting") == before + 1);
        client
    }

    /// Checks that the process still serves: console and a query, for setups that reach PostgreSQL.
    pub(crate) fn assert_serves(&mut self, database: &str) {
        assert_eq!(self.exited(), None, "the pooler died: {}", self.log());
        assert_eq!(self.client(database).value("select 40 + 2"), "42");
    }

    /// psql through the pooler over TCP, without password prompt.
    pub(crate) fn psql(&self, user: &str, database: &str, password: &str) -> Command {
        let mut psql = postgres().tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"]);
        psql.args(["-p", &self.port.to_string(), "-U", user, "-d", database]);
        psql.env("PGPASSWORD", password);
        psql
    }

    /// The parameters of a driver's connection.
    pub(crate) fn dsn(&self, user: &str, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={user} dbname={database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if self.exited().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            scratch().forget(self.child.id());
        }
    }
}
