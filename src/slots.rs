//! A table with stable, generational places: a stale key never finds a newer tenant.
//!
//! May import nothing of the crate. Pure.

use std::marker::PhantomData;

/// A place in a [`Slots`] of `T`.
#[derive(Debug)]
pub struct Key<T> {
    index: u32,
    generation: u32,
    tenant: PhantomData<fn() -> T>,
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}

impl<T> Eq for Key<T> {}

impl<T> Key<T> {
    /// The key in 64 bits, for a lane or a timer.
    #[must_use]
    pub const fn pack(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    /// The reverse of [`Key::pack`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are what pack put there")]
    pub const fn unpack(packed: u64) -> Self {
        Self { index: packed as u32, generation: (packed >> 32) as u32, tenant: PhantomData }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    tenant: Option<T>,
}

/// Places of a page. A table grows by pages, so that no growth copies a large table, and leaves none of its old memory behind.
const PAGE: usize = 1024;

/// See the module's text.
#[derive(Debug)]
pub struct Slots<T> {
    /// All but the last are full.
    pages: Vec<Vec<Slot<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Inserts a tenant.
    ///
    /// # Panics
    /// Above four billion tenants, which every table's own limit is far below.
    pub fn insert(&mut self, tenant: T) -> Key<T> {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slot_mut(index)
        {
            slot.tenant = Some(tenant);
            return Key { index, generation: slot.generation, tenant: PhantomData };
        }
        let index = u32::try_from(self.places()).expect("tables are bounded far below 2^32");
        match self.pages.last_mut().filter(|page| page.len() < PAGE) {
            Some(page) => page.push(Slot { generation: 0, tenant: Some(tenant) }),
            None => {
                // Most tables stay small.
                let mut page = Vec::with_capacity(if self.pages.is_empty() { 1 } else { PAGE });
                page.push(Slot { generation: 0, tenant: Some(tenant) });
                self.pages.push(page);
            }
        }
        Key { index, generation: 0, tenant: PhantomData }
    }

    fn slot(&self, index: usize) -> Option<&Slot<T>> {
        self.pages.get(index / PAGE)?.get(index % PAGE)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.pages.get_mut(index as usize / PAGE)?.get_mut(index as usize % PAGE)
    }

    /// Removes a tenant.
    pub fn remove(&mut self, key: Key<T>) -> Option<T> {
        let slot = self.slot_mut(key.index).filter(|slot| slot.generation == key.generation)?;
        let tenant = slot.tenant.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(tenant)
    }

    /// The tenant of a place.
    #[must_use]
    pub fn get(&self, key: Key<T>) -> Option<&T> {
        self.slot(key.index as usize).filter(|slot| slot.generation == key.generation)?.tenant.as_ref()
    }

    /// The tenant of a place.
    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        self.slot_mut(key.index).filter(|slot| slot.generation == key.generation)?.tenant.as_mut()
    }

    /// The number of tenants.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places() - self.free.len()
    }

    /// Returns `true` if there is no tenant.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All tenants, by place.
    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.pages.iter().flatten().enumerate().filter_map(|(index, slot)| {
            let key = Key { index: u32::try_from(index).ok()?, generation: slot.generation, tenant: PhantomData };
            slot.tenant.as_ref().map(|tenant| (key, tenant))
        })
    }

    /// The tenant at a position of the table, for a sweep that goes round in small steps; positions wrap at [`Slots::places`].
    #[must_use]
    pub fn at(&self, position: usize) -> Option<(Key<T>, &T)> {
        let slot = self.slot(position)?;
        let key = Key { index: u32::try_from(position).ok()?, generation: slot.generation, tenant: PhantomData };
        slot.tenant.as_ref().map(|tenant| (key, tenant))
    }

    /// Places, free ones included.
    #[must_use]
    pub fn places(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slots = Slots::default();
        let first = slots.insert("a");
        assert_eq!(slots.remove(first), Some("a"));
        let second = slots.insert("b");
        assert_eq!((slots.get(first), slots.get(second)), (None, Some(&"b")));
        assert_eq!(Key::unpack(second.pack()), second);
        assert_eq!((slots.len(), slots.places()), (1, 1));
    }

    #[test]
    fn tenants_are_found_on_every_page() {
        let mut slots = Slots::default();
        let keys: Vec<Key<usize>> = (0..3 * PAGE + 10).map(|number| slots.insert(number)).collect();
        assert!(keys.iter().enumerate().all(|(number, key)| slots.get(*key) == Some(&number)));
        assert_eq!((slots.places(), slots.remove(keys[PAGE])), (3 * PAGE + 10, Some(PAGE)));
        assert_eq!((slots.get(keys[PAGE]), slots.at(PAGE).is_none(), slots.at(PAGE + 1).unwrap().1), (None, true, &(PAGE + 1)));
        assert_eq!(slots.iter().map(|(_, number)| *number).sum::<usize>(), (0..3 * PAGE + 10).sum::<usize>() - PAGE);
        let again = slots.insert(7);
        assert_eq!((slots.len(), slots.places(), slots.get(again)), (3 * PAGE + 10, 3 * PAGE + 10, Some(&7)));
        *slots.get_mut(again).unwrap() = 8;
        assert_eq!(slots.at(PAGE).map(|(key, number)| (key == again, *number)), Some((true, 8)));
        assert_eq!(slots.at(3 * PAGE + 10).map(|(_, number)| *number), None);
    }
}
