//! Makes the error texts of libraries fit for clients and logs: one line, not too long, without folders of this machine.

/// The longest message that is passed on, in bytes.
const LONGEST: usize = 1000;

/// The text on one line; absolute paths keep only their last part.
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
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
    fn folders_are_left_out() {
        assert_eq!(one_line("cannot open /home/user/x/model.pt\n now"), "cannot open model.pt now");
        assert_eq!(one_line("a/b ('/tmp/a/b.pt')"), "a/b ('b.pt')");
    }

    #[test]
    fn a_long_text_is_cut() {
        assert!(one_line(&"word ".repeat(1000)).len() <= LONGEST + "…".len());
    }
}
