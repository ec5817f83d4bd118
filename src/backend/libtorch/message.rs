//! Makes libtorch's error texts fit for clients and logs: one line, without source excerpts and paths.

/// The longest message that is passed on, in bytes.
const LONGEST: usize = 1000;

/// What libtorch says, on one line.
///
/// Of an error raised while a model runs, the excerpt of the model's source is left out; absolute paths keep only
/// their last part.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in essence(text).split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        if line.len() + word.len() > LONGEST {
            line.push('…');
            break;
        }
        push_without_folders(&mut line, word);
    }
    line
}

/// The part after the interpreter's traceback, if there is one: the line that starts where the excerpts, which are
/// indented, end.
fn essence(text: &str) -> &str {
    let Some(start) = text.rfind("Traceback of TorchScript") else { return text };
    let mut rest = &text[start..];
    while let Some((line, after)) = rest.split_once('\n') {
        let excerpt = line.is_empty()
            || line.starts_with(char::is_whitespace)
            || line.starts_with("Traceback of TorchScript")
            || line.starts_with("Serialized ")
            || line.contains("<--- HERE");
        if !excerpt {
            break;
        }
        rest = after;
    }
    if rest.trim().is_empty() { text } else { rest }
}

fn push_without_folders(line: &mut String, word: &str) {
    let path =
        word.find('/').filter(|&at| word[..at].chars().all(|c| !c.is_alphanumeric()) && word[at + 1..].contains('/'));
    match (path, word.rfind('/')) {
        (Some(first), Some(last)) => {
            line.push_str(&word[..first]);
            line.push_str(&word[last + 1..]);
        }
        _ => line.push_str(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_traceback_only_the_message_stays() {
        let text = "The following operation failed in the TorchScript interpreter.\n\
                    Traceback of TorchScript (most recent call last):\n  File \"<string>\", line 3, in forward\n\
                    \n    def forward(self, x):\n        raise Exception(\"no\")\n        ~~~~ <--- HERE\nRuntimeError: no\nmore\n";
        assert_eq!(one_line(text), "RuntimeError: no more");
    }

    #[test]
    fn folders_are_left_out() {
        assert_eq!(one_line("cannot open /home/user/x/model.pt\n now"), "cannot open model.pt now");
        assert_eq!(one_line("a/b ('/tmp/a/b.pt')"), "a/b ('b.pt')");
    }

    #[test]
    fn a_long_text_is_cut() {
        assert!(one_line(&"word ".repeat(1000)).len() <= LONGEST + "…".len());
    }
}
