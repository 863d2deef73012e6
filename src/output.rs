//! Standard output: plain lines, or JSON with `--json`.
//!
//! The fields of a plain line are separated by tabs. With `--json` every line is one JSON object,
//! so that a script can read a list as it arrives. Nothing else goes to standard output: progress
//! and errors go to standard error.

use std::io::{BufWriter, Write};

use serde::Serialize;

use crate::failure::Failure;

/// A result that can be printed as a plain line or as JSON. The JSON form is its [`Serialize`].
pub(crate) trait Render: Serialize {
    /// Returns the plain form, without the final line break.
    fn plain(&self) -> String;
}

/// A buffered output. [`Output::flush`] writes the rest at the end.
pub(crate) struct Output<W: Write> {
    json: bool,
    to: BufWriter<W>,
}

impl<W: Write> Output<W> {
    /// Creates an output of JSON or plain lines.
    pub(crate) fn new(to: W, json: bool) -> Output<W> {
        Output { json, to: BufWriter::with_capacity(64 << 10, to) }
    }

    /// Prints one line.
    ///
    /// # Errors
    /// [`Failure::Output`].
    pub(crate) fn line(&mut self, line: &impl Render) -> Result<(), Failure> {
        let written = if self.json {
            serde_json::to_writer(&mut self.to, line).map_err(std::io::Error::from)
        } else {
            self.to.write_all(line.plain().as_bytes())
        };
        written.and_then(|()| self.to.write_all(b"\n")).map_err(Failure::Output)
    }

    /// Returns whether lines are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns the underlying output, for bytes that are not lines.
    pub(crate) fn bytes(&mut self) -> &mut impl Write {
        &mut self.to
    }

    /// Writes the buffered lines.
    ///
    /// # Errors
    /// [`Failure::Output`].
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.to.flush().map_err(Failure::Output)
    }
}

/// Joins fields with tabs.
pub(crate) fn tabbed<const N: usize>(fields: [&dyn std::fmt::Display; N]) -> String {
    fields.map(ToString::to_string).join("\t")
}

/// Serializes a value as its displayed text.
pub(crate) fn text<S: serde::Serializer>(value: &impl std::fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(json: bool, run: impl FnOnce(&mut Output<&mut Vec<u8>>)) -> String {
        let mut bytes = Vec::new();
        let mut output = Output::new(&mut bytes, json);
        run(&mut output);
        output.flush().unwrap();
        drop(output);
        String::from_utf8(bytes).unwrap()
    }

    #[derive(Serialize)]
    struct Pair {
        name: &'static str,
        size: u64,
    }

    impl Render for Pair {
        fn plain(&self) -> String {
            tabbed([&self.size, &self.name])
        }
    }

    #[test]
    fn lines_are_tabbed_or_json() {
        let pair = Pair { name: "a \"b\"", size: 3 };
        assert_eq!(captured(false, |output| output.line(&pair).unwrap()), "3\ta \"b\"\n");
        assert_eq!(
            captured(true, |output| output.line(&pair).unwrap()),
            "{\"name\":\"a \\\"b\\\"\",\"size\":3}\n"
        );
    }

    #[test]
    fn closed_pipe_is_a_quiet_failure() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        for json in [false, true] {
            let mut output = Output::new(writer.try_clone().unwrap(), json);
            output.line(&Pair { name: "a", size: 3 }).unwrap();
            assert!(output.flush().unwrap_err().quiet());
        }
    }
}
