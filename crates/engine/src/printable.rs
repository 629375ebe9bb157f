//! Text that somebody else chose, made fit for a terminal, a log and a message.
//!
//! Names, messages and metadata come from other users' pools and from clients. A control character in
//! them moves the cursor, colours the terminal or ends a line, and so forges what the next line says.

use std::borrow::Cow;

/// True for a character that is not shown as itself: control characters, what ends a line or a
/// paragraph, and what turns the direction of the text that follows.
#[must_use]
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line: control characters are written as Rust writes them, `\n` or `\u{1b}`.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, is_control)
}

/// As [`printable`], for a name that need not be text: bytes that are none are written as `\xff`.
#[must_use]
pub fn printable_bytes(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        out.push_str(&printable(chunk.valid()));
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

/// As [`printable`], but line breaks and tabs stay: for text that has its layout already.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_control(c) && !matches!(c, '\n' | '\t'))
}

/// A sentence without the error number that Rust appends to the system's words: it means nothing to
/// who reads it, and where it is wanted there is [`std::io::Error::raw_os_error`].
#[must_use]
pub fn system_words(sentence: &str) -> &str {
    sentence.rfind(" (os error ").map_or(sentence, |end| &sentence[..end])
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_bad(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_shown_as_itself_is_written_out() {
        assert_eq!(printable("a\u{1b}[2J\nb\r\u{7f}\u{9b}"), r"a\u{1b}[2J\nb\r\u{7f}\u{9b}");
        assert_eq!(printable("\u{202e}gmi.\u{2066}\u{2028}"), r"\u{202e}gmi.\u{2066}\u{2028}");
        assert_eq!(printable_lines("a\tb\nc\u{1b}\r\n"), "a\tb\nc\\u{1b}\\r\n");
    }

    #[test]
    fn bytes_that_are_no_text_are_written_out() {
        assert_eq!(printable_bytes(b"a\xff\x1b\xc3\xa4\xc3"), "a\\xff\\u{1b}\u{e4}\\xc3");
    }

    #[test]
    fn what_people_write_stays() {
        for text in ["", "vm-1", "ein Übel", "日本語", "a\\nb", "naïve e\u{301}", "👩\u{200d}🚀"]
        {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_printable_has_control_characters(text in "\\PC*|.*|(?s:.*)") {
            prop_assert!(!printable(&text).chars().any(is_control));
            let lines = printable_lines(&text);
            prop_assert!(!lines.chars().any(|c| is_control(c) && c != '\n' && c != '\t'));
            prop_assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
        }
    }
}
