//! Doubly linked lists threaded through the objects of an [`Arena`]: each object is in at most one.

use super::{Arena, Id};

/// The pair of links that each object carries.
pub struct Links<T> {
    prev: Option<Id<T>>,
    next: Option<Id<T>>,
}

impl<T> Default for Links<T> {
    fn default() -> Self {
        Links { prev: None, next: None }
    }
}

/// An object that can be in a list.
pub trait Linked: Sized {
    /// Its links.
    fn links(&self) -> &Links<Self>;
    /// Its links.
    fn links_mut(&mut self) -> &mut Links<Self>;
}

/// A list: its ends and its length.
pub struct List<T> {
    head: Option<Id<T>>,
    tail: Option<Id<T>>,
    len: usize,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { head: None, tail: None, len: 0 }
    }
}

impl<T: Linked> List<T> {
    /// The first object.
    pub fn head(&self) -> Option<Id<T>> {
        self.head
    }

    /// The last object.
    pub fn tail(&self) -> Option<Id<T>> {
        self.tail
    }

    /// How many objects are in the list.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no object is in the list.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an object that is in no list at the front.
    pub fn push_front(&mut self, arena: &mut Arena<T>, id: Id<T>) {
        let Some(item) = arena.get_mut(id) else {
            return;
        };
        *item.links_mut() = Links { prev: None, next: self.head };
        match self.head.and_then(|head| arena.get_mut(head)) {
            Some(old) => old.links_mut().prev = Some(id),
            None => self.tail = Some(id),
        }
        self.head = Some(id);
        self.len += 1;
    }

    /// Adds an object that is in no list at the end.
    pub fn push_back(&mut self, arena: &mut Arena<T>, id: Id<T>) {
        let Some(item) = arena.get_mut(id) else {
            return;
        };
        *item.links_mut() = Links { prev: self.tail, next: None };
        match self.tail.and_then(|tail| arena.get_mut(tail)) {
            Some(old) => old.links_mut().next = Some(id),
            None => self.head = Some(id),
        }
        self.tail = Some(id);
        self.len += 1;
    }

    /// Takes an object out of this list, which must be the one that it is in.
    pub fn remove(&mut self, arena: &mut Arena<T>, id: Id<T>) {
        let Some(item) = arena.get_mut(id) else {
            return;
        };
        let Links { prev, next } = std::mem::take(item.links_mut());
        match prev.and_then(|prev| arena.get_mut(prev)) {
            Some(before) => before.links_mut().next = next,
            None => self.head = next,
        }
        match next.and_then(|next| arena.get_mut(next)) {
            Some(after) => after.links_mut().prev = prev,
            None => self.tail = prev,
        }
        self.len -= 1;
    }

    /// The object after `id` in its list.
    pub fn after(arena: &Arena<T>, id: Id<T>) -> Option<Id<T>> {
        arena.get(id)?.links().next
    }

    /// The keys from head to tail.
    pub fn ids(&self, arena: &Arena<T>) -> Vec<Id<T>> {
        let mut ids = Vec::with_capacity(self.len);
        let mut at = self.head;
        while let Some(id) = at {
            ids.push(id);
            at = Self::after(arena, id);
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Item(u8, Links<Item>);
    impl Linked for Item {
        fn links(&self) -> &Links<Item> {
            &self.1
        }
        fn links_mut(&mut self) -> &mut Links<Item> {
            &mut self.1
        }
    }

    #[test]
    fn order_survives_removal_at_every_place() {
        for gone in 0..4_usize {
            let mut arena = Arena::default();
            let mut list = List::default();
            let ids: Vec<_> = (0..4).map(|n| arena.insert(Item(n, Links::default()))).collect();
            list.push_back(&mut arena, ids[1]);
            list.push_back(&mut arena, ids[2]);
            list.push_front(&mut arena, ids[0]);
            list.push_back(&mut arena, ids[3]);
            list.remove(&mut arena, ids[gone]);
            let left: Vec<u8> = list
                .ids(&arena)
                .iter()
                .filter_map(|id| arena.get(*id))
                .map(|item| item.0)
                .collect();
            let want: Vec<u8> = (0..4).filter(|n| usize::from(*n) != gone).collect();
            assert_eq!(left, want);
            assert_eq!(list.len(), 3);
            list.push_front(&mut arena, ids[gone]);
            assert_eq!(list.head(), Some(ids[gone]));
        }
    }
}
