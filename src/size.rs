//! Parsing of sizes: `10G`, `500M`, `1.5TiB`, `4096`.

use std::str::FromStr;

use thiserror::Error;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// A limit in bytes, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

/// A text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a size is a number of bytes, or a number with K, M, G or T behind it (powers of 1024): 10G, 500M")]
pub(crate) struct NoSize;

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Size, NoSize> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let power = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 1,
            "m" | "mb" | "mib" => 2,
            "g" | "gb" | "gib" => 3,
            "t" | "tb" | "tib" => 4,
            _ => return Err(NoSize),
        };
        let unit = 1024_u64.pow(power);
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Size).ok_or(NoSize);
        }
        match number.parse::<f64>() {
            // A float is exact up to 8 PiB. A larger size saturates at `u64::MAX`.
            Ok(number) if power > 0 => Ok(Size((number * unit as f64) as u64)),
            _ => Err(NoSize),
        }
    }
}

impl FromStr for Limit {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Limit, NoSize> {
        match text {
            "none" => Ok(Limit(None)),
            size => size.parse().map(|Size(bytes)| Limit(Some(bytes))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_with_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10k", 10 << 10),
            ("500M", 500 << 20),
            ("10GiB", 10 << 30),
            ("1.5T", 3 << 39),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
            assert_eq!(text.parse(), Ok(Limit(Some(bytes))), "{text}");
        }
        for text in ["", "G", "-1", "1.5", "10 G", "10X", "1.2.3K", "99999999999T", "none"] {
            assert_eq!(text.parse::<Size>(), Err(NoSize), "{text}");
        }
        assert_eq!("none".parse(), Ok(Limit(None)));
    }
}
