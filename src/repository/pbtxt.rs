//! Reads protobuf text format into a tree, without knowing the messages.
//!
//! After a fault it goes on at the next field, so that one reading finds all faults. Nesting is limited, and the
//! recursion with it.

use super::lexer::{FAULTS_MAX, Fault, Kind, Token, tokens};
use super::mistakes::Position;
use super::tree::{Field, Integer, Node, Value, shorten};

/// How deep messages may be nested.
const DEPTH_MAX: usize = 64;

/// The fields of `text`, and everything that is wrong with its syntax, each with the key that it belongs to.
pub(super) fn parse(text: &[u8]) -> (Vec<Field>, Vec<(String, Fault)>) {
    let (tokens, faults) = tokens(text);
    let mut parser = Parser { tokens, next: 0, faults, steps: Vec::new(), depth: 0 };
    let fields = parser.fields(None);
    let faults = parser.faults_with_keys();
    (fields, faults)
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    faults: Vec<Fault>,
    /// The way through the text, for finding the key of a fault afterwards.
    steps: Vec<(Position, Step)>,
    depth: usize,
}

#[derive(Clone, Copy)]
enum Step {
    /// Into the field whose name is the token of this index.
    Enter(usize),
    /// To the next element of the field's list.
    Element,
    /// Out of the field.
    Leave,
}

/// The bracket that ends a message, and where the message began.
#[derive(Clone, Copy)]
struct Close {
    sign: u8,
    opened: Position,
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is the end and is never passed.
        &self.tokens[self.next]
    }

    fn peek_second(&self) -> Option<&Kind> {
        self.tokens.get(self.next + 1).map(|token| &token.kind)
    }

    fn bump(&mut self) -> Token {
        let token = self.tokens[self.next].clone();
        if token.kind != Kind::End {
            self.next += 1;
        }
        token
    }

    fn second_opens_value(&self) -> bool {
        matches!(self.peek_second(), Some(Kind::Sign(b':' | b'{' | b'<' | b'[')))
    }

    fn take_sign(&mut self, sign: u8) -> bool {
        let found = self.peek().kind == Kind::Sign(sign);
        if found {
            self.bump();
        }
        found
    }

    fn fault(&mut self, at: Position, message: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault { at, message: message.into() });
        }
    }

    fn step(&mut self, step: Step) {
        self.steps.push((self.peek().at, step));
    }

    /// A field ends with its last line, or where the next thing begins.
    fn leave(&mut self) {
        let line = self.tokens[self.next.saturating_sub(1)].at.line;
        let at = self.peek().at.min(Position { line, column: u32::MAX });
        self.steps.push((at, Step::Leave));
    }

    /// The faults in the order of the text, each with the path of the field that it lies in.
    fn faults_with_keys(&mut self) -> Vec<(String, Fault)> {
        self.faults.sort_by_key(|fault| fault.at);
        let mut path: Vec<(usize, Option<usize>)> = Vec::new();
        let mut steps = self.steps.iter().peekable();
        let mut found = Vec::new();
        for fault in &self.faults {
            while let Some((_, step)) = steps.next_if(|(at, _)| *at <= fault.at) {
                match step {
                    Step::Enter(token) => path.push((*token, None)),
                    Step::Element => {
                        if let Some((_, index)) = path.last_mut() {
                            *index = Some(index.map_or(0, |index| index + 1));
                        }
                    }
                    Step::Leave => {
                        path.pop();
                    }
                }
            }
            found.push((self.key(&path), fault.clone()));
        }
        found
    }

    fn key(&self, path: &[(usize, Option<usize>)]) -> String {
        let parts = path.iter().map(|(token, index)| {
            let name = match &self.tokens[*token].kind {
                Kind::Word(name) => shorten(name),
                _ => String::new(),
            };
            index.map_or(name.clone(), |index| format!("{name}[{index}]"))
        });
        parts.collect::<Vec<_>>().join(".")
    }

    /// Fields up to the closing bracket, which is consumed, or to the end.
    fn fields(&mut self, close: Option<Close>) -> Vec<Field> {
        let mut fields = Vec::new();
        loop {
            let Token { at, kind } = self.peek().clone();
            match kind {
                Kind::End => {
                    if let Some(close) = close {
                        let (open, end) = (opening(close.sign), char::from(close.sign));
                        self.fault(
                            close.opened,
                            format!("unterminated message: this '{open}' has no matching '{end}'"),
                        );
                    }
                    return fields;
                }
                Kind::Word(name) => {
                    self.step(Step::Enter(self.next));
                    fields.extend(self.field(name, at));
                    self.leave();
                }
                Kind::Sign(sign @ (b'}' | b'>' | b']')) => match close {
                    Some(close) if close.sign == sign => {
                        self.bump();
                        return fields;
                    }
                    Some(close) => {
                        let (end, opened, got) = (char::from(close.sign), close.opened, char::from(sign));
                        self.fault(
                            at,
                            format!("expected '{end}' to close the message opened at {opened}, got '{got}'"),
                        );
                        // A list around this message ends here; other brackets can only be a wrong one.
                        if sign != b']' {
                            self.bump();
                        }
                        return fields;
                    }
                    None => {
                        self.bump();
                        self.fault(at, format!("unexpected '{}': nothing is open here", char::from(sign)));
                    }
                },
                Kind::Sign(b'[') => {
                    self.fault(at, "extension and Any fields ('[...]') are not part of a model configuration");
                    self.recover(at.line);
                }
                kind => {
                    self.fault(at, format!("expected a field name, got {}", kind.describe()));
                    self.recover(at.line);
                }
            }
        }
    }

    /// One field from its name to its separator; `None` if it has no value.
    fn field(&mut self, name: String, at: Position) -> Option<Field> {
        self.bump();
        let colon = self.take_sign(b':');
        let value = self.peek().clone();
        let node = match value.kind {
            Kind::Sign(b'{' | b'<') => self.message(),
            Kind::Sign(b'[') => Some(self.list()),
            Kind::End | Kind::Sign(b'}' | b'>' | b']' | b',' | b';' | b':') => {
                self.fault(at, format!("field '{}' has no value", shorten(&name)));
                None
            }
            Kind::Word(_) if self.second_opens_value() => {
                self.fault(at, format!("field '{}' has no value", shorten(&name)));
                return None;
            }
            _ if !colon => {
                self.fault(value.at, format!("expected ':' after '{}', got {}", shorten(&name), value.kind.describe()));
                if value.at.line > at.line { None } else { self.scalar() }
            }
            _ => self.scalar(),
        };
        if node.is_none() && !matches!(self.peek().kind, Kind::Word(_)) {
            self.recover(at.line);
            return None;
        }
        if !self.take_sign(b',') {
            self.take_sign(b';');
        }
        node.map(|value| Field { name, at: Some(at), value })
    }

    /// `{...}` or `<...>`; `None` if it is nested too deep.
    fn message(&mut self) -> Option<Node> {
        let open = self.bump();
        let sign = if open.kind == Kind::Sign(b'{') { b'}' } else { b'>' };
        if self.depth == DEPTH_MAX {
            self.fault(open.at, format!("nested deeper than {DEPTH_MAX} messages"));
            self.skip_block();
            return None;
        }
        self.depth += 1;
        let fields = self.fields(Some(Close { sign, opened: open.at }));
        self.depth -= 1;
        Some(Node { at: Some(open.at), value: Value::Message(fields) })
    }

    /// `[a, b]`.
    fn list(&mut self) -> Node {
        let open = self.bump();
        let mut nodes = Vec::new();
        if !self.take_sign(b']') {
            loop {
                self.step(Step::Element);
                nodes.extend(self.element());
                if self.take_sign(b']') {
                    break;
                }
                if self.take_sign(b',') {
                    continue;
                }
                if !self.list_goes_on(open.at) {
                    break;
                }
            }
        }
        Node { at: Some(open.at), value: Value::List(nodes) }
    }

    fn element(&mut self) -> Option<Node> {
        let Token { at, kind } = self.peek().clone();
        match kind {
            Kind::Sign(b'{' | b'<') => self.message(),
            Kind::Sign(b'[') => {
                self.fault(at, "a list cannot hold a list");
                self.bump();
                self.skip_block();
                None
            }
            Kind::Sign(b']' | b',') => {
                self.fault(at, format!("expected a value in the list, got {}", kind.describe()));
                None
            }
            Kind::End | Kind::Sign(b'}' | b'>') => None,
            _ => self.scalar(),
        }
    }

    /// After an element without comma or bracket: reports it, and says whether more elements may follow.
    fn list_goes_on(&mut self, opened: Position) -> bool {
        let Token { at, kind } = self.peek().clone();
        let next_is_field = matches!(kind, Kind::Word(_)) && self.second_opens_value();
        if matches!(kind, Kind::End | Kind::Sign(b'}' | b'>' | b';' | b':')) || next_is_field {
            self.fault(at, format!("expected ',' or ']' in the list opened at {opened}, got {}", kind.describe()));
            return false;
        }
        self.fault(at, format!("expected ',' or ']' in the list opened at {opened}, got {}", kind.describe()));
        if matches!(kind, Kind::Sign(b'-' | b'.' | b'/')) && !matches!(self.peek_second(), Some(Kind::Integer(..))) {
            self.bump();
        }
        true
    }

    /// A string, number or word; reports anything else and leaves it.
    fn scalar(&mut self) -> Option<Node> {
        let Token { at, kind } = self.bump();
        let value = match kind {
            Kind::Text(mut text) => {
                // Strings side by side are one string.
                while let Kind::Text(more) = &self.peek().kind {
                    text.extend_from_slice(more);
                    self.bump();
                }
                Value::Text(text)
            }
            Kind::Word(word) => Value::Word(word),
            Kind::Integer(magnitude, text) => Value::Integer(Integer { negative: false, magnitude, text }),
            Kind::Float(number, _) => Value::Float(number),
            Kind::Sign(b'-') => match self.bump().kind {
                Kind::Integer(magnitude, text) => {
                    Value::Integer(Integer { negative: true, magnitude, text: format!("-{text}") })
                }
                Kind::Float(number, _) => Value::Float(-number),
                Kind::Word(word) => Value::Word(format!("-{word}")),
                kind => {
                    self.step_back(&kind);
                    self.fault(at, format!("expected a number after '-', got {}", kind.describe()));
                    return None;
                }
            },
            kind => {
                self.step_back(&kind);
                self.fault(at, format!("expected a value, got {}", kind.describe()));
                if matches!(kind, Kind::Sign(b'.' | b'/' | b':' | b';')) {
                    self.bump();
                }
                return None;
            }
        };
        Some(Node { at: Some(at), value })
    }

    fn step_back(&mut self, taken: &Kind) {
        if *taken != Kind::End {
            self.next -= 1;
        }
    }

    /// Goes on to the next place where a field can begin: behind a separator, at a closing bracket, or at the first
    /// word of a later line.
    fn recover(&mut self, line: u32) {
        loop {
            let token = self.peek();
            match token.kind {
                Kind::End | Kind::Sign(b'}' | b'>') => return,
                Kind::Sign(b',' | b';') => {
                    self.bump();
                    return;
                }
                Kind::Word(_) if token.at.line > line => return,
                Kind::Sign(b'{' | b'<' | b'[') => {
                    self.bump();
                    self.skip_block();
                }
                _ => {
                    self.bump();
                }
            }
        }
    }

    /// Skips to behind the bracket that closes the one just consumed. Brackets are counted, whatever their kind.
    fn skip_block(&mut self) {
        let mut open = 1usize;
        while open > 0 {
            match self.bump().kind {
                Kind::End => return,
                Kind::Sign(b'{' | b'<' | b'[') => open += 1,
                Kind::Sign(b'}' | b'>' | b']') => open -= 1,
                _ => {}
            }
        }
    }
}

fn opening(close: u8) -> char {
    if close == b'}' { '{' } else { '<' }
}
