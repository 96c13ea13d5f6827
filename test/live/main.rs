//! Live tests: the pooler as a process between real clients and a real PostgreSQL (or a fake one that misbehaves).

#[path = "../rig/mod.rs"]
mod rig;

mod auth;
mod auth_query;
mod averages;
mod binding;
mod cancel;
mod cert;
mod console;
mod console_commands;
mod console_drivers;
mod console_settings;
mod console_stats;
mod console_tables;
mod console_waits;
mod copy;
mod defects;
mod drivers;
mod fds;
mod garbage;
mod hba;
mod jobs;
mod ldap;
mod limits;
mod listen;
mod log;
mod memory;
mod methods;
mod pam;
mod parameters;
mod pooling;
mod process;
mod protocol;
mod servers;
mod sharing;
mod shutdown;
mod signals;
mod slapd;
mod suspend;
mod timeouts;
mod tls_clients;
mod tls_reload;
mod tls_servers;
mod tls_streams;
mod upkeep;
