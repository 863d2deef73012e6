//! Disks that fail or fill while a real server works.
