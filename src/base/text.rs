//! Small helpers for names and lists in text.

/// True if `name` is one of the words of a list separated by commas and white space.
/// Comparison is by byte; there is no quoting (config 2.5).
pub fn in_word_list(list: &str, name: &str) -> bool {
    !name.is_empty()
        && list.split(|c: char| c == ',' || c.is_ascii_whitespace()).any(|word| word == name)
}

/// Cuts a text to at most `max` bytes, never inside a character.
pub fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Lower-case hex of some bytes.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_list_separates_at_commas_and_blanks() {
        for (list, name, want) in [
            ("a, b c", "b", true),
            ("a, b c", "c", true),
            ("abc", "b", false),
            ("A", "a", false),
            ("", "", false),
        ] {
            assert_eq!(in_word_list(list, name), want, "{list} {name}");
        }
    }

    #[test]
    fn cut_keeps_characters_whole() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("abc", 3), "abc");
    }
}
