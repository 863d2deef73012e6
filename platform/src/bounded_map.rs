//! A map with a fixed capacity, which replaces its oldest entry when it is full.

use std::collections::{BTreeMap, VecDeque};

/// A map of at most `capacity` entries.
///
/// If a new key would exceed the capacity, the entry whose key was inserted first is removed.
/// Inserting a key again changes its value, not its age.
///
/// # Example
/// ```
/// use blobferry_platform::bounded_map::BoundedMap;
///
/// let mut map = BoundedMap::new(2);
/// map.insert("a", 1);
/// map.insert("b", 2);
/// assert_eq!(map.insert("c", 3), Some(("a", 1)));
/// assert_eq!((map.get("a"), map.get("b"), map.len()), (None, Some(&2), 2));
/// ```
#[derive(Clone, Debug)]
pub struct BoundedMap<K, V> {
    capacity: usize,
    values: BTreeMap<K, V>,
    /// The keys in the order of their insertion.
    order: VecDeque<K>,
}

impl<K: Ord + Clone, V> BoundedMap<K, V> {
    /// Creates an empty map for at most `capacity` entries (at least 1). Allocates nothing yet.
    #[must_use]
    pub const fn new(capacity: usize) -> BoundedMap<K, V> {
        let capacity = if capacity == 0 { 1 } else { capacity };
        BoundedMap { capacity, values: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Returns the value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.values.get(key)
    }

    /// Returns the value of a key, to change it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.values.get_mut(key)
    }

    /// Sets the value of a key. Returns the entry that was removed because the map was full.
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if self.values.insert(key.clone(), value).is_some() {
            return None;
        }
        self.order.push_back(key);
        if self.order.len() <= self.capacity {
            return None;
        }
        let oldest = self.order.pop_front()?;
        self.values.remove_entry(&oldest)
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether the map has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_makes_space_for_a_new_key() {
        let mut map = BoundedMap::new(3);
        assert!(map.is_empty());
        for n in 0..3 {
            assert_eq!(map.insert(n, n), None);
        }
        assert_eq!(map.insert(3, 3), Some((0, 0)));
        assert_eq!((map.get(&0), map.get(&1), map.len()), (None, Some(&1), 3));
    }

    #[test]
    fn a_key_inserted_again_keeps_its_age() {
        let mut map = BoundedMap::new(2);
        map.insert("a", 1);
        map.insert("b", 2);
        assert_eq!(map.insert("a", 3), None);
        assert_eq!(map.get("a"), Some(&3));
        assert_eq!(map.insert("c", 4), Some(("a", 3)));
    }

    #[test]
    fn a_value_can_be_changed_in_place() {
        let mut map = BoundedMap::new(1);
        map.insert(1, 1);
        *map.get_mut(&1).unwrap() = 5;
        assert_eq!(map.get(&1), Some(&5));
        assert_eq!(map.get_mut(&2), None);
    }

    #[test]
    fn the_capacity_is_at_least_one() {
        let mut map = BoundedMap::new(0);
        map.insert(1, 1);
        assert_eq!(map.len(), 1);
    }
}
