//! One PostgreSQL per test binary: a TCP port, a socket folder, a role per login method.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::OnceLock;

use super::certs::certs;
use super::scratch::{command, free_port, scratch, write};
use super::wait_until;

/// Which client reaches which role how. The superuser `postgres` is trusted: it is the tests' own.
const HBA: &str = "
local all trusty,postgres            trust
local all plainy                     password
local all md5y                       md5
local all scramy,passer              scram-sha-256
host  all trusty,postgres 127.0.0.1/32 trust
host  all plainy          127.0.0.1/32 password
host  all md5y            127.0.0.1/32 md5
host  all scramy,passer   127.0.0.1/32 scram-sha-256
";

/// A role per login method; the password of each is its name and `-pw`.
const ROLES: &str = "
create role trusty login superuser;
set password_encryption = 'scram-sha-256';
create role plainy login password 'plainy-pw';
create role scramy login password 'scramy-pw';
create role passer login password 'passer-pw';
set password_encryption = 'md5';
create role md5y login password 'md5y-pw';
";

/// A running PostgreSQL.
pub(crate) struct Postgres {
    /// Its port on 127.0.0.1; part of its socket's name, too.
    pub(crate) port: u16,
    /// The folder of its Unix socket.
    pub(crate) folder: PathBuf,
    bin: PathBuf,
}

/// The PostgreSQL of this run, started on first use.
pub(crate) fn postgres() -> &'static Postgres {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    POSTGRES.get_or_init(|| Postgres::start(HBA, &[]))
}

/// A second PostgreSQL that speaks TLS, too, and lets its users in with TLS only.
pub(crate) fn tls_postgres() -> &'static Postgres {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    POSTGRES.get_or_init(|| {
        let certs = certs().display();
        let options = [
            "ssl=on".to_owned(),
            format!("ssl_cert_file={certs}/server.crt"),
            format!("ssl_key_file={certs}/server.key"),
            format!("ssl_ca_file={certs}/ca.crt"),
        ];
        Postgres::start(&HBA.replace("\nhost ", "\nhostssl "), &options)
    })
}

/// A second PostgreSQL from which `trusty` may replicate, and others may not.
pub(crate) fn primary() -> &'static Postgres {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    POSTGRES.get_or_init(|| {
        let rules = "local replication trusty trust\nhost replication trusty 127.0.0.1/32 trust\n";
        let options = ["wal_level=logical", "max_wal_senders=50", "max_replication_slots=50"];
        Postgres::start(&format!("{HBA}{rules}"), &options.map(String::from))
    })
}

/// Where PostgreSQL's programs are: `PG_BINDIR`, else the newest of Debian's folders, else the folder of `initdb` in `PATH`.
pub(crate) fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("PG_BINDIR") {
        return folder.into();
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = newest.or_else(|| std::env::split_paths(&path).find(|p| p.join("initdb").exists()));
    found.expect("no PostgreSQL programs found; set PG_BINDIR")
}

impl Postgres {
    fn start(hba: &str, options: &[String]) -> Self {
        let bin = programs();
        let folder = scratch().folder();
        let data = folder.join("data");
        let made = command(bin.join("initdb"))
            .args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        write(&data.join("pg_hba.conf"), hba);
        let port = launch(&bin, &folder, &data, options);
        let postgres = Self { port, folder, bin };
        let out = postgres.psql("postgres", ROLES);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        postgres
    }

    /// Runs SQL as superuser, not through a pooler, on a socket of its own.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> Output {
        let mut psql = self.tool("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]);
        psql.arg(&self.folder).args(["-p", &self.port.to_string(), "-d", database, "-c", sql]);
        psql.output().unwrap()
    }

    /// The single value of a superuser's query, as text.
    pub(crate) fn value(&self, database: &str, sql: &str) -> String {
        let out = self.psql(database, sql);
        assert!(out.status.success(), "{sql}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Creates a database that only the calling test uses, and returns its name.
    pub(crate) fn new_database(&self) -> String {
        let name = format!("db{}", scratch().serial());
        self.value("postgres", &format!("create database {name} template template0"));
        self.value(&name, "grant all on schema public to public");
        name
    }

    /// As `new_database`, with pgbench's tables for everybody.
    pub(crate) fn new_bench_database(&self) -> String {
        let database = self.new_database();
        let mut tool = self.tool("pgbench");
        tool.args(["-i", "-q", "-U", "postgres", "-h"]).arg(&self.folder);
        tool.args(["-p", &self.port.to_string(), &database]);
        assert!(tool.stderr(Stdio::null()).status().unwrap().success());
        self.value(&database, "grant all on all tables in schema public to public");
        database
    }

    /// One of PostgreSQL's programs, to be run as the unprivileged user; killed if it hangs.
    pub(crate) fn tool(&self, program: &str) -> std::process::Command {
        let mut tool = command("timeout");
        tool.args(["-s", "KILL", "60"]).arg(self.bin.join(program));
        tool
    }
}

/// Starts the server on a port that nobody else took meanwhile; returns the port.
fn launch(bin: &Path, folder: &Path, data: &Path, options: &[String]) -> u16 {
    for _ in 0..10 {
        let port = free_port();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut child = command(bin.join("postgres"))
            .arg("-D")
            .arg(data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-k"])
            .arg(folder)
            .args(["-c", "fsync=off", "-c", "max_connections=300", "-c", "log_min_messages=fatal"])
            .args(options.iter().flat_map(|option| ["-c", option]))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        scratch().watch(child.id());
        let mut gone = false;
        wait_until("PostgreSQL is ready", || {
            gone = child.try_wait().unwrap().is_some();
            let ready = || {
                // By its own socket: on the port somebody else's may answer.
                let mut probe = command(bin.join("pg_isready"));
                probe.args(["-q", "-p", &port.to_string(), "-h"]).arg(folder);
                probe.status().unwrap().success()
            };
            gone || ready()
        });
        if !gone {
            return port;
        }
        scratch().forget(child.id());
    }
    panic!("PostgreSQL does not start: {}", std::fs::read_to_string(folder.join("log")).unwrap());
}
