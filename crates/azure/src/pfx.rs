//! PFX key derivation cost: reads from the DER of a PFX (PKCS#12, RFC 7292) how many rounds of PBKDF2 (RFC 8018) opening it takes.
//! `certificate.rs` asks this first, so that a hostile file does not keep a core of the node busy.

/// The most rounds that are accepted: tools write some thousands, password managers up to a million.
pub(crate) const MAX_ROUNDS: u64 = 2_000_000;
/// The deepest nesting that is read; a PFX has less.
const MAX_DEPTH: usize = 24;

// Tags of DER.
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const CONSTRUCTED: u8 = 0x20;

/// The most rounds that any key derivation in the file takes: the integer after a salt. `None` when the file is not DER.
pub(crate) fn rounds(file: &[u8]) -> Option<u64> {
    let (tag, content, rest) = element(file)?;
    (tag & CONSTRUCTED != 0 && rest.is_empty()).then(|| greatest(content, 0))
}

fn greatest(mut bytes: &[u8], depth: usize) -> u64 {
    let mut found = 0;
    let mut after_salt = false;
    while let Some((tag, content, rest)) = element(bytes) {
        if tag == INTEGER && after_salt {
            found = found.max(number(content));
        }
        // An octet string is a salt, or holds elements of its own.
        if (tag & CONSTRUCTED != 0 || tag == OCTET_STRING) && depth < MAX_DEPTH {
            found = found.max(greatest(content, depth + 1));
        }
        after_salt = tag == OCTET_STRING;
        bytes = rest;
    }
    found
}

fn number(content: &[u8]) -> u64 {
    match content {
        [0, rest @ ..] | rest if rest.len() <= 8 => {
            rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        }
        _ => u64::MAX,
    }
}

/// The first element: its tag, its content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        let digits = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
        let length = digits
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        (length, &rest[count..])
    };
    Some((tag, rest.get(..length)?, &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_integer_after_a_salt_counts_wherever_it_is() {
        // SEQUENCE { OCTET STRING { SEQUENCE { OCTET STRING "salt", INTEGER 0x7fffffff } }, INTEGER 9 }
        let inner = [
            0x30, 12, 4, 4, b's', b'a', b'l', b't', 2, 4, 0x7f, 0xff, 0xff, 0xff,
        ];
        let mut file = vec![0x30, 19, 4, 14];
        file.extend(inner);
        file.extend([2, 1, 9]);
        assert_eq!(rounds(&file), Some(0x7fff_ffff));
        assert_eq!(rounds(b"not DER"), None);
        assert_eq!(rounds(&[0x30, 3, 2, 1, 9]), Some(0), "no salt, no rounds");
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = rounds(&bytes);
        }
    }
}
