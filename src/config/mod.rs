//! What the configuration files say: typed settings, databases, users, peers. Pure: files are read
//! through a closure.

pub mod settings;
pub mod value;

pub use settings::{param, Param, SetError, Settings, When, PARAMS};
use std::collections::BTreeMap;
pub use value::{AuthType, Flag, LoadBalance, PoolMode, Secret, SslMode, Value};
/// stub
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatabaseEntry {
    pub dbname: String,
    pub host: Option<String>,
    pub port: u16,
    pub user: Option<String>,
    pub password: Option<String>,
    pub client_encoding: Option<String>,
    pub datestyle: Option<String>,
    pub timezone: Option<String>,
    pub application_name: Option<String>,
    pub pool_size: Option<i32>,
    pub min_pool_size: Option<i32>,
    pub reserve_pool_size: Option<i32>,
    pub pool_mode: Option<PoolMode>,
    pub server_lifetime: Option<i32>,
    pub load_balance_hosts: Option<LoadBalance>,
    pub connect_query: Option<String>,
    pub auth_dbname: Option<String>,
    pub auth_query: Option<String>,
}
/// stub
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserEntry {
    pub pool_mode: Option<PoolMode>,
    pub pool_size: Option<i32>,
}
/// stub
pub struct Config {
    pub settings: Settings,
    pub databases: BTreeMap<String, DatabaseEntry>,
    pub autodb: Option<String>,
    pub users: BTreeMap<String, UserEntry>,
}
/// stub
pub fn parse_autodb(_n: &str, _s: &str, _j: &mut crate::base::Journal) -> Option<DatabaseEntry> {
    None
}
