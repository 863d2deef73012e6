//! A directory of blobs: where a blob's file is, who may write there, and how a file in it is filled.

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
