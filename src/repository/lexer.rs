//! Cuts protobuf text format into tokens.
//!
//! Works on bytes, because a string may hold any; never fails: what is wrong is a [`Fault`] beside the tokens.

use super::mistakes::Position;
use super::tree::shorten;

/// A piece of text and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) at: Position,
    pub(super) kind: Kind,
}

/// What a token is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Word(String),
    /// An unsigned integer; `None` if 64 bits do not hold it.
    Integer(Option<u64>, String),
    Float(f64, String),
    Text(Vec<u8>),
    /// One of `{}<>[]:,;-./`.
    Sign(u8),
    /// The end of the text.
    End,
}

impl Kind {
    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Kind::Word(word) => format!("'{}'", shorten(word)),
            Kind::Integer(_, text) | Kind::Float(_, text) => format!("the number {}", shorten(text)),
            Kind::Text(text) => format!("the string \"{}\"", shorten(&String::from_utf8_lossy(text))),
            Kind::Sign(sign) => format!("'{}'", char::from(*sign)),
            Kind::End => "the end of the file".to_owned(),
        }
    }
}

/// Something wrong with the syntax.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) at: Position,
    pub(super) message: String,
}

/// The most faults that are worth telling about one text.
pub(super) const FAULTS_MAX: usize = 100;

/// All tokens, the last of them [`Kind::End`], and what was wrong.
pub(super) fn tokens(text: &[u8]) -> (Vec<Token>, Vec<Fault>) {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lexer = Lexer { text, next: 0, at: Position { line: 1, column: 1 }, faults: Vec::new() };
    let mut tokens = Vec::new();
    loop {
        let token = lexer.token();
        let end = token.kind == Kind::End;
        tokens.push(token);
        if end {
            return (tokens, lexer.faults);
        }
    }
}

struct Lexer<'a> {
    text: &'a [u8],
    next: usize,
    at: Position,
    faults: Vec<Fault>,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.next).copied()
    }

    fn peek_second(&self) -> Option<u8> {
        self.text.get(self.next + 1).copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.next += 1;
        if byte == b'\n' {
            self.at = Position { line: self.at.line.saturating_add(1), column: 1 };
        } else if byte & 0xc0 != 0x80 {
            // A continuation byte of UTF-8 belongs to the character before it.
            self.at.column = self.at.column.saturating_add(1);
        }
        Some(byte)
    }

    fn fault(&mut self, at: Position, message: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault { at, message: message.into() });
        }
    }

    fn token(&mut self) -> Token {
        loop {
            self.skip_blank();
            let at = self.at;
            let Some(byte) = self.peek() else { return Token { at, kind: Kind::End } };
            let kind = match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.word(),
                b'0'..=b'9' => self.number(at),
                b'.' if self.peek_second().is_some_and(|next| next.is_ascii_digit()) => self.number(at),
                b'"' | b'\'' => self.text(byte),
                b'{' | b'}' | b'<' | b'>' | b'[' | b']' | b':' | b',' | b';' | b'-' | b'.' | b'/' => {
                    self.bump();
                    Kind::Sign(byte)
                }
                _ => {
                    self.stray(at);
                    continue;
                }
            };
            return Token { at, kind };
        }
    }

    fn skip_blank(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => {
                    self.bump();
                }
                b'#' => while self.peek().is_some_and(|byte| byte != b'\n') && self.bump().is_some() {},
                _ => return,
            }
        }
    }

    /// One run of characters that have no place outside of strings.
    fn stray(&mut self, at: Position) {
        let begin = self.next;
        self.bump();
        while self.peek().is_some_and(|byte| byte >= 0x80) {
            self.bump();
        }
        let found = shorten(&String::from_utf8_lossy(&self.text[begin..self.next]));
        self.fault(at, format!("unexpected character '{found}'"));
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> String {
        let begin = self.next;
        while self.peek().is_some_and(&accept) {
            self.bump();
        }
        String::from_utf8_lossy(&self.text[begin..self.next]).into_owned()
    }

    fn word(&mut self) -> Kind {
        Kind::Word(self.take_while(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
    }

    fn number(&mut self, at: Position) -> Kind {
        let begin = self.next;
        let mut is_float = false;
        while let Some(byte) = self.peek() {
            let exponent = self.text[begin..self.next].last().is_some_and(|last| matches!(last, b'e' | b'E'))
                && !self.text[begin..].starts_with(b"0x")
                && !self.text[begin..].starts_with(b"0X");
            match byte {
                b'.' => is_float = true,
                b'+' | b'-' if exponent => is_float = true,
                b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {}
                _ => break,
            }
            self.bump();
        }
        let text = String::from_utf8_lossy(&self.text[begin..self.next]).into_owned();
        if !is_float && let Some(integer) = integer(&text) {
            return Kind::Integer(integer, text);
        }
        match float(&text) {
            Some(value) => Kind::Float(value, text),
            None => {
                self.fault(at, format!("malformed number '{}'", shorten(&text)));
                // Zero stands in, so that the field keeps a value and is not reported twice.
                Kind::Integer(Some(0), text)
            }
        }
    }

    fn text(&mut self, quote: u8) -> Kind {
        let at = self.at;
        self.bump();
        let mut text = Vec::new();
        loop {
            match self.peek() {
                None | Some(b'\n') => {
                    self.fault(at, "unterminated string");
                    return Kind::Text(text);
                }
                Some(byte) if byte == quote => {
                    self.bump();
                    return Kind::Text(text);
                }
                Some(b'\\') => self.escape(&mut text),
                Some(byte) => {
                    text.push(byte);
                    self.bump();
                }
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) {
        let at = self.at;
        self.bump();
        let Some(byte) = self.peek().filter(|byte| *byte != b'\n') else { return };
        if matches!(byte, b'0'..=b'7') {
            let mut value = 0u32;
            for _ in 0..3 {
                let Some(digit @ b'0'..=b'7') = self.peek() else { break };
                value = value * 8 + u32::from(digit - b'0');
                self.bump();
            }
            match u8::try_from(value) {
                Ok(byte) => text.push(byte),
                Err(_) => self.fault(at, "octal escape is larger than one byte"),
            }
            return;
        }
        self.bump();
        match byte {
            b'a' => text.push(0x07),
            b'b' => text.push(0x08),
            b'f' => text.push(0x0c),
            b'n' => text.push(b'\n'),
            b'r' => text.push(b'\r'),
            b't' => text.push(b'\t'),
            b'v' => text.push(0x0b),
            b'\\' | b'\'' | b'"' | b'?' => text.push(byte),
            b'x' | b'X' => match self.hex(1, 2).and_then(|value| u8::try_from(value).ok()) {
                Some(byte) => text.push(byte),
                None => self.fault(at, "expected hexadecimal digits after '\\x'"),
            },
            b'u' => self.unicode(at, 4, text),
            b'U' => self.unicode(at, 8, text),
            _ => {
                let found = if byte.is_ascii_graphic() { char::from(byte).to_string() } else { format!("{byte:#04x}") };
                self.fault(at, format!("unknown escape '\\{found}' in a string"));
            }
        }
    }

    fn hex(&mut self, digits_min: usize, digits_max: usize) -> Option<u32> {
        let mut value = 0u32;
        let mut digits = 0;
        while digits < digits_max
            && let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16))
        {
            value = value.checked_mul(16)? + digit;
            digits += 1;
            self.bump();
        }
        (digits >= digits_min).then_some(value)
    }

    fn unicode(&mut self, at: Position, digits: usize, text: &mut Vec<u8>) {
        let mut value = self.hex(digits, digits);
        if let Some(high @ 0xd800..=0xdbff) = value {
            // A pair of surrogates is one character.
            value = None;
            if self.peek() == Some(b'\\') && self.peek_second() == Some(b'u') {
                self.bump();
                self.bump();
                if let Some(low @ 0xdc00..=0xdfff) = self.hex(4, 4) {
                    value = Some(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00));
                }
            }
        }
        match value.and_then(char::from_u32) {
            Some(character) => text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            None => self.fault(at, format!("expected {digits} hexadecimal digits of a Unicode character")),
        }
    }
}

/// `None` if this is no integer; `Some(None)` if it is one that 64 bits do not hold.
fn integer(text: &str) -> Option<Option<u64>> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    Some(u64::from_str_radix(digits, radix).ok())
}

fn float(text: &str) -> Option<f64> {
    let digits = text.strip_suffix(['f', 'F']).unwrap_or(text);
    if !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')) {
        return None;
    }
    // An integer with a leading zero is octal, and was refused as such.
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}
