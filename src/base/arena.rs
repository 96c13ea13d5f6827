//! A slab whose keys carry a generation, so that a key that has outlived its object names nothing.

use slab::Slab;
use std::fmt;
use std::marker::PhantomData;

/// The key of a `T` in an [`Arena`]. Two keys are equal only if they name the same object.
pub struct Id<T> {
    index: u32,
    generation: u32,
    kind: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// Rebuilds a key from its two halves, as they travel through an event token.
    pub fn from_parts(index: u32, generation: u32) -> Self {
        Id { index, generation, kind: PhantomData }
    }

    /// A key that names nothing.
    pub fn none() -> Self {
        Id::from_parts(u32::MAX, 0)
    }

    /// The slot number.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How often the slot was given out before.
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && self.generation == other.generation
    }
}
impl<T> Eq for Id<T> {}
impl<T> PartialOrd for Id<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Id<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.index, self.generation).cmp(&(other.index, other.generation))
    }
}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// Generations wrap at 30 bits, the room that an event token has for them.
pub const GENERATION_MASK: u32 = (1 << 30) - 1;

/// Owner of all objects of one kind.
pub struct Arena<T> {
    slots: Slab<(u32, T)>,
    next_generation: u32,
}

/// How much memory objects of one kind take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Bytes of one of them, without what it refers to.
    pub size: usize,
    /// How many are in use.
    pub used: usize,
    /// For how many more there is memory already.
    pub free: usize,
}

impl Objects {
    /// How many bytes all of them take.
    pub fn bytes(&self) -> usize {
        self.size.saturating_mul(self.used.saturating_add(self.free))
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Arena { slots: Slab::new(), next_generation: 1 }
    }
}

impl<T> Arena<T> {
    /// Stores `value` and returns its key.
    pub fn insert(&mut self, value: T) -> Id<T> {
        let generation = self.next_generation;
        self.next_generation = (generation + 1) & GENERATION_MASK;
        let index = self.slots.insert((generation, value));
        Id::from_parts(index as u32, generation)
    }

    /// Takes the object out; `None` if the key is stale.
    pub fn remove(&mut self, id: Id<T>) -> Option<T> {
        self.get(id)?;
        Some(self.slots.remove(id.index as usize).1)
    }

    /// The object behind a key, if it still exists.
    #[inline]
    pub fn get(&self, id: Id<T>) -> Option<&T> {
        match self.slots.get(id.index as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// The object behind a key, if it still exists.
    #[inline]
    pub fn get_mut(&mut self, id: Id<T>) -> Option<&mut T> {
        match self.slots.get_mut(id.index as usize) {
            Some((generation, value)) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// All objects in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Id<T>, &T)> {
        self.slots
            .iter()
            .map(|(index, (generation, value))| (Id::from_parts(index as u32, *generation), value))
    }

    /// All objects in slot order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Id<T>, &mut T)> {
        self.slots
            .iter_mut()
            .map(|(index, (generation, value))| (Id::from_parts(index as u32, *generation), value))
    }

    /// All keys in slot order.
    pub fn ids(&self) -> Vec<Id<T>> {
        self.iter().map(|(id, _)| id).collect()
    }

    /// How many objects exist.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// For how many more objects there is room already.
    pub fn spare(&self) -> usize {
        self.slots.capacity().saturating_sub(self.slots.len())
    }

    /// What the objects take.
    pub fn objects(&self) -> Objects {
        Objects { size: size_of::<(u32, T)>(), used: self.len(), free: self.spare() }
    }

    /// True if no object exists.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// A second table under the keys of an `Arena<T>`: what another floor keeps about the same object.
pub struct Side<T, U> {
    slots: Vec<Option<(u32, U)>>,
    len: usize,
    kind: PhantomData<fn() -> T>,
}

impl<T, U> Default for Side<T, U> {
    fn default() -> Self {
        Side { slots: Vec::new(), len: 0, kind: PhantomData }
    }
}

impl<T, U> Side<T, U> {
    /// Stores `value` beside the object that `id` names, replacing what an older object left.
    pub fn insert(&mut self, id: Id<T>, value: U) {
        let index = id.index as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            if slot.replace((id.generation, value)).is_none() {
                self.len += 1;
            }
        }
    }

    /// Takes the value out; `None` if the key is stale.
    pub fn remove(&mut self, id: Id<T>) -> Option<U> {
        self.get(id)?;
        self.len -= 1;
        self.slots.get_mut(id.index as usize)?.take().map(|(_, value)| value)
    }

    /// The value beside the object that `id` names.
    #[inline]
    pub fn get(&self, id: Id<T>) -> Option<&U> {
        match self.slots.get(id.index as usize) {
            Some(Some((generation, value))) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// The value beside the object that `id` names.
    #[inline]
    pub fn get_mut(&mut self, id: Id<T>) -> Option<&mut U> {
        match self.slots.get_mut(id.index as usize) {
            Some(Some((generation, value))) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// All values with their keys, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Id<T>, &U)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            slot.as_ref()
                .map(|(generation, value)| (Id::from_parts(index as u32, *generation), value))
        })
    }

    /// How many values are stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_key_names_nothing() {
        let mut arena = Arena::default();
        let first = arena.insert("a");
        assert_eq!(arena.remove(first), Some("a"));
        let second = arena.insert("b");
        assert_eq!(first.index(), second.index());
        assert_eq!(arena.get(first), None);
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.get(second), Some(&"b"));
    }

    #[test]
    fn side_checks_the_generation() {
        let mut arena = Arena::default();
        let mut side: Side<&str, u8> = Side::default();
        let first = arena.insert("a");
        side.insert(first, 1);
        arena.remove(first);
        let second = arena.insert("b");
        assert_eq!(side.get(second), None);
        side.insert(second, 2);
        assert_eq!((side.get(first), side.get(second), side.len()), (None, Some(&2), 1));
        assert_eq!(side.remove(first), None);
        assert_eq!(side.remove(second), Some(2));
        assert!(side.is_empty());
    }
}
