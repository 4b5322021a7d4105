//! A simulated Azure: the metadata service, Entra token endpoint, and Resource Manager.
