//! Values under small stable numbers, for use as epoll tokens.

/// Values with their numbers. Invariant: a number is used again only after its value was removed.
pub(crate) struct Slab<T> {
    values: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { values: Vec::new(), free: Vec::new() }
    }

    /// Stores a value and returns its number.
    pub(crate) fn insert(&mut self, value: T) -> usize {
        if let Some(index) = self.free.pop() {
            self.values[index] = Some(value);
            return index;
        }
        self.values.push(Some(value));
        self.values.len() - 1
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.values.get_mut(index)?.as_mut()
    }

    /// Takes a value out but keeps its number reserved for [`Self::put_back`].
    pub(crate) fn borrow_out(&mut self, index: usize) -> Option<T> {
        self.values.get_mut(index)?.take()
    }

    /// Returns a value taken by [`Self::borrow_out`].
    pub(crate) fn put_back(&mut self, index: usize, value: T) {
        self.values[index] = Some(value);
    }

    /// Removes a value and frees its number.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        let value = self.values.get_mut(index)?.take()?;
        self.free.push(index);
        Some(value)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.len() == self.free.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    /// Numbers in use.
    pub(crate) fn indices(&self) -> Vec<usize> {
        (0..self.values.len()).filter(|&i| self.values[i].is_some()).collect()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.values.iter_mut().flatten()
    }
}
