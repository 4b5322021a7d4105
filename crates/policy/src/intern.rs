//! String interning: a text that many objects have in common, such as the name of a node, is kept in memory once. `desired.rs`
//! and the controller's index use it, which hold every pod of a cluster.

use std::collections::HashSet;
use std::sync::Arc;

/// With fewer texts a sweep of the unused ones would free next to nothing.
const MIN_SWEEP: usize = 1024;

/// The interned texts. Unused ones are dropped by a sweep whenever the number of texts has doubled.
#[derive(Debug, Clone, Default)]
pub struct Interner {
    known: HashSet<Arc<str>>,
    /// The number of texts at which the next sweep comes.
    sweep_at: usize,
}

impl Interner {
    /// The text, shared with all who interned the same.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at.max(MIN_SWEEP) {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.known.len() * 2;
        }
        let new: Arc<str> = text.into();
        self.known.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one() {
        let mut names = Interner::default();
        let one = names.intern("node");
        assert!(Arc::ptr_eq(&one, &names.intern("node")));
    }

    #[test]
    fn what_nobody_has_is_forgotten() {
        let mut names = Interner::default();
        let kept: Vec<_> = (0..10)
            .map(|n| names.intern(&format!("kept-{n}")))
            .collect();
        for n in 0..100_000 {
            names.intern(&format!("{n}"));
        }
        assert!(names.known.len() <= MIN_SWEEP);
        assert!(Arc::ptr_eq(&kept[3], &names.intern("kept-3")));
    }
}
