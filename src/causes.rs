//! An error with its causes, as one line of text.

use std::error::Error as StdError;

/// Returns an error and its causes as one text. A cause that the text so far contains is not
/// repeated.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Option<Box<Layer>> {
        let (text, inner) = texts.split_first()?;
        Some(Box::new(Layer { text, source: layers(inner) }))
    }

    #[test]
    fn causes_are_printed_exactly_once() {
        for (texts, printed) in [
            (&["outer", "inner"][..], "outer: inner"),
            (&["outer: inner", "inner"], "outer: inner"),
            (&["outer", "middle: inner", "inner"], "outer: middle: inner"),
            (&["outer (inner), do this", "inner"], "outer (inner), do this"),
        ] {
            assert_eq!(chain(&*layers(texts).unwrap()), printed);
        }
    }
}
