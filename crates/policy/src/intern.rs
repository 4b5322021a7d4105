//! Texts that many objects have in common, kept once.

use std::collections::HashSet;
use std::sync::Arc;

/// Below this nothing is gained by forgetting.
const FEW: usize = 1024;

/// Names of namespaces, nodes and the like. Those that nobody has any more are forgotten now and then.
#[derive(Debug, Clone, Default)]
pub struct Interner {
    known: HashSet<Arc<str>>,
    full: usize,
}

impl Interner {
    /// The text, shared with everybody else who has it.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.full.max(FEW) {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.full = self.known.len() * 2;
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
        assert!(names.known.len() <= FEW);
        assert!(Arc::ptr_eq(&kept[3], &names.intern("kept-3")));
    }
}
