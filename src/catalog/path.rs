//! Names, and paths of names: what may be called what, and how people write it.
//!
//! A [`Name`] is one component, a [`NamePath`] is `a/b/c` from the root, and [`NameAt`] is a path as of a
//! transaction: `a/b/c@0400a1b2c3d4e5f6`.

use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use blobferry_protocol::Tid;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name in bytes: what file systems take, so that everything can be got again under its own name.
pub(crate) const MAX_NAME: usize = 255;

/// Why something is not a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum NameError {
    /// Nothing between two slashes, or nothing at all.
    #[error("a name can not be empty")]
    Empty,
    /// `.` or `..`: paths are plain, from the root.
    #[error("`{0}` is not a name: paths begin at the root and go down only")]
    Dots(String),
    /// A slash inside of one name.
    #[error("`{0}` has a slash: one name was expected, not a path")]
    Slash(String),
    /// NUL, a line break, a tab...: output is one name a line, on people's terminals.
    #[error("{0:?} has a control character: rename the file first")]
    Control(String),
    /// Longer than file systems take.
    #[error("a name of {length} bytes is too long (at most {MAX_NAME}): `{start}...`")]
    TooLong {
        /// Bytes.
        length: usize,
        /// How it begins.
        start: String,
    },
    /// Not UTF-8.
    #[error("{0:?} is not UTF-8: rename the file first")]
    NotUtf8(std::ffi::OsString),
}

/// One component of a path: 1 to 255 bytes of UTF-8, not `.` or `..`, without slashes and control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(String);

impl Name {
    /// The name that a file has in its directory on disk.
    ///
    /// # Errors
    /// [`NameError`] where the catalog can not have that name.
    pub(crate) fn from_os(name: &OsStr) -> Result<Name, NameError> {
        match name.to_str() {
            Some(name) => name.parse(),
            None => Err(NameError::NotUtf8(name.to_owned())),
        }
    }

    /// The name as text.
    pub(crate) fn as_str(&self) -> &str {
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

/// A path from the root: names with slashes between them; the root itself has none and is written `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NamePath(Vec<Name>);

impl NamePath {
    /// The directory that everything is in.
    pub(crate) const ROOT: NamePath = NamePath(Vec::new());

    /// Its names, from the root on.
    pub(crate) fn names(&self) -> &[Name] {
        &self.0
    }

    /// Is this the root?
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path of `name` in the directory that this path leads to.
    pub(crate) fn join(&self, name: Name) -> NamePath {
        let mut names = Vec::with_capacity(self.0.len() + 1);
        names.extend_from_slice(&self.0);
        names.push(name);
        NamePath(names)
    }

    /// The names of the directories that lead there, and the last name; `None` for the root.
    pub(crate) fn split_last(&self) -> Option<(&[Name], &Name)> {
        self.0.split_last().map(|(last, parents)| (parents, last))
    }

    /// The directory that it is in; the root's is the root.
    pub(crate) fn parent(&self) -> NamePath {
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

    /// A slash at the begin or the end is allowed, as people's shells complete it.
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

/// What a path leads to now, or as of a transaction: `NAME` or `NAME@TID`.
///
/// Only an `@` before exactly sixteen hexadecimal digits at the very end says a transaction; any other belongs to
/// the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameAt {
    /// The path.
    pub(crate) path: NamePath,
    /// The last transaction that counts; `None` for all there are.
    pub(crate) at: Option<Tid>,
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
    fn a_path_is_names_between_slashes() {
        for (text, shown) in [("a", "a"), ("/a", "a"), ("a/b/", "a/b"), ("/", "/"), ("ä ö/@", "ä ö/@")] {
            assert_eq!(text.parse::<NamePath>().unwrap().to_string(), shown, "{text}");
        }
        let path: NamePath = "a/b/c".parse().unwrap();
        assert_eq!(path.parent().to_string(), "a/b");
        assert_eq!(path.parent().join("d".parse().unwrap()).to_string(), "a/b/d");
        assert_eq!(NamePath::ROOT.parent(), NamePath::ROOT);
    }

    #[test]
    fn what_is_not_a_name_is_refused_with_the_reason() {
        let long = "x".repeat(MAX_NAME + 1);
        for text in ["", ".", "..", "a//b", "a/../b", "a\0b", "a\nb", "tab\t", "a//", long.as_str()] {
            assert!(text.parse::<NamePath>().is_err(), "{text:?}");
        }
        assert_eq!("a/b".parse::<Name>(), Err(NameError::Slash("a/b".into())));
        assert!(Name::from_os(OsStr::from_bytes(b"\xff")).unwrap_err().to_string().contains("not UTF-8"));
        assert!("x".repeat(MAX_NAME).parse::<Name>().is_ok());
    }

    #[test]
    fn only_sixteen_digits_after_an_at_sign_are_a_transaction() {
        let name: NameAt = "a/b@00000000000000ff".parse().unwrap();
        assert_eq!((name.path.to_string().as_str(), name.at), ("a/b", Some(Tid(255))));
        for text in ["me@home", "@", "a@ff", "a@00000000000000fg", "a@00000000000000ff0"] {
            assert_eq!(text.parse::<NameAt>().unwrap().at, None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_path_that_parses_prints_as_it_parses(text in "[a@./ü\u{1}-]{0,12}(@[0-9a-f]{16})?") {
            if let Ok(name) = text.parse::<NameAt>() {
                prop_assert_eq!(name.to_string().parse::<NameAt>().unwrap(), name);
            }
        }
    }
}
