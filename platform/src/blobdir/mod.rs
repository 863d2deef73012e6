//! A directory of blobs: the paths of the files, the access checks, and how files are filled.

pub mod access;
mod error;
pub mod integrity;
pub mod layout;
pub mod temp_file;
mod writer;

pub use error::{LayoutError, WriteError};
pub use layout::Layout;
pub use temp_file::{Reservation, TempFile};
pub use writer::{BlobFile, BlobWriter};
