//! A server's durable revisions.
