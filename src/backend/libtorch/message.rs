//! Makes libtorch's error texts fit for clients and logs: without the excerpts of the model's source.

use crate::backend::message;

/// What libtorch says, on one line, without folders.
///
/// Of an error raised while a model runs, the excerpt of the model's source is left out.
pub fn one_line(text: &str) -> String {
    message::one_line(essence(text))
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
}
