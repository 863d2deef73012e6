//! Names, and paths of names: which names are valid, and how they are written.
//!
//! A [`Name`] is one component, a [`NamePath`] is `a/b/c` from the root, and [`NameAt`] is a path
//! as of a transaction: `a/b/c@0400a1b2c3d4e5f6`.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use blobferry_protocol::Tid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name in bytes. File systems have the same limit, so every file can be copied out
/// under its name.
pub const MAX_NAME: usize = 255;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// The text is empty, or nothing is between two slashes.
    #[error("a name cannot be empty")]
    Empty,
    /// `.` or `..`. Paths begin at the root and only go down.
    #[error("`{0}` is not a name: paths begin at the root and go down only")]
    Dots(String),
    /// A slash inside a name.
    #[error("`{0}` has a slash: one name was expected, not a path")]
    Slash(String),
    /// A control character, for example NUL or a line break. Output has one name a line, often on a
    /// terminal.
    #[error("{0:?} has a control character: rename the file first")]
    Control(String),
    /// Longer than [`MAX_NAME`].
    #[error("a name of {length} bytes is too long (at most {MAX_NAME}): `{start}...`")]
    TooLong {
        /// The length in bytes.
        length: usize,
        /// The first characters.
        start: String,
    },
    /// The name of a file is not UTF-8.
    #[error("{0:?} is not UTF-8: rename the file first")]
    NotUtf8(std::ffi::OsString),
}

/// One component of a path: 1 to [`MAX_NAME`] bytes of UTF-8, not `.` or `..`, without slashes and
/// control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Converts the name of a file on disk.
    ///
    /// # Errors
    /// [`NameError`] if the name is not valid in the catalog.
    pub fn from_os(name: &OsStr) -> Result<Name, NameError> {
        match name.to_str() {
            Some(name) => name.parse(),
            None => Err(NameError::NotUtf8(name.to_owned())),
        }
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        if text.is_empty() {
            Err(NameError::Empty)
        } else if text == "." || text == ".." {
            Err(NameError::Dots(text))
        } else if text.contains(char::is_control) {
            Err(NameError::Control(text.chars().take(80).collect()))
        } else if text.contains('/') {
            Err(NameError::Slash(text.chars().take(80).collect()))
        } else if text.len() > MAX_NAME {
            Err(NameError::TooLong { length: text.len(), start: text.chars().take(20).collect() })
        } else {
            Ok(Name(text))
        }
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path from the root: names with slashes between them. The root has no names and is written `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamePath(Vec<Name>);

impl NamePath {
    /// The root directory.
    pub const ROOT: NamePath = NamePath(Vec::new());

    /// Returns the names, from the root on.
    #[must_use]
    pub fn names(&self) -> &[Name] {
        &self.0
    }

    /// Returns whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path of `name` in the directory that this path names.
    #[must_use]
    pub fn join(&self, name: Name) -> NamePath {
        let mut names = Vec::with_capacity(self.0.len() + 1);
        names.extend_from_slice(&self.0);
        names.push(name);
        NamePath(names)
    }

    /// Returns the names of the parent directories, and the last name; `None` for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(&[Name], &Name)> {
        self.0.split_last().map(|(last, parents)| (parents, last))
    }

    /// Returns the parent directory. The root's parent is the root.
    #[must_use]
    pub fn parent(&self) -> NamePath {
        NamePath(self.split_last().map(|(parents, _)| parents.to_vec()).unwrap_or_default())
    }
}

impl From<&[Name]> for NamePath {
    fn from(names: &[Name]) -> NamePath {
        NamePath(names.to_vec())
    }
}

impl FromStr for NamePath {
    type Err = NameError;

    /// Parses a path. A slash at the beginning or the end is allowed, because shells complete names
    /// with one.
    fn from_str(text: &str) -> Result<NamePath, NameError> {
        let inner = text.strip_prefix('/').unwrap_or(text);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        if inner.is_empty() {
            return if text.is_empty() { Err(NameError::Empty) } else { Ok(NamePath::ROOT) };
        }
        inner.split('/').map(str::parse).collect::<Result<_, _>>().map(NamePath)
    }
}

impl fmt::Display for NamePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((parents, last)) = self.split_last() else { return f.write_str("/") };
        parents.iter().try_for_each(|name| write!(f, "{name}/"))?;
        fmt::Display::fmt(last, f)
    }
}

impl Serialize for NamePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A path now, or as of a transaction: `NAME` or `NAME@TID`.
///
/// A transaction is an `@` and exactly 16 hexadecimal digits at the end of the text. Any other `@`
/// belongs to the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameAt {
    /// The path.
    pub path: NamePath,
    /// The transaction to read as of; `None` for the last one.
    pub at: Option<Tid>,
}

impl FromStr for NameAt {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NameAt, NameError> {
        let split = text.rsplit_once('@').and_then(|(path, tid)| Some((path, tid.parse::<Tid>().ok()?)));
        let (path, at) = split.map_or((text, None), |(path, tid)| (path, Some(tid)));
        Ok(NameAt { path: path.parse()?, at })
    }
}

impl fmt::Display for NameAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.path, f)?;
        self.at.map_or(Ok(()), |tid| write!(f, "@{tid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn paths_are_names_between_slashes() {
        for (text, shown) in [("a", "a"), ("/a", "a"), ("a/b/", "a/b"), ("/", "/"), ("ä ö/@", "ä ö/@")] {
            assert_eq!(text.parse::<NamePath>().unwrap().to_string(), shown, "{text}");
        }
        let path: NamePath = "a/b/c".parse().unwrap();
        assert_eq!(path.parent().to_string(), "a/b");
        assert_eq!(path.parent().join("d".parse().unwrap()).to_string(), "a/b/d");
        assert_eq!(NamePath::ROOT.parent(), NamePath::ROOT);
    }

    #[test]
    fn invalid_names_are_refused_with_the_reason() {
        let long = "x".repeat(MAX_NAME + 1);
        for text in ["", ".", "..", "a//b", "a/../b", "a\0b", "a\nb", "tab\t", "a//", long.as_str()] {
            assert!(text.parse::<NamePath>().is_err(), "{text:?}");
        }
        assert_eq!("a/b".parse::<Name>(), Err(NameError::Slash("a/b".into())));
        assert!(Name::from_os(OsStr::from_bytes(b"\xff")).unwrap_err().to_string().contains("not UTF-8"));
        assert!("x".repeat(MAX_NAME).parse::<Name>().is_ok());
    }

    #[test]
    fn only_16_digits_after_an_at_sign_are_a_transaction() {
        let name: NameAt = "a/b@00000000000000ff".parse().unwrap();
        assert_eq!((name.path.to_string().as_str(), name.at), ("a/b", Some(Tid(255))));
        for text in ["me@home", "@", "a@ff", "a@00000000000000fg", "a@00000000000000ff0"] {
            assert_eq!(text.parse::<NameAt>().unwrap().at, None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsed_paths_survive_printing(text in "[a@./ü\u{1}-]{0,12}(@[0-9a-f]{16})?") {
            if let Ok(name) = text.parse::<NameAt>() {
                prop_assert_eq!(name.to_string().parse::<NameAt>().unwrap(), name);
            }
        }
    }
}
