//! A machine's cache of blobs, shared by many processes.
