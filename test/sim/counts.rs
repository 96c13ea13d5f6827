//! The oracle of what the console counts.

use crate::world::World;
use pgturnstile::core::client::{Client, ClientState};
use pgturnstile::core::pool::Pool;

impl World {
    /// What SHOW DATABASES and SHOW USERS say is what there is. Clients without a pool may have named
    /// a database already.
    pub fn check_counts(&self) {
        let core = &self.core;
        let servers = |fits: &dyn Fn(&Pool) -> bool| -> usize {
            core.pools().filter(|(_, pool)| fits(pool)).map(|(_, pool)| pool.server_count()).sum()
        };
        let is_cancel = |client: &Client| {
            matches!(client.state(), ClientState::WaitingCancel | ClientState::ActiveCancel)
        };
        let all = || core.clients().iter().map(|(_, client)| client);
        let undecided = all().filter(|client| client.pool().is_none()).count();
        for (id, database) in core.databases() {
            let of = |client: &Client| client.pool().and_then(|pool| core.pool(pool));
            let mine = |client: &&Client| of(client).is_some_and(|pool| pool.database() == id);
            let clients = all().filter(mine).filter(|client| !is_cancel(client)).count();
            let shown = (database.server_count(), database.client_count());
            let fits = (clients..=clients + undecided).contains(&shown.1);
            if shown.0 != servers(&|pool| pool.database() == id) || !fits {
                let name = database.name();
                self.fail(&format!("COUNTS: {name} shows {shown:?}, has {clients} clients"));
            }
        }
        for (_, user) in core.users() {
            let shown = user.server_count();
            if shown != servers(&|pool| pool.names().1 == &**user.name()) {
                self.fail(&format!("COUNTS: {} shows {shown} servers", user.name()));
            }
        }
        let of_users: usize = core.users().map(|(_, user)| user.client_count()).sum();
        if of_users > all().filter(|client| !is_cancel(client)).count() {
            self.fail(&format!("COUNTS: users show {of_users} clients"));
        }
    }
}
