//! A list that is nearly always empty, and then costs one word.

use std::ops::{Deref, DerefMut};

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::box_collection, reason = "one word instead of three is the point")]
pub struct Few<T>(Option<Box<Vec<T>>>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Few<T> {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Adds an item at the end.
    pub fn push(&mut self, item: T) {
        self.0.get_or_insert_default().push(item);
    }

    /// Adds an item at a place.
    ///
    /// # Panics
    /// If the place is behind the end.
    pub fn insert(&mut self, place: usize, item: T) {
        self.0.get_or_insert_default().insert(place, item);
    }

    /// Keeps the items for which `keep` is true. The memory is freed with the last one.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if let Some(items) = &mut self.0 {
            items.retain(keep);
            if items.is_empty() {
                self.0 = None;
            }
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let items: Vec<T> = items.into_iter().collect();
        Self((!items.is_empty()).then(|| Box::new(items)))
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0.as_deref_mut().map_or(&mut [], Vec::as_mut_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_list_and_forgets_its_memory() {
        let mut few = Few::default();
        assert!(few.is_empty());
        (0..3).for_each(|item| few.push(item));
        few.retain(|item| *item != 1);
        assert_eq!(*few, [0, 2]);
        few.insert(1, 1);
        few.retain(|item| *item != 1);
        assert_eq!(*few, [0, 2]);
        few.iter_mut().for_each(|item| *item += 1);
        few.retain(|_| false);
        assert!(few.is_empty() && few.0.is_none());
        assert!((0..0).collect::<Few<u8>>().0.is_none());
        assert_eq!(*(0..2).collect::<Few<u8>>(), [0, 1]);
        assert_eq!(size_of::<Few<u64>>(), size_of::<usize>());
    }
}
