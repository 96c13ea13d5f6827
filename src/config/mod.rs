//! What the configuration files say: typed settings, databases, users, peers. Pure: files are read
//! through a closure.

pub mod settings;
pub mod value;

pub use settings::{param, Param, SetError, Settings, When, PARAMS};
pub use value::{AuthType, Flag, LoadBalance, PoolMode, Secret, SslMode, Value};
