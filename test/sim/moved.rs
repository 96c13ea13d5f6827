//! Keys of one core in terms of the next: who is who after a handoff, in everything that the
//! simulator remembers.

use crate::net::Key;
use pgturnstile::base::Micros;
use pgturnstile::core::pool::PoolId;
use pgturnstile::core::{ClientId, Core, Peer, ServerId};
use std::collections::{BTreeMap, BTreeSet};

/// Who is who.
#[derive(Default)]
pub struct Moved {
    pub clients: BTreeMap<ClientId, ClientId>,
    pub servers: BTreeMap<ServerId, ServerId>,
    pools: BTreeMap<PoolId, PoolId>,
}

impl Moved {
    /// Pools are the same by their names.
    pub fn new(old: &Core, new: &Core) -> Moved {
        let mut moved = Moved::default();
        let names = new.pools().map(|(id, pool)| (pool.names(), id));
        let names: BTreeMap<(&str, &str), PoolId> = names.collect();
        let same =
            |(id, pool)| Some((id, *names.get(&pgturnstile::core::pool::Pool::names(pool))?));
        moved.pools = old.pools().filter_map(same).collect();
        for (peer, id, _) in old.peer_pools() {
            let same = new.peer_pools().find(|(other, _, _)| *other == peer);
            moved.pools.extend(same.map(|(_, new, _)| (id, new)));
        }
        moved
    }

    /// These two are the same.
    pub fn note(&mut self, old: Peer, new: Peer) {
        match (old, new) {
            (Peer::Client(old), Peer::Client(new)) => {
                self.clients.insert(old, new);
            }
            (Peer::Server(old), Peer::Server(new)) => {
                self.servers.insert(old, new);
            }
            _ => {}
        }
    }

    /// Says it in terms of the new core; what is about somebody who did not go over is left out.
    pub fn apply<T: Move + Default>(&self, thing: &mut T) {
        *thing = std::mem::take(thing).moved(self).unwrap_or_default();
    }
}

/// Something in which there may be keys.
pub trait Move: Sized {
    /// The same in terms of the new core; `None` if it is about somebody who did not go over.
    fn moved(self, moved: &Moved) -> Option<Self>;
}

impl Move for ClientId {
    fn moved(self, moved: &Moved) -> Option<ClientId> {
        moved.clients.get(&self).copied()
    }
}

impl Move for ServerId {
    fn moved(self, moved: &Moved) -> Option<ServerId> {
        moved.servers.get(&self).copied()
    }
}

impl Move for PoolId {
    fn moved(self, moved: &Moved) -> Option<PoolId> {
        moved.pools.get(&self).copied()
    }
}

impl Move for Peer {
    fn moved(self, moved: &Moved) -> Option<Peer> {
        match self {
            Peer::Client(id) => id.moved(moved).map(Peer::Client),
            Peer::Server(id) => id.moved(moved).map(Peer::Server),
        }
    }
}

impl Move for Key {
    fn moved(self, moved: &Moved) -> Option<Key> {
        crate::net::peer_of(self).moved(moved).map(crate::net::key)
    }
}

/// What has no key in it stays as it is.
macro_rules! stays {
    ($($kind:ty),+) => {
        $(impl Move for $kind {
            fn moved(self, _: &Moved) -> Option<Self> {
                Some(self)
            }
        })+
    };
}

stays!(Micros, String, u64, crate::statistics::Flow, crate::net::Conn);

impl<A: Move, B: Move> Move for (A, B) {
    fn moved(self, moved: &Moved) -> Option<(A, B)> {
        Some((self.0.moved(moved)?, self.1.moved(moved)?))
    }
}

/// What is known of nobody any more is not known.
impl<T: Move> Move for Option<T> {
    fn moved(self, moved: &Moved) -> Option<Option<T>> {
        Some(self.and_then(|inner| inner.moved(moved)))
    }
}

impl<T: Move + Ord> Move for BTreeSet<T> {
    fn moved(self, moved: &Moved) -> Option<BTreeSet<T>> {
        Some(self.into_iter().filter_map(|item| item.moved(moved)).collect())
    }
}

impl<K: Move + Ord, V: Move> Move for BTreeMap<K, V> {
    fn moved(self, moved: &Moved) -> Option<BTreeMap<K, V>> {
        Some(self.into_iter().filter_map(|item| item.moved(moved)).collect())
    }
}
