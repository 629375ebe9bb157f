//! A tree of named values, and how Ceph's JSON and XML formatters write it.

use marcot::printable::is_control;

/// A value; the names of array items appear in XML only.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// A quoted string.
    Text(String),
    /// A number.
    Number(u64),
    /// A number with a fraction, finite.
    Fraction(f64),
    /// The same, with 17 digits where it needs them, as Ceph writes some.
    Fraction17(f64),
    /// `true` or `false`, unquoted.
    Bool(bool),
    /// Named members, in order.
    Object(Vec<(&'static str, Node)>),
    /// Members whose names are data.
    Map(Vec<(String, Node)>),
    /// Items, each with the element name it has in XML.
    Array(Vec<(&'static str, Node)>),
}

impl From<&str> for Node {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<String> for Node {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Node {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl Node {
    /// Items that all have one element name.
    pub fn array(item: &'static str, items: impl IntoIterator<Item = Node>) -> Self {
        Self::Array(items.into_iter().map(|node| (item, node)).collect())
    }

    /// The quoted word `"true"` or `"false"`, which `rbd` uses in most places.
    pub fn quoted_bool(value: bool) -> Self {
        Self::from(if value { "true" } else { "false" })
    }

    /// The JSON text with its newline.
    pub fn to_json(&self, pretty: bool) -> String {
        let mut text = String::new();
        self.write_json(&mut text, pretty.then_some(0));
        text.push('\n');
        text
    }

    /// The XML text with its newline; pretty XML ends with an empty line.
    pub fn to_xml(&self, name: &str, pretty: bool) -> String {
        let mut text = String::new();
        self.write_xml(&mut text, name, pretty.then_some(0));
        text.push('\n');
        text
    }

    fn write_json(&self, text: &mut String, level: Option<usize>) {
        match self {
            Self::Text(s) => push_json_string(text, s),
            Self::Number(n) => text.push_str(&n.to_string()),
            Self::Fraction(f) => text.push_str(&f.to_string()),
            Self::Fraction17(f) => text.push_str(&seventeen_digits(*f)),
            Self::Bool(b) => text.push_str(&b.to_string()),
            Self::Object(members) => write_json_section(text, level, &named(members), ('{', '}')),
            Self::Map(members) => {
                let members: Vec<_> = members.iter().map(|(name, node)| (&**name, node)).collect();
                write_json_section(text, level, &members, ('{', '}'));
            }
            Self::Array(items) => write_json_section(text, level, &named(items), ('[', ']')),
        }
    }

    fn write_xml(&self, text: &mut String, name: &str, level: Option<usize>) {
        // A name with a blank, which JSON has too.
        let name = &*name.replace(' ', "_");
        let indent = " ".repeat(level.unwrap_or(0));
        let newline = if level.is_some() { "\n" } else { "" };
        let leaf = match self {
            Self::Text(s) => escape_xml(s),
            Self::Number(n) => n.to_string(),
            Self::Fraction(f) => f.to_string(),
            Self::Fraction17(f) => seventeen_digits(*f),
            Self::Bool(b) => b.to_string(),
            Self::Object(members) | Self::Array(members) => {
                let members = named(members);
                write_xml_section(text, name, level, &members);
                return;
            }
            Self::Map(members) => {
                let names: Vec<_> = members.iter().map(|(name, _)| escape_xml(name)).collect();
                let nodes = members.iter().map(|(_, node)| node);
                let members: Vec<_> = names.iter().map(String::as_str).zip(nodes).collect();
                write_xml_section(text, name, level, &members);
                return;
            }
        };
        text.push_str(&format!("{indent}<{name}>{leaf}</{name}>{newline}"));
    }
}

/// A number that is not negative as C's `%.17g` writes it.
fn seventeen_digits(number: f64) -> String {
    const DIGITS: i32 = 17;
    /// Smaller numbers are written with an exponent.
    const SMALLEST_EXPONENT: i32 = -4;
    if number == 0.0 || !number.is_finite() {
        return "0".to_string();
    }
    // Its rounding decides the exponent.
    let scientific = format!("{number:.*e}", DIGITS as usize - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if exponent < SMALLEST_EXPONENT {
        let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
        return format!("{mantissa}e-{:02}", exponent.abs());
    }
    let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// Members whose names are not data.
fn named<'a>(members: &'a [(&'static str, Node)]) -> Vec<(&'a str, &'a Node)> {
    members.iter().map(|(name, node)| (*name, node)).collect()
}

fn write_xml_section(
    text: &mut String,
    name: &str,
    level: Option<usize>,
    members: &[(&str, &Node)],
) {
    let indent = " ".repeat(level.unwrap_or(0));
    let newline = if level.is_some() { "\n" } else { "" };
    text.push_str(&format!("{indent}<{name}>{newline}"));
    for (member, node) in members {
        node.write_xml(text, member, level.map(|l| l + 1));
    }
    text.push_str(&format!("{indent}</{name}>{newline}"));
}

fn write_json_section(
    text: &mut String,
    level: Option<usize>,
    members: &[(&str, &Node)],
    (open, close): (char, char),
) {
    text.push(open);
    let inner = level.map(|l| l + 1);
    for (i, (name, node)) in members.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        push_json_indent(text, inner);
        if open == '{' {
            push_json_string(text, name);
            text.push_str(if level.is_some() { ": " } else { ":" });
        }
        node.write_json(text, inner);
    }
    if !members.is_empty() {
        push_json_indent(text, level);
    }
    text.push(close);
}

fn push_json_indent(text: &mut String, level: Option<usize>) {
    if let Some(level) = level {
        text.push('\n');
        text.push_str(&"    ".repeat(level));
    }
}

fn push_json_string(text: &mut String, s: &str) {
    text.push('"');
    for c in s.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            // All control characters are below U+10000.
            c if is_control(c) => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

fn escape_xml(s: &str) -> String {
    let mut text = String::new();
    for c in s.chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            c if !xml_has(c) => text.extend(c.escape_default()),
            c if is_control(c) => text.push_str(&format!("&#x{:x};", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// False for characters that XML 1.0 cannot express (section 2.2, `Char`).
fn xml_has(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Node {
        Node::Object(vec![
            ("name", "i<\"&".into()),
            ("size", 10u64.into()),
            ("features", Node::array("feature", ["layering".into()])),
            ("flags", Node::array("flag", [])),
            ("pool_namespace", "".into()),
            ("trash", Node::Bool(false)),
        ])
    }

    #[test]
    fn numbers_with_seventeen_digits_are_cephs() {
        for (number, text) in [
            (0.0, "0"),
            (5.0, "5"),
            (5003.8, "5003.8000000000002"),
            (20495564.8, "20495564.800000001"),
            (1379219.1893361046, "1379219.1893361046"),
            (0.000_737_799_098_715_186_1, "0.00073779909871518612"),
            (3.595_736_188_799_492e-7, "3.5957361887994921e-07"),
            (0.000_05, "5.0000000000000002e-05"),
        ] {
            assert_eq!(Node::Fraction17(number).to_json(false), format!("{text}\n"));
        }
    }

    #[test]
    fn json_has_no_blanks() {
        assert_eq!(
            sample().to_json(false),
            "{\"name\":\"i<\\\"&\",\"size\":10,\"features\":[\"layering\"],\"flags\":[],\
             \"pool_namespace\":\"\",\"trash\":false}\n"
        );
    }

    #[test]
    fn control_characters_are_written_by_the_rules_of_each_format() {
        let name = "a\u{1b}[2J\n\u{9b}\u{202e}\u{7f}\u{ffff}é";
        let json = Node::from(name).to_json(false);
        assert_eq!(json, "\"a\\u001b[2J\\n\\u009b\\u202e\\u007f\u{ffff}é\"\n");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), name);
        assert_eq!(
            Node::from(name).to_xml("n", false),
            "<n>a\\u{1b}[2J&#xa;&#x9b;&#x202e;&#x7f;\\u{ffff}é</n>\n"
        );
    }

    #[test]
    fn pretty_json_indents_by_four_and_keeps_empty_lists_short() {
        assert_eq!(
            Node::array("x", [sample()]).to_json(true),
            "[\n    {\n        \"name\": \"i<\\\"&\",\n        \"size\": 10,\n        \"features\": [\n            \
             \"layering\"\n        ],\n        \"flags\": [],\n        \"pool_namespace\": \"\",\n        \
             \"trash\": false\n    }\n]\n"
        );
        assert_eq!(Node::array("x", []).to_json(true), "[]\n");
    }

    #[test]
    fn xml_escapes_and_ends_pretty_text_with_an_empty_line() {
        assert_eq!(
            sample().to_xml("image", false),
            "<image><name>i&lt;&quot;&amp;</name><size>10</size><features><feature>layering</feature>\
             </features><flags></flags><pool_namespace></pool_namespace><trash>false</trash></image>\n"
        );
        assert_eq!(
            sample().to_xml("image", true),
            "<image>\n <name>i&lt;&quot;&amp;</name>\n <size>10</size>\n <features>\n  <feature>layering</feature>\n \
             </features>\n <flags>\n </flags>\n <pool_namespace></pool_namespace>\n <trash>false</trash>\n</image>\n\n"
        );
    }
}
