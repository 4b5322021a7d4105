//! A simulated Kubernetes API server, from memory.
