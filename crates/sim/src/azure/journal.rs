//! Journal of requests: who was asked, and how that was answered. Tests count calls by it; tokens and secrets never enter it.

use std::collections::VecDeque;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Older entries make way.
const MAX: usize = 20_000;

/// Which part of Azure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// A node's metadata service.
    Imds,
    /// Entra.
    Entra,
    /// Azure Resource Manager.
    Arm,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Who was asked.
    pub service: Service,
    /// The method.
    pub method: String,
    /// The path, without its query where that is signed.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// When.
    pub at: Timestamp,
}

#[derive(Default)]
pub(super) struct Journal(Mutex<VecDeque<Entry>>);

impl Journal {
    pub(super) fn add(&self, entry: Entry) {
        let mut entries = self.0.lock();
        if entries.len() == MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    pub(super) fn all(&self) -> Vec<Entry> {
        self.0.lock().iter().cloned().collect()
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
