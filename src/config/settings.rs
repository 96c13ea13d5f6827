//! The table of the `[pgbouncer]` parameters, in the order of `SHOW CONFIG` (config 3.2).
//! Everything that is said about a parameter is said in its row here.

use super::value::{AuthType, Flag, PoolMode, SslMode, SslNegotiation, Value};
use crate::base::Micros;

/// When a new value of a parameter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At once, by RELOAD or `SET`.
    Reload,
    /// At the next start only; until then assignments are accepted and ignored.
    Restart,
}

/// One row of the table.
pub struct Param {
    /// Name in the file.
    pub name: &'static str,
    /// Text of the `default` column of SHOW CONFIG; `None` is NULL: never reset by a reload.
    pub default: Option<&'static str>,
    /// When a new value counts.
    pub when: When,
    /// Name of its type, for the manual.
    pub kind: &'static str,
    /// One or two sentences for the manual.
    pub help: &'static str,
    /// Parses and stores; false if the text is refused.
    pub set: fn(&mut Settings, &str) -> bool,
    /// Text of the `value` column of SHOW CONFIG.
    pub show: fn(&Settings) -> Option<String>,
    /// True if both have the same value.
    pub same: fn(&Settings, &Settings) -> bool,
}

/// Why an assignment failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetError {
    /// No parameter of that name.
    Unknown,
    /// The value is not acceptable; if there is more to say, an ERROR line to log.
    Refused(Option<&'static str>),
}

const NULL: Option<&'static str> = None;

const fn text(default: &'static str) -> Option<&'static str> {
    Some(default)
}

/// Name: type = default, when.
macro_rules! settings {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty = $default:expr, $when:ident;)+) => {
        /// All parameters, typed.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        impl Default for Settings {
            fn default() -> Self {
                Settings {
                    $($name: $default.and_then(<$type>::parse).unwrap_or_default(),)+
                }
            }
        }

        /// The table, in the order of SHOW CONFIG.
        pub static PARAMS: &[Param] = &[$(Param {
            name: stringify!($name),
            default: $default,
            when: When::$when,
            kind: <$type as Value>::KIND,
            help: concat!($($help),+).trim_ascii_start(),
            set: |settings, text| match Value::parse(text) {
                Some(value) => {
                    settings.$name = value;
                    true
                }
                None => false,
            },
            show: |settings| settings.$name.show(),
            same: |one, other| one.$name == other.$name,
        },)+];
    };
}

settings! {
    /// Users who may run every command on the console: a list of names separated by commas or
    /// blanks.
    admin_users: String = text(""), Reload;
    /// Set application_name to "NAME - HOST:PORT" when a client logs in.
    application_name_add_host: Flag = text("0"), Reload;
    /// Database in which auth_query is run; unset means the one that the client asked for.
    auth_dbname: Option<String> = NULL, Reload;
    /// File with user names and passwords; read at start and reload only.
    auth_file: Option<String> = NULL, Reload;
    /// HBA file, read at start and reload if auth_type is hba.
    auth_hba_file: String = text(""), Reload;
    /// File that maps system users to database users, for HBA rules with peer and cert.
    auth_ident_file: Option<String> = NULL, Reload;
    /// Options for auth_type ldap.
    auth_ldap_options: Option<String> = NULL, Reload;
    /// Query that fetches a user's password; must return the name and the password.
    auth_query: String = text("SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin"), Reload;
    /// How clients prove who they are.
    auth_type: AuthType = text("md5"), Reload;
    /// User who runs auth_query for users that are not in auth_file.
    auth_user: Option<String> = NULL, Reload;
    /// Remove automatic databases that nobody used for longer than this; 0 is never.
    autodb_idle_timeout: Micros = text("3600"), Reload;
    /// Drop cancel requests that wait longer; 0 is never.
    cancel_wait_timeout: Micros = text("10"), Reload;
    /// Drop logged-in clients without a server that sent nothing for longer; 0 is never.
    client_idle_timeout: Micros = text("0"), Reload;
    /// Time that a client has for its login; 0 is without limit.
    client_login_timeout: Micros = text("60"), Reload;
    /// TLS 1.3 cipher suites for clients; unset means the library's default.
    client_tls13_ciphers: Option<String> = NULL, Reload;
    /// Certificates of the authorities that client certificates are checked against.
    client_tls_ca_file: String = text(""), Reload;
    /// Certificate shown to clients.
    client_tls_cert_file: String = text(""), Reload;
    /// Ciphers for clients up to TLS 1.2, in OpenSSL's syntax; "default", "secure", "fast" and
    /// "normal" mean the library's default.
    client_tls_ciphers: String = text("default"), Reload;
    /// Parameters of the DHE key exchange with clients: none or auto.
    client_tls_dheparams: String = text("auto"), Reload;
    /// Curve of the ECDHE key exchange with clients: none, auto or the name of a curve.
    client_tls_ecdhcurve: String = text("auto"), Reload;
    /// Private key of client_tls_cert_file.
    client_tls_key_file: String = text(""), Reload;
    /// TLS versions for clients: tlsv1.0 to tlsv1.3, all, secure, separated by commas or colons;
    /// an exclamation mark excludes one.
    client_tls_protocols: String = text("secure"), Reload;
    /// Whether clients may or must use TLS.
    client_tls_sslmode: SslMode = text("disable"), Reload;
    /// The configuration file that the next reload reads.
    conffile: Option<String> = NULL, Reload;
    /// How many servers a pool (a database and a user) may have; 0 is without limit.
    default_pool_size: i32 = text("20"), Reload;
    /// Drop clients that use the simple query protocol, also those of the console: it speaks the
    /// extended one, too.
    disable_pqexec: Flag = text("0"), Restart;
    /// How long an address found in the DNS is used.
    dns_max_ttl: Micros = text("15"), Reload;
    /// How long a failed DNS look-up is remembered.
    dns_nxdomain_ttl: Micros = text("15"), Reload;
    /// How often to look for changes of DNS zones; 0 is never.
    dns_zone_check_period: Micros = text("0"), Reload;
    /// Drop server and client that are idle in a transaction for longer; 0 is never.
    idle_transaction_timeout: Micros = text("0"), Reload;
    /// Start-up parameters to accept and drop: a list of names separated by commas or blanks.
    ignore_startup_parameters: String = text(""), Reload;
    /// Accepted for compatibility; has no effect.
    job_name: String = text("pgbouncer"), Restart;
    /// Addresses to listen on, separated by commas; * is all, nothing means no TCP.
    listen_addr: String = text(""), Restart;
    /// How many connections the system may queue for each listening socket.
    listen_backlog: i32 = text("128"), Restart;
    /// The port to listen on, for TCP and in the name of the Unix socket.
    listen_port: i32 = text("6432"), Restart;
    /// Log connects and logins.
    log_connections: Flag = text("1"), Reload;
    /// Log disconnects with their reason.
    log_disconnections: Flag = text("1"), Reload;
    /// Log the errors that the pooler sends to clients.
    log_pooler_errors: Flag = text("1"), Reload;
    /// Log a line of statistics each stats_period.
    log_stats: Flag = text("1"), Reload;
    /// File to append log lines to; nothing means no file.
    logfile: String = text(""), Reload;
    /// Text of a notice that every client gets during its login; nothing means none.
    login_notify_message: String = text(""), Reload;
    /// How many clients may be connected.
    max_client_conn: i32 = text("100"), Reload;
    /// How many clients a database may have; 0 is without limit.
    max_db_client_connections: i32 = text("0"), Reload;
    /// How many servers a database may have, all users together; 0 is without limit.
    max_db_connections: i32 = text("0"), Reload;
    /// The longest protocol packet that is accepted, in bytes.
    max_packet_size: u32 = text("2147483647"), Reload;
    /// How many prepared statements of the extended protocol are kept per server in transaction
    /// and statement mode; 0 is no support for them.
    max_prepared_statements: i32 = text("200"), Reload;
    /// How many clients a user may have; 0 is without limit.
    max_user_client_connections: i32 = text("0"), Reload;
    /// How many servers a user may have, all databases together; 0 is without limit.
    max_user_connections: i32 = text("0"), Reload;
    /// Keep at least this many servers in pools that are in use; 0 is off.
    min_pool_size: i32 = text("0"), Reload;
    /// Number of this process among peers that share an address; 0 is no peering.
    peer_id: i32 = text("0"), Reload;
    /// File to write the process id to; nothing means none.
    pidfile: String = text(""), Restart;
    /// How many bytes may wait for a connection before its source is no longer read.
    pkt_buf: i32 = text("4096"), Restart;
    /// When a server goes back to its pool.
    pool_mode: PoolMode = text("session"), Reload;
    /// Remove pools without clients and servers after this time; 0 is never.
    pool_idle_timeout: Micros = text("0"), Reload;
    /// Drop server and client if a query runs longer; 0 is never.
    query_timeout: Micros = text("0"), Reload;
    /// Whole seconds that a client waits for a server before it gets a notice; 0 is none.
    query_wait_notify: i32 = text("5"), Reload;
    /// Drop clients that wait longer for a server; 0 is never.
    query_wait_timeout: Micros = text("120"), Reload;
    /// How many servers a pool may have on top when clients wait too long; 0 is none.
    reserve_pool_size: i32 = text("0"), Reload;
    /// How long a client must wait before the reserve is used; 0 is no use of it.
    reserve_pool_timeout: Micros = text("5"), Reload;
    /// Configuration of the DNS resolver; nothing means the system's. Nameservers in this file may
    /// have a port: `[ADDRESS]:PORT`.
    resolv_conf: String = text(""), Restart;
    /// How many buffers are read from one connection before others have their turn; 0 is without
    /// limit.
    sbuf_loopcnt: i32 = text("5"), Reload;
    /// Iterations for SCRAM secrets that are made from passwords in clear text.
    scram_iterations: i32 = text("4096"), Reload;
    /// Check servers that were idle for longer before they are used again; 0 is always.
    server_check_delay: Micros = text("30"), Reload;
    /// Query of this check; nothing means no check, "<empty>" an empty query.
    server_check_query: String = text("<empty>"), Reload;
    /// Time that connecting and logging in to a server may take.
    server_connect_timeout: Micros = text("15"), Reload;
    /// In session mode, close servers that are due to be closed as soon as no transaction is open.
    server_fast_close: Flag = text("0"), Reload;
    /// Close servers that are idle for longer; 0 is never.
    server_idle_timeout: Micros = text("600"), Reload;
    /// Close unused servers that are older; 0 is after one use.
    server_lifetime: Micros = text("3600"), Reload;
    /// Pause after a failed connect or login before the next attempt.
    server_login_retry: Micros = text("15"), Reload;
    /// Query sent to a server that is released in session mode; nothing means none.
    server_reset_query: String = text("DISCARD ALL"), Reload;
    /// Send server_reset_query in the other pool modes too.
    server_reset_query_always: Flag = text("0"), Reload;
    /// Use the server that is idle for the longest time, not the shortest.
    server_round_robin: Flag = text("0"), Reload;
    /// TLS 1.3 cipher suites for servers; unset means the library's default.
    server_tls13_ciphers: Option<String> = NULL, Reload;
    /// Certificates of the authorities that server certificates are checked against.
    server_tls_ca_file: String = text(""), Reload;
    /// Certificate shown to servers.
    server_tls_cert_file: String = text(""), Reload;
    /// Ciphers for servers up to TLS 1.2, as in client_tls_ciphers.
    server_tls_ciphers: String = text("default"), Reload;
    /// Private key of server_tls_cert_file.
    server_tls_key_file: String = text(""), Reload;
    /// TLS versions for servers, as in client_tls_protocols.
    server_tls_protocols: String = text("secure"), Reload;
    /// Whether connections to servers may or must use TLS.
    server_tls_sslmode: SslMode = text("prefer"), Reload;
    /// How TLS begins with servers: postgres asks the server first, direct doesn't, which
    /// PostgreSQL 17 and later understand and server_tls_sslmode has to be at least require for.
    server_tls_sslnegotiation: SslNegotiation = text("postgres"), Reload;
    /// Share the TCP port with other processes that set this too.
    so_reuseport: Flag = text("0"), Restart;
    /// Whole seconds between lines of statistics; averages count from one to the next.
    stats_period: i32 = text("60"), Reload;
    /// Users who may run SHOW on the console: a list of names separated by commas or blanks.
    stats_users: String = text(""), Reload;
    /// Close connections that could not be flushed within this time by SUSPEND; 0 is to wait.
    suspend_timeout: Micros = text("10"), Reload;
    /// Send log lines to syslog.
    syslog: Flag = text("0"), Reload;
    /// Facility of these lines: auth, authpriv, daemon, user, local0 to local7.
    syslog_facility: String = text("daemon"), Reload;
    /// Name in front of these lines.
    syslog_ident: String = text("pgbouncer"), Reload;
    /// Accept TCP connections only when their first bytes are there.
    tcp_defer_accept: Flag = text("1"), Reload;
    /// Use TCP keep-alive.
    tcp_keepalive: Flag = text("1"), Reload;
    /// How many keep-alive probes may stay without answer; 0 is the system's default.
    tcp_keepcnt: i32 = text("0"), Reload;
    /// Whole seconds of silence before the first keep-alive probe; 0 is the system's default.
    tcp_keepidle: i32 = text("0"), Reload;
    /// Whole seconds between keep-alive probes; 0 is the system's default.
    tcp_keepintvl: i32 = text("0"), Reload;
    /// Size of the system's buffers of each TCP socket in bytes; 0 is the system's default.
    tcp_socket_buffer: i32 = text("0"), Reload;
    /// Milliseconds that sent bytes may stay without acknowledgement; 0 is the system's default.
    tcp_user_timeout: i32 = text("0"), Reload;
    /// Parameters to keep per client besides client_encoding, DateStyle, TimeZone,
    /// standard_conforming_strings and application_name: a list separated by commas.
    track_extra_parameters: String = text("IntervalStyle"), Restart;
    /// Drop server and client if a transaction is open for longer; 0 is never.
    transaction_timeout: Micros = text("0"), Reload;
    /// Directory of the Unix socket, also of the servers' if a database has no host; @ in front
    /// means the abstract namespace, nothing means no Unix socket.
    unix_socket_dir: String = text("/tmp"), Restart;
    /// Group of the Unix socket, a name or a number; nothing means the process's.
    unix_socket_group: String = text(""), Restart;
    /// Permissions of the Unix socket; write them with a leading 0.
    unix_socket_mode: i32 = text("0777"), Restart;
    /// System user to run as; the command line wins.
    user: Option<String> = NULL, Restart;
    /// How much to log: 1 adds DEBUG lines, 2 NOISE lines.
    verbose: i32 = NULL, Reload;
}

/// The row of a parameter. Names are case-sensitive.
pub fn param(name: &str) -> Option<&'static Param> {
    PARAMS.iter().find(|param| param.name == name)
}

impl Settings {
    /// Sets one parameter from text. Unless the process is starting, parameters that need a
    /// restart are accepted and left alone, whatever the text (config 3.1).
    pub fn assign(&mut self, name: &str, text: &str, starting: bool) -> Result<(), SetError> {
        let param = param(name).ok_or(SetError::Unknown)?;
        if param.when == When::Restart && !starting {
            return Ok(());
        }
        if name == "auth_dbname" && text == "pgbouncer" {
            return Err(SetError::Refused(Some(RESERVED_AUTH_DBNAME)));
        }
        match (param.set)(self, text) {
            true => Ok(()),
            false => Err(SetError::Refused(None)),
        }
    }

    /// What a `[pgbouncer]` header does: parameters that have a default go back to it; unless the
    /// process is starting, only those that a reload may change (config 2.4).
    pub fn reset(&mut self, starting: bool) {
        for param in PARAMS {
            if let (Some(default), true) = (param.default, starting || param.when == When::Reload) {
                (param.set)(self, default);
            }
        }
    }
}

/// The error of an auth_dbname that names the admin database.
pub const RESERVED_AUTH_DBNAME: &str =
    "cannot use the reserved \"pgbouncer\" database as an auth_dbname";

#[cfg(test)]
mod tests {
    use super::*;

    /// The listing of admin 3.12: key, default, changeable.
    const SHOW_CONFIG: &str = "
        admin_users | \"\" | yes
        application_name_add_host | 0 | yes
        auth_dbname | NULL | yes
        auth_file | NULL | yes
        auth_hba_file | \"\" | yes
        auth_ident_file | NULL | yes
        auth_ldap_options | NULL | yes
        auth_query | (see below) | yes
        auth_type | md5 | yes
        auth_user | NULL | yes
        autodb_idle_timeout | 3600 | yes
        cancel_wait_timeout | 10 | yes
        client_idle_timeout | 0 | yes
        client_login_timeout | 60 | yes
        client_tls13_ciphers | NULL | yes
        client_tls_ca_file | \"\" | yes
        client_tls_cert_file | \"\" | yes
        client_tls_ciphers | default | yes
        client_tls_dheparams | auto | yes
        client_tls_ecdhcurve | auto | yes
        client_tls_key_file | \"\" | yes
        client_tls_protocols | secure | yes
        client_tls_sslmode | disable | yes
        conffile | NULL | yes
        default_pool_size | 20 | yes
        disable_pqexec | 0 | no
        dns_max_ttl | 15 | yes
        dns_nxdomain_ttl | 15 | yes
        dns_zone_check_period | 0 | yes
        idle_transaction_timeout | 0 | yes
        ignore_startup_parameters | \"\" | yes
        job_name | pgbouncer | no
        listen_addr | \"\" | no
        listen_backlog | 128 | no
        listen_port | 6432 | no
        log_connections | 1 | yes
        log_disconnections | 1 | yes
        log_pooler_errors | 1 | yes
        log_stats | 1 | yes
        logfile | \"\" | yes
        login_notify_message | \"\" | yes
        max_client_conn | 100 | yes
        max_db_client_connections | 0 | yes
        max_db_connections | 0 | yes
        max_packet_size | 2147483647 | yes
        max_prepared_statements | 200 | yes
        max_user_client_connections | 0 | yes
        max_user_connections | 0 | yes
        min_pool_size | 0 | yes
        peer_id | 0 | yes
        pidfile | \"\" | no
        pkt_buf | 4096 | no
        pool_mode | session | yes
        pool_idle_timeout | 0 | yes
        query_timeout | 0 | yes
        query_wait_notify | 5 | yes
        query_wait_timeout | 120 | yes
        reserve_pool_size | 0 | yes
        reserve_pool_timeout | 5 | yes
        resolv_conf | \"\" | no
        sbuf_loopcnt | 5 | yes
        scram_iterations | 4096 | yes
        server_check_delay | 30 | yes
        server_check_query | <empty> | yes
        server_connect_timeout | 15 | yes
        server_fast_close | 0 | yes
        server_idle_timeout | 600 | yes
        server_lifetime | 3600 | yes
        server_login_retry | 15 | yes
        server_reset_query | DISCARD ALL | yes
        server_reset_query_always | 0 | yes
        server_round_robin | 0 | yes
        server_tls13_ciphers | NULL | yes
        server_tls_ca_file | \"\" | yes
        server_tls_cert_file | \"\" | yes
        server_tls_ciphers | default | yes
        server_tls_key_file | \"\" | yes
        server_tls_protocols | secure | yes
        server_tls_sslmode | prefer | yes
        server_tls_sslnegotiation | postgres | yes
        so_reuseport | 0 | no
        stats_period | 60 | yes
        stats_users | \"\" | yes
        suspend_timeout | 10 | yes
        syslog | 0 | yes
        syslog_facility | daemon | yes
        syslog_ident | pgbouncer | yes
        tcp_defer_accept | 1 | yes
        tcp_keepalive | 1 | yes
        tcp_keepcnt | 0 | yes
        tcp_keepidle | 0 | yes
        tcp_keepintvl | 0 | yes
        tcp_socket_buffer | 0 | yes
        tcp_user_timeout | 0 | yes
        track_extra_parameters | IntervalStyle | no
        transaction_timeout | 0 | yes
        unix_socket_dir | /tmp | no
        unix_socket_group | \"\" | no
        unix_socket_mode | 0777 | no
        user | NULL | no
        verbose | NULL | yes
    ";

    #[test]
    fn rows_are_those_of_show_config() {
        let rows: Vec<&str> = SHOW_CONFIG.trim().lines().map(str::trim).collect();
        assert_eq!((rows.len(), PARAMS.len()), (101, 101));
        for (row, param) in rows.iter().zip(PARAMS) {
            let default = match param.default {
                None => "NULL",
                Some("") => "\"\"",
                Some(_) if param.name == "auth_query" => "(see below)",
                Some(text) => text,
            };
            let changeable = match param.when {
                When::Reload => "yes",
                When::Restart => "no",
            };
            assert_eq!(*row, format!("{} | {default} | {changeable}", param.name));
        }
    }

    #[test]
    fn values_start_at_the_defaults() {
        let settings = Settings::default();
        for param in PARAMS {
            let want = match param.name {
                "verbose" => Some("0"),
                "unix_socket_mode" => Some("511"),
                _ => param.default,
            };
            assert_eq!((param.show)(&settings).as_deref(), want, "{}", param.name);
            assert!((param.same)(&settings, &Settings::default()));
            assert!(!param.help.is_empty() && param.help.ends_with('.'), "{}", param.name);
        }
    }

    #[test]
    fn assignments_follow_type_and_time() {
        use SetError::{Refused, Unknown};
        let reserved = Err(Refused(Some(RESERVED_AUTH_DBNAME)));
        for (name, text, starting, result, shown) in [
            ("listen_port", "7000", true, Ok(()), Some("7000")),
            ("listen_port", "7000", false, Ok(()), Some("6432")),
            ("listen_port", "abc", false, Ok(()), Some("6432")),
            ("listen_port", "abc", true, Err(Refused(None)), Some("6432")),
            ("user", "", true, Ok(()), Some("")),
            ("default_pool_size", "", false, Err(Refused(None)), Some("20")),
            ("log_stats", "yes", false, Err(Refused(None)), Some("1")),
            ("log_stats", "-3", false, Ok(()), Some("-3")),
            ("query_wait_timeout", "5s", false, Err(Refused(None)), Some("120")),
            ("query_wait_timeout", "0.5", false, Ok(()), Some("0.5")),
            ("max_packet_size", "-1", false, Ok(()), Some("4294967295")),
            ("pool_mode", "STATEMENT", false, Ok(()), Some("statement")),
            ("unix_socket_mode", "0770", true, Ok(()), Some("504")),
            ("conffile", "x.ini", false, Ok(()), Some("x.ini")),
            ("auth_dbname", "pgbouncer", false, reserved, None),
            ("auth_dbname", "postgres", false, Ok(()), Some("postgres")),
        ] {
            let mut settings = Settings::default();
            assert_eq!(settings.assign(name, text, starting), result, "{name} {text}");
            let show = param(name).and_then(|param| (param.show)(&settings));
            assert_eq!(show.as_deref(), shown, "{name} {text}");
        }
        for name in ["Listen_Port", "service_name", "", "listen_port "] {
            assert_eq!(Settings::default().assign(name, "1", true), Err(Unknown), "{name}");
        }
    }

    #[test]
    fn a_header_resets_what_has_a_default() {
        for (starting, port) in [(true, 6432), (false, 7000)] {
            let mut settings = Settings {
                listen_port: 7000,
                default_pool_size: 3,
                auth_file: Some("x".into()),
                verbose: 2,
                ..Settings::default()
            };
            settings.reset(starting);
            assert_eq!((settings.listen_port, settings.default_pool_size), (port, 20));
            assert_eq!((settings.auth_file.as_deref(), settings.verbose), (Some("x"), 2));
        }
    }
}
